from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.models import resnet56
from prunelab.pruning import prune, score
from prunelab.pruning.criteria import Snip, snip

from ..nets import chain, mlp, random_masks, samples, vgg_like, with_dropout, without_shifts

BATCH = samples(512, 2, 6, 6)
QUARTERS = list(zip(BATCH[0].split(128), BATCH[1].split(128), strict=True))


def half_square(outputs: Tensor, target: Tensor) -> Tensor:
    return ((outputs - target) ** 2).mean() / 2


def quadratic() -> dict[str, object]:
    """L = (w.x - y)^2 / 2 with x = (1, 1, 2), y = 0."""
    batch = (torch.tensor([[1.0, 1, 2]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    return {"example_input": batch[0], "batches": [batch], "loss": half_square}


def test_quadratic_loss_by_hand() -> None:
    """w = (1, 2, -1), g = (1, 1, 2): |w g| = (1, 2, 2), and w g sums to dL((1 + a) w)/da at a = 0, which is 1."""
    net = chain([[1, 2, -1]])
    assert score(net, snip, **quadratic())["0.weight"].tolist() == [[1, 2, 2]]
    signed = score(net, Snip(signed=True), **quadratic())["0.weight"]
    assert signed.tolist() == [[1, 2, -2]]
    step = 1e-6
    (x, y), w = quadratic()["batches"][0], net[0].weight.detach()
    slope = (half_square(x @ ((1 + step) * w).T, y) - half_square(x @ ((1 - step) * w).T, y)) / (2 * step)
    assert signed.sum().item() == pytest.approx(slope.item(), rel=1e-8)


@pytest.mark.parametrize("criterion", [snip, Snip(signed=True), Snip(normalise=True)])
def test_one_batch_of_512_equals_four_of_128(criterion: Snip) -> None:
    """Sum over batches first, absolute value then."""
    net = with_dropout()
    whole = score(net, criterion, example_input=BATCH[0][:1], batches=[BATCH])
    parts = score(net, criterion, example_input=BATCH[0][:1], batches=QUARTERS)
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=1e-9, atol=1e-15)


def test_not_the_sum_of_absolute_values() -> None:
    """Two batches whose gradients cancel score 0 together."""
    net = chain([[1.0]])
    up = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    down = (torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64))
    options = {"example_input": torch.zeros(1, 1), "loss": half_square}
    assert score(net, snip, batches=[up, down], **options)["0.weight"].item() == 0
    assert score(net, snip, batches=[up], **options)["0.weight"].item() == 1


def test_equals_weight_times_finite_differences() -> None:
    """Switching a weight by 1 - h and 1 + h: the loss changes by the score, per 2 h."""
    net, (inputs, labels) = vgg_like().eval(), samples(6, 2, 6, 6)
    scores = score(net, snip, example_input=inputs[:1], batches=[(inputs, labels)])
    step = 1e-5
    for name in ("0.weight", "9.weight"):
        weight, values = net.get_parameter(name), scores[name].flatten()
        for index in range(0, weight.numel(), 5):
            original, losses = weight.data.view(-1)[index].item(), []
            for factor in (1 + step, 1 - step):
                weight.data.view(-1)[index] = original * factor
                losses.append(cross_entropy(net(inputs), labels).item())
            weight.data.view(-1)[index] = original
            assert values[index].item() == pytest.approx(abs(losses[0] - losses[1]) / (2 * step), rel=1e-4, abs=1e-9)


def test_pruned_weights_score_zero_in_the_pruned_network() -> None:
    net, masks = vgg_like(), random_masks(vgg_like())
    batches = [samples(6, 2, 6, 6)]
    scores = score(net, snip, example_input=batches[0][0][:1], masks=masks, batches=batches)
    assert all(torch.count_nonzero(values[~masks[name]]) == 0 for name, values in scores.items())
    masks.apply_to(net)
    pruned = score(net, snip, example_input=batches[0][0][:1], batches=batches)
    assert all(torch.equal(scores[name][masks[name]], pruned[name][masks[name]]) for name in scores)


def test_normalised_scores_are_shares_of_their_layer() -> None:
    net, batches = vgg_like(), [samples(6, 2, 6, 6)]
    plain = score(net, snip, example_input=batches[0][0][:1], batches=batches)
    shares = score(net, Snip(normalise=True), example_input=batches[0][0][:1], batches=batches)
    for name, values in plain.items():
        torch.testing.assert_close(shares[name], values / values.sum())
    options = {"density": 0.3, "example_input": batches[0][0][:1], "batches": batches}
    assert prune(net, snip, **options) != prune(net, Snip(normalise=True), **options)


def test_signed_keeps_what_lowers_the_loss_last() -> None:
    net, batches = vgg_like(), [samples(6, 2, 6, 6)]
    plain = score(net, snip, example_input=batches[0][0][:1], batches=batches)
    signed = score(net, Snip(signed=True), example_input=batches[0][0][:1], batches=batches)
    assert all(torch.equal(values.abs(), plain[name]) for name, values in signed.items())
    assert any((values < 0).any() for values in signed.values())


def test_signed_scores_are_conserved_from_layer_to_layer() -> None:
    """Without shifts w * dL/dw sums to the same in every layer, for the loss as for any scalar of the output; their
    absolute values do not."""
    for net, batch in ((mlp(2, 5, 4, 3, bias=False), samples(9, 2)), (without_shifts(vgg_like()), samples(9, 2, 6, 6))):
        signed = score(net, Snip(signed=True), example_input=batch[0][:1], batches=[batch])
        sums = torch.stack([values.sum() for values in signed.values()])
        torch.testing.assert_close(sums, sums[0].expand_as(sums), rtol=1e-9, atol=1e-14)
        plain = score(net, snip, example_input=batch[0][:1], batches=[batch])
        totals = [values.sum().item() for values in plain.values()]
        assert max(totals) > 1.1 * min(totals)


def test_statistics_of_batch_norm_are_a_choice() -> None:
    net, batches = with_dropout(), [samples(12, 2, 6, 6)]
    running = score(net, Snip(batch_norm="running"), example_input=batches[0][0][:1], batches=batches)
    batch = score(net, Snip(batch_norm="batch"), example_input=batches[0][0][:1], batches=batches)
    assert not torch.allclose(running["0.weight"], batch["0.weight"])


def test_a_deep_network_on_running_statistics_warns_and_on_batch_statistics_does_not() -> None:
    torch.manual_seed(0)
    net, inputs = resnet56(), torch.randn(20, 3, 8, 8)
    options = {"example_input": inputs[:1], "batches": [(inputs, torch.arange(20) % 10)]}
    with pytest.warns(UserWarning, match="saturated"):
        score(net, snip, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(net, Snip(batch_norm="batch"), **options)


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """Each batch's graph is gone when the next one is read."""
    alive: list[int] = []

    class Counting:
        def __iter__(self):
            for seed in range(5):
                alive.append(sum(isinstance(node, Probe) and node.open for node in probes))
                yield samples(4, 3, seed=seed)

    class Probe:
        open = True

    probes: list[Probe] = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.probe = Probe()
            probes.append(ctx.probe)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            ctx.probe.open = False
            return gradient

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return Noted.apply(self.linear(x))

    score(Net(), snip, example_input=torch.zeros(1, 3), batches=Counting())
    assert alive == [0] * len(alive)
    assert len(probes) == 5
