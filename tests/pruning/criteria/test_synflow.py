from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunelab.pruning import Masks, PruningError, keep_highest, prune, score
from prunelab.pruning.criteria import SynFlow, lamp, magnitude, random, synflow

from ..nets import (
    chain,
    dense,
    mlp,
    random_masks,
    residual,
    samples,
    seeded,
    three_by_three,
    two_by_two,
    vgg_like,
    with_dropout,
    without_shifts,
)

IMAGE = torch.zeros(1, 2, 6, 6, dtype=torch.float64)


def close(a: Tensor, b: Tensor, rel: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=rel, atol=0)


# --- by hand ---


def test_two_hidden_units_by_hand() -> None:
    """R = 9.5: each layer's scores sum to it, and each hidden unit passes on what it gets (6 and 3.5)."""
    scores = score(two_by_two(), synflow, example_input=torch.zeros(1, 2))
    assert scores["0.weight"].tolist() == [[2, 4], [3, 0.5]]
    assert scores["2.weight"].tolist() == [[6, 3.5]]


def test_three_hidden_units_by_hand() -> None:
    scores = score(three_by_three(), synflow, example_input=torch.zeros(1, 3))
    assert scores["0.weight"].tolist() == [[3, 6, 9], [8, 10, 12], [7, 8, 9]]
    assert scores["2.weight"].tolist() == [[18, 30, 24]]


def test_gradient_without_the_weight() -> None:
    """2, 1 into the hidden units and 3, 3.5 out of them: no conservation."""
    scores = score(two_by_two(), SynFlow(gradient_only=True), example_input=torch.zeros(1, 2))
    assert scores["0.weight"].tolist() == [[2, 2], [1, 1]]
    assert scores["2.weight"].tolist() == [[3, 3.5]]


def test_an_output_that_is_always_zero_is_rated_highest() -> None:
    """W1 = (1, 1)', W2 = (9999, -9999): the function is 0; SynFlow does not see signs."""
    net = chain([[1], [1]], [[9999, -9999]])
    scores = score(net, synflow, example_input=torch.zeros(1, 1))
    assert scores["0.weight"].tolist() == [[9999], [9999]]
    assert scores["2.weight"].tolist() == [[9999, 9999]]


# --- conservation, on real networks, biases and shifts anything ---

NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: mlp(4, 7, 5, 6, 3), torch.zeros(1, 4)),
    "vgg": (vgg_like, IMAGE),
    "residual": (residual, IMAGE),
    "dropout": (with_dropout, IMAGE),
}
# sets of layers that separate the input from the output; the first layers' scores alone are R
CUTS: dict[str, list[list[str]]] = {
    "mlp": [["0.weight"], ["2.weight"], ["4.weight"], ["6.weight"]],
    "vgg": [["0.weight"], ["4.weight"], ["9.weight"]],
    "dropout": [["0.weight"], ["5.weight"], ["9.weight"]],
    "residual": [
        ["stem.weight"],
        ["blocks.1.conv1.weight", "blocks.1.shortcut.weight"],
        ["blocks.1.conv2.weight", "blocks.1.shortcut.weight"],
        ["classifier.weight"],
    ],
}
networks = pytest.mark.parametrize("name", NETS)


def scores_of(name: str, criterion: Any = synflow, masks: Masks | None = None, **scoring: Any) -> dict[str, Tensor]:
    build, image = NETS[name]
    return score(build(), criterion, example_input=image, masks=masks, **scoring)


def cut_sums(name: str, scores: dict[str, Tensor]) -> Tensor:
    return torch.stack([sum(scores[layer].double().sum() for layer in cut) for cut in CUTS[name]])


def incoming(values: Tensor) -> Tensor:
    """Sum of scores per unit or channel, over what leads to it."""
    return values.flatten(1).sum(1)


def outgoing(values: Tensor, units: int) -> Tensor:
    """Sum of scores per unit or channel of the layer before, over what leads away from it."""
    return values.transpose(0, 1).reshape(units, -1).sum(1)


@networks
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_layers_that_separate_input_from_output_have_the_same_sum(name: str, density: float) -> None:
    masks = None if density == 1 else random_masks(NETS[name][0](), density)
    sums = cut_sums(name, scores_of(name, masks=masks))
    assert sums[0] > 0
    close(sums, sums[0].expand_as(sums))


@networks
@pytest.mark.parametrize(
    "variant",
    [
        SynFlow(objective="l2"),
        SynFlow(objective="log"),
        SynFlow(input="mean_abs"),
        SynFlow(precision="float32"),
    ],
    ids=["l2", "log", "mean_abs", "float32"],
)
def test_variants_conserve_too(name: str, variant: SynFlow) -> None:
    image = NETS[name][1]
    batches = [samples(5, *image.shape[1:]), samples(3, *image.shape[1:], seed=1)]
    sums = cut_sums(name, scores_of(name, variant, batches=batches))
    close(sums, sums[0].expand_as(sums), rel=1e-4 if variant.precision == "float32" else 1e-9)


@networks
@pytest.mark.parametrize("control", [random, magnitude, lamp, SynFlow(gradient_only=True)])
def test_other_scores_are_not_conserved(name: str, control: Any) -> None:
    """The negative control of the test above."""
    sums = cut_sums(name, scores_of(name, control))
    assert (sums.max() - sums.min()) > 0.05 * sums.max()


def test_a_branch_beside_an_identity_shortcut_has_a_part_of_the_sum() -> None:
    scores = scores_of("residual")
    assert 0 < scores["blocks.0.conv1.weight"].sum() < 0.999 * scores["stem.weight"].sum()
    close(scores["blocks.0.conv1.weight"].sum(), scores["blocks.0.conv2.weight"].sum())


PAIRS = [
    *(("mlp", f"{i}.weight", f"{i + 2}.weight") for i in (0, 2, 4)),
    ("vgg", "0.weight", "4.weight"),
    ("vgg", "4.weight", "9.weight"),
    ("residual", "blocks.0.conv1.weight", "blocks.0.conv2.weight"),
    ("residual", "blocks.1.conv1.weight", "blocks.1.conv2.weight"),
    ("dropout", "5.weight", "9.weight"),
]


@pytest.mark.parametrize(("name", "before", "after"), PAIRS)
def test_each_hidden_unit_passes_on_what_it_gets(name: str, before: str, after: str) -> None:
    """Through ReLU, batch norm, max and average pooling, and dropout."""
    scores = scores_of(name)
    got = incoming(scores[before])
    close(got, outgoing(scores[after], len(got)))
    for control in (random, magnitude):
        scores = scores_of(name, control)
        got = incoming(scores[before]).double()
        assert not torch.allclose(got, outgoing(scores[after], len(got)).double(), rtol=0.01)


def test_channels_of_a_residual_stream_pass_on_what_they_get() -> None:
    """Into block 1: from the stem (through the identity) and block 0's branch; out of it: to conv1 and the shortcut."""
    scores = scores_of("residual")
    stream = outgoing(scores["blocks.1.conv1.weight"], 3) + outgoing(scores["blocks.1.shortcut.weight"], 3)
    stem = incoming(scores["stem.weight"]) - outgoing(scores["blocks.0.conv1.weight"], 3)
    close(stream, stem + incoming(scores["blocks.0.conv2.weight"]))


@networks
def test_mean_score_times_layer_size_is_constant(name: str) -> None:
    scores = scores_of(name)
    products = torch.stack([scores[cut[0]].mean() * scores[cut[0]].numel() for cut in CUTS[name] if len(cut) == 1])
    close(products, products[0].expand_as(products))
    for control in (random, magnitude):
        scores = scores_of(name, control)
        products = torch.stack([scores[cut[0]].mean() * scores[cut[0]].numel() for cut in CUTS[name] if len(cut) == 1])
        assert products.max() > 1.05 * products.min()


@pytest.mark.parametrize("name", ["mlp", "vgg", "residual"])
def test_flow_is_the_plain_forward_pass_of_a_positive_network(name: str) -> None:
    """All w > 0, no shifts: ReLU is the identity, and R is the sum of the network's outputs for ones."""
    build, image = NETS[name]
    net = without_shifts(build()).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
        outputs = net(torch.ones_like(image, dtype=torch.float64))
    close(cut_sums(name, score(net, synflow, example_input=image))[0], outputs.sum())


@pytest.mark.parametrize("density", [1.0, 0.6])
def test_closed_form_of_fully_connected_networks(density: float) -> None:
    """S(w_ij) = [1' prod of |W_k| after it]_i * |w_ij| * [prod of |W_k| before it 1]_j."""
    net = mlp(4, 7, 5, 6, 3)
    masks = dense(net) if density == 1 else random_masks(net, density)
    matrices = [net.get_parameter(name).detach().abs() * masks[name] for name in masks]
    scores = score(net, synflow, example_input=torch.zeros(1, 4), masks=masks)
    for layer, name in enumerate(masks):
        before = torch.ones(4, dtype=torch.float64)
        for matrix in matrices[:layer]:
            before = matrix @ before
        after = torch.ones(3, dtype=torch.float64)
        for matrix in reversed(matrices[layer + 1 :]):
            after = matrix.T @ after
        close(scores[name], after[:, None] * matrices[layer] * before[None, :])


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU])
def test_own_activations_break_conservation_and_identity_ones_do_not(activation: Callable[[], nn.Module]) -> None:
    net = mlp(4, 7, 5, 3, activation=activation)
    for criterion, conserved in ((SynFlow(activations="own"), False), (synflow, True)):
        scores = score(net, criterion, example_input=torch.zeros(1, 4))
        sums = torch.stack([values.sum() for values in scores.values()])
        residual_share = (sums.max() - sums.min()) / sums.max()
        assert (residual_share < 1e-9) == conserved
        if not conserved:
            assert residual_share > 1e-3


def test_own_relu_is_the_identity() -> None:
    """On a positive signal: ReLU networks get their linear network for free."""
    own, identity = scores_of("vgg", SynFlow(activations="own")), scores_of("vgg")
    assert all(torch.equal(own[name], identity[name]) for name in own)


# --- what the score does not depend on ---


def test_signs_biases_shifts_means_and_mode_do_not_matter() -> None:
    """In train mode, scored naively, more than half of the scores of such a network would be negative."""
    expected = scores_of("dropout")
    net = with_dropout().train()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(-3.0)
            else:
                parameter.mul_(-1)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(5.0)
    scores = score(net, synflow, example_input=IMAGE)
    for name, values in expected.items():
        assert torch.equal(scores[name], values)
        assert (values >= 0).all()


def test_relu6_is_not_saturated() -> None:
    """On an all-ones input its clamp at 6 would silence most weights; it is the identity here, as ReLU is."""
    net, relu = mlp(40, 60, 60, 3, activation=nn.ReLU6), mlp(40, 60, 60, 3)
    image = torch.zeros(1, 40)
    ours, theirs = score(net, synflow, example_input=image), score(relu, synflow, example_input=image)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(PruningError, match="more than half of the SynFlow scores are 0"):
        score(net, SynFlow(activations="own"), example_input=image)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.second = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.gelu(self.norm(self.first(x))))


def test_layer_norm_is_a_factor() -> None:
    """Of an all-equal signal the norm itself would make 0, and R with it."""
    net = seeded(Normed(), 0)
    scores = score(net, synflow, example_input=torch.zeros(1, 4))
    close(scores["first.weight"].sum(), scores["second.weight"].sum())
    first, second = net.first.weight.detach().abs(), net.second.weight.detach().abs()
    flow = (second.sum(0) * net.norm.weight.detach().abs()) @ first.sum(1)
    close(scores["first.weight"].sum(), flow)


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_masks_in_float64_do_not_depend_on_the_number_of_threads(name: str) -> None:
    build, image = NETS[name]
    threads, masks = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            masks.append(prune(build(), synflow, density=0.1, rounds=20, example_input=image))
    finally:
        torch.set_num_threads(threads)
    assert masks[0] == masks[1]


# --- knobs ---


def test_mean_abs_is_the_mean_of_absolute_inputs_over_all_samples() -> None:
    """Closed form with x in place of ones; batches of different size count by their samples."""
    batches = [samples(5, 2), samples(2, 2, seed=1)]
    x = torch.cat([inputs for inputs, _ in batches]).abs().mean(0)
    net = two_by_two()
    scores = score(net, SynFlow(input="mean_abs"), example_input=torch.zeros(1, 2), batches=batches)
    first, second = (net[i].weight.detach().abs() for i in (0, 2))
    close(scores["0.weight"], second.T * first * x)
    close(scores["2.weight"], second * (first @ x))


def paths(net: nn.Sequential) -> dict[tuple[int, ...], float]:
    """Every input-output path of a fully connected network and the product of its squared weights."""
    matrices = [parameter.detach() for parameter in net.parameters()]
    widths = [matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices)]
    found = {}
    for path in product(*(range(width) for width in widths)):
        value = 1.0
        for matrix, source, target in zip(matrices, path, path[1:], strict=False):
            value *= matrix[target, source].item() ** 2
        found[path] = value
    return found


def test_l2_is_the_path_norm() -> None:
    """R = sum over paths of the product of squared weights; a weight's score, that sum over the paths through it."""
    net = mlp(3, 4, 3, 2, bias=False)
    scores = score(net, SynFlow(objective="l2"), example_input=torch.zeros(1, 3))
    every = paths(net)
    for layer, values in enumerate(scores.values()):
        assert values.sum().item() == pytest.approx(sum(every.values()), rel=1e-12)
        for target, source in product(*map(range, values.shape)):
            through = sum(value for path, value in every.items() if path[layer : layer + 2] == (source, target))
            assert values[target, source].item() == pytest.approx(through, rel=1e-12)


def test_l2_squares_batch_norm_too() -> None:
    """Squared factors in R, so the scores equal those of "sum" on the network whose every factor is squared."""
    net, squared = with_dropout(), with_dropout()
    with torch.no_grad():
        for parameter in squared.parameters():
            parameter.square_()
        for norm in (squared[1], squared[6]):
            norm.running_var.copy_((norm.running_var + norm.eps) ** 2 - norm.eps)
    ours = score(net, SynFlow(objective="l2"), example_input=IMAGE)
    theirs = score(squared, synflow, example_input=IMAGE)
    for name, values in ours.items():
        close(values, theirs[name])


def test_log_ranks_as_sum_does() -> None:
    """d log R = dR / R: every layer's scores sum to 1, the masks are the same."""
    plain, log = scores_of("vgg"), scores_of("vgg", SynFlow(objective="log"))
    total = plain["9.weight"].sum()
    for name, values in log.items():
        close(values, plain[name] / total)
    options = {"density": 0.1, "rounds": 20, "example_input": IMAGE}
    assert prune(vgg_like(), SynFlow(objective="log"), **options) == prune(vgg_like(), synflow, **options)


def test_normalising_changes_nothing_in_a_chain() -> None:
    """By conservation each layer's scores sum to R: shares differ from scores by one factor."""
    shares, plain = scores_of("vgg", SynFlow(normalise=True)), scores_of("vgg")
    for name, values in shares.items():
        assert values.sum().item() == pytest.approx(1, rel=1e-12)
        close(values, plain[name] / plain[name].sum())


def test_float32_keeps_the_budget() -> None:
    masks = prune(vgg_like(), SynFlow(precision="float32"), density=0.1, rounds=20, example_input=IMAGE)
    assert masks.num_kept == 27
    assert all(values.dtype == torch.float32 for values in scores_of("vgg", SynFlow(precision="float32")).values())
    assert all(values.dtype == torch.float64 for values in scores_of("vgg").values())


def test_one_weight_at_a_time_never_empties_a_layer() -> None:
    """Down to maximal compression, one weight per layer: what is left is one path."""
    net, start = mlp(4, 5, 4, 3), dense(mlp(4, 5, 4, 3))

    def check(index: int, density: float, scores: dict[str, Tensor], masks: Masks) -> None:
        assert min(masks.layer_num_kept().values()) >= 1

    masks = prune(
        net,
        synflow,
        density=3 / start.num_weights,
        rounds=start.num_weights - 3,
        schedule="linear",
        example_input=torch.zeros(1, 4),
        on_round=check,
    )
    assert list(masks.layer_num_kept().values()) == [1, 1, 1]
    first, second, third = (mask.nonzero()[0] for mask in masks.values())
    assert first[0] == second[1]
    assert second[0] == third[1]


# --- refusals ---


class Squeeze(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((x * self.gate(x)).mean((2, 3)))


class Transformer(nn.Module):
    """As vision transformers are: patches, a learned position, attention, layer norm."""

    def __init__(self, position: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 4, 2, 2)
        self.position = nn.Parameter(torch.ones(1, 9, 4) * 0.1) if position else None
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.position is None else x + self.position
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


class Subtracting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plus = nn.Linear(2, 3)
        self.minus = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(x) - self.minus(x)


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (Squeeze(), (1, 2, 6, 6), r"means nothing on this network: the network itself \(Squeeze\)"),
        (Transformer(position=False), (1, 2, 6, 6), r"attention \(MultiheadAttention\)"),
        (Transformer(position=True), (1, 2, 6, 6), r"means nothing on this network"),
        (Subtracting(), (1, 2), r"negative in minus \(Linear\): a part of it subtracts"),
    ],
)
def test_refuses_networks_on_which_it_means_nothing(net: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(PruningError, match=message) as caught:
        score(net, synflow, example_input=torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_refuses_weights_of_zero_and_names_where() -> None:
    net = vgg_like()
    with torch.no_grad():
        net[4].weight.zero_()
    with pytest.raises(
        PruningError, match=r"more than half .* are 0, most in 0 \(Conv2d\), 4 \(Conv2d\), 9 \(Linear\)"
    ):
        score(net, synflow, example_input=IMAGE)


def test_refuses_inputs_of_whole_numbers() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(PruningError, match=r"floating point input, not torch\.int64"):
        score(net, synflow, example_input=torch.zeros(1, 2, dtype=torch.int64))


def test_zero_scores_of_a_pruned_network_are_no_reason_to_refuse() -> None:
    """All but one path gone: nearly all scores are 0, and rightly so."""
    net = mlp(4, 6, 3)
    masks = keep_highest(score(net, random, example_input=torch.zeros(1, 4)), 4 / 42, dense(net))
    scores = score(net, synflow, example_input=torch.zeros(1, 4), masks=masks)
    assert sum(int((values == 0).sum()) for values in scores.values()) > 21
