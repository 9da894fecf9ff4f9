from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from prunelab.data import digits
from prunelab.models import lenet_300_100
from prunelab.pruning import Masks, PruningError, prunable_names
from prunelab.pruning.criteria import random
from prunelab.pruning.diagnostics import count_macs
from prunelab.pruning.preflight import preflight
from prunelab.pruning.supermask import LearnedSupermask
from prunelab.training import Classifier, KeepPruned, PruningAtInit

from .nets import chain, dense, mlp, random_masks, vgg_like

PICTURE = torch.zeros(1, 2, 6, 6, dtype=torch.float64)


def with_scores(net: nn.Module, *layers: Any, **knobs: Any) -> LearnedSupermask:
    supermask = LearnedSupermask(net, **knobs)
    for scores, values in zip(supermask.scores.values(), layers, strict=True):
        scores.data.copy_(torch.tensor(values))
    return supermask


def drawn(seed: int, scores: Tensor) -> Tensor:
    """The mask that a forward pass draws first, from the global generator at `seed`."""
    torch.manual_seed(seed)
    return torch.sigmoid(scores.detach()).bernoulli()


def test_thresholded_by_hand() -> None:
    """Scores 1, -1, 2, 0 keep the first and the third of 1 2 3 4: 1 * 1 + 3 * 3 = 10, or 20 with factor 4 / 2."""
    inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    make = partial(with_scores, chain([[1, 2, 3, 4]]), [[1.0, -1.0, 2.0, 0.0]], evaluate="threshold")
    assert make(rescale=False).eval()(inputs).item() == 10
    assert make(rescale=True).eval()(inputs).item() == 20


def test_each_layer_has_a_factor_of_its_own() -> None:
    """Layer 1 keeps one of two weights (factor 2), layer 2 both: (2 * 3) * 5 + 0 = 30 on input 1."""
    net = with_scores(chain([[3], [7]], [[5, 6]]), [[1.0], [-1.0]], [[1.0, 1.0]], evaluate="threshold")
    assert net.eval()(torch.ones(1, 1, dtype=torch.float64)).item() == 30


def test_a_layer_without_weights_gives_zeros() -> None:
    net = with_scores(chain([[3.0]]), [[-1.0]], evaluate="threshold").eval()
    assert net(torch.ones(1, 1, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_sampled_outputs_are_those_of_the_drawn_mask(training: bool, rescale: bool) -> None:
    net = LearnedSupermask(mlp(30, 20, bias=False), rescale=rescale, initial_score=0.5).train(training)
    inputs = torch.randn(3, 30, dtype=torch.float64)
    mask = drawn(4, net.scores["0/weight"])
    assert 0 < int(mask.sum()) < 600
    expected = inputs @ (net.net[0].weight * mask * (600 / mask.sum() if rescale else 1)).T
    torch.manual_seed(4)
    torch.testing.assert_close(net(inputs), expected, rtol=1e-12, atol=0)
    assert not torch.equal(net(inputs), expected)  # the next pass draws anew


def test_draws_follow_the_probabilities() -> None:
    """10,000 weights with sigmoid(s) = .8: within four standard deviations, .004 each."""
    net = LearnedSupermask(mlp(100, 100, bias=False), rescale=False, initial_score=torch.tensor(0.8).logit().item())
    net.net[0].weight.fill_(1)
    torch.manual_seed(0)
    share = net(torch.eye(100, dtype=torch.float64)).mean().item()
    assert abs(share - 0.8) < 4 * (0.8 * 0.2 / 10_000) ** 0.5


@pytest.mark.parametrize("rescale", [False, True])
def test_gradients_go_straight_through_the_draw(rescale: bool) -> None:
    """dL/ds = dL/dm sigmoid'(s), for kept and dropped weights; L is linear in m, so dL/dm = x w, times the factor."""
    net = LearnedSupermask(chain([[2, -3, 5, 7]]), rescale=rescale)
    scores = net.scores["0/weight"]
    scores.data.copy_(torch.tensor([[0.3, -1.0, 2.0, 0.1]]))
    inputs = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64)
    mask = drawn(3, scores)
    assert 0 < int(mask.sum()) < 4
    torch.manual_seed(3)
    net(inputs).sum().backward()
    factor = 4 / mask.sum() if rescale else 1.0
    slope = torch.sigmoid(scores) * (1 - torch.sigmoid(scores))
    torch.testing.assert_close(scores.grad, (inputs * net.net[0].weight * slope * factor).detach(), rtol=1e-12, atol=0)
    assert net.net[0].weight.grad is None


def test_all_but_the_scores_is_frozen() -> None:
    net = LearnedSupermask(vgg_like(), initial_score=-2)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"scores.0/weight", "scores.4/weight", "scores.9/weight"}
    for name in trained:
        assert (net.get_parameter(name) == -2).all()
    assert set(prunable_names(net)) == {"net.0.weight", "net.4.weight", "net.9.weight"}


def test_batch_norm_of_the_network_goes_on_counting() -> None:
    net = LearnedSupermask(vgg_like()).train()
    net(torch.randn(4, 2, 6, 6, dtype=torch.float64))
    assert net.net[1].num_batches_tracked == 1
    assert not torch.equal(net.net[1].running_mean, vgg_like()[1].running_mean)


def test_masks_are_the_likelier_weights_under_the_networks_names() -> None:
    net = with_scores(chain([[1, 2], [3, 4]], [[5, 6]]), [[0.1, 0.0], [-0.1, 9.0]], [[-1.0, 1.0]])
    assert isinstance(net.masks(), Masks)
    expected = {"0.weight": [[True, False], [False, True]], "2.weight": [[False, True]]}
    assert {name: mask.tolist() for name, mask in net.masks().items()} == expected


def test_masks_make_of_a_plain_network_what_the_threshold_evaluates() -> None:
    net = LearnedSupermask(vgg_like(), rescale=False, evaluate="threshold").eval()
    for scores in net.scores.values():
        scores.data.normal_()
    plain = vgg_like().eval()
    net.masks().apply_to(plain)
    inputs = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(plain(inputs), net(inputs), rtol=1e-12, atol=0)


def test_tied_weights_have_one_mask() -> None:
    tied = mlp(4, 4, 4)
    tied[2].weight = tied[0].weight
    net = LearnedSupermask(tied, rescale=False, evaluate="threshold", initial_score=1).eval()
    net.scores["0/weight"].data[0, 0] = -1
    plain = mlp(4, 4, 4)
    plain.load_state_dict(tied.state_dict())
    for index in (0, 2):
        plain[index].weight.data[0, 0] = 0
    inputs = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(net(inputs), plain(inputs), rtol=1e-12, atol=0)


def test_its_state_dict_is_plain() -> None:
    net = LearnedSupermask(vgg_like())
    inner = {f"net.{name}" for name in vgg_like().state_dict()}
    assert set(net.state_dict()) == inner | {"scores.0/weight", "scores.4/weight", "scores.9/weight"}
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = LearnedSupermask(vgg_like(seed=1), initial_score=3)
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_nothing_to_mask_is_an_error() -> None:
    with pytest.raises(PruningError, match="nothing to prune"):
        LearnedSupermask(nn.ReLU())


@pytest.mark.parametrize("evaluate", ["sample", "threshold"])
def test_the_report_sees_the_whole_network(evaluate: Any) -> None:
    """Its mask is no pruning decision: all weights are kept, on paths and multiplied, as in the network inside."""
    net = LearnedSupermask(vgg_like(), evaluate=evaluate)
    report = preflight(net, dense(net), PICTURE, density_requested=1.0)
    plain = preflight(vgg_like(), dense(vgg_like()), PICTURE, density_requested=1.0)
    assert report.effective_density == plain.effective_density
    assert report.macs_dense == report.macs_masked == plain.macs_masked == count_macs(vgg_like(), PICTURE)
    assert report.num_kept == plain.num_kept
    masks = random_masks(vgg_like())
    named = {f"net.{name}": mask for name, mask in masks.items()}
    assert count_macs(net, PICTURE, named) == count_macs(vgg_like(), PICTURE, masks)


@pytest.mark.filterwarnings("ignore")
def test_training_moves_scores_alone_and_learns(tmp_path: Path) -> None:
    """Five epochs on real digits, through the callbacks at density 1: 10 % is chance."""
    torch.manual_seed(0)
    net = LearnedSupermask(lenet_300_100(image_size=8))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    module = Classifier(net, lambda parameters: torch.optim.SGD(parameters, lr=30, momentum=0.9, weight_decay=1e-6))
    data = digits(device="cpu", seed=0)
    pruning = PruningAtInit(random, density=1.0, seed=0)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        **options,
        accelerator="cpu",
        max_epochs=5,
        callbacks=[pruning, KeepPruned()],
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    assert pruning.masks is not None
    assert pruning.masks.density == 1
    for name, tensor in net.state_dict().items():
        if name.startswith("scores."):
            assert (tensor != before[name]).float().mean() > 0.9
        else:
            assert tensor.numpy().tobytes() == before[name].numpy().tobytes()
    assert 0.2 < net.masks().density < 0.8
    accuracy = trainer.test(module, datamodule=data, verbose=False)[0]["test_accuracy"]
    assert accuracy > 0.5
