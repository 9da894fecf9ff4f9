from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunelab.models import resnet20
from prunelab.pruning import Masks, PruningError, prune
from prunelab.pruning.criteria import synflow
from prunelab.pruning.preflight import Preflight, preflight

from .nets import dense, random_masks, residual, samples, two_by_two, vgg_like

IMAGE = torch.zeros(1, 2, 6, 6, dtype=torch.float64)


def test_numbers() -> None:
    net, masks = vgg_like(), random_masks(vgg_like(), 0.5)
    scores = {name: torch.ones(mask.shape) for name, mask in dense(net).items()}
    scores["9.weight"].zero_()
    report = preflight(
        net, masks, IMAGE, density_requested=0.5, scores=scores, scored_masks=dense(net), scoring_loss=1.25
    )
    assert report.density_requested == 0.5
    assert report.density == masks.density
    assert (report.num_kept, report.num_prunable) == (masks.num_kept, 267)
    assert report.num_parameters == 267 + 12 + 2 * 4 + 2 * 5
    assert report.layer_sizes == {"0.weight": 72, "4.weight": 180, "9.weight": 15}
    assert report.layer_densities == masks.layer_densities()
    assert report.zero_score_share == 15 / 267
    assert report.scoring_loss == 1.25
    assert report.collapsed_layers == []
    assert report.effective_density is not None
    assert 0 < report.effective_density <= report.density
    assert report.macs_dense == 72 * 36 + 180 * 9 + 15
    assert report.macs_masked < report.macs_dense
    assert report.shortcut_density is None
    assert {name for name, _, _ in report.unpruned} == {
        f"{i}.{part}" for i in (1, 5) for part in ("weight", "bias")
    } | {f"{i}.bias" for i in (0, 4, 9)}


def test_the_text_has_the_three_spellings_over_prunable_and_over_all_parameters() -> None:
    """10 of 20 weights kept, 2 biases beside them: .5 of what is prunable, 12 / 22 of everything."""
    net = nn.Linear(10, 2)
    masks = Masks({"weight": torch.arange(20).view(2, 10) % 2 == 0})
    text = str(preflight(net, masks, torch.zeros(1, 10), density_requested=0.5))
    assert "density            0.5 (sparsity 0.5, compression ratio 2): 10 of 20 prunable weights" in text
    assert "0.545455 (sparsity 0.4545, compression ratio 1.833): 12 of 22 parameters; 2 are not pruned" in text
    assert "dead layers        0 of 1" in text
    assert "20 dense, 10 under the mask" in text
    assert "scoring loss" not in text


def test_the_text_says_that_masking_does_not_speed_up() -> None:
    text = str(preflight(vgg_like(), dense(vgg_like()), IMAGE, density_requested=1.0))
    assert "a masked network computes its zeros" in text


def test_dead_layers_are_named() -> None:
    net = residual()
    masks = {**dense(net)}
    masks["blocks.1.shortcut.weight"] = torch.zeros_like(masks["blocks.1.shortcut.weight"])
    report = preflight(net, Masks(masks), IMAGE, density_requested=0.97)
    assert report.collapsed_layers == ["blocks.1.shortcut.weight"]
    assert "1 of 7: blocks.1.shortcut.weight" in str(report)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [([[1, 1], [1, 1]], [[0, 0]], "2.weight kept no weight"), ([[1, 1], [0, 0]], [[0, 1]], "do not connect")],
)
def test_a_network_without_any_path_is_an_error(first: list[list[int]], second: list[list[int]], reason: str) -> None:
    """An empty layer, or layers that keep weights which do not meet."""
    masks = Masks({"0.weight": torch.tensor(first) > 0, "2.weight": torch.tensor(second) > 0})
    with pytest.raises(
        PruningError, match=f"no path leads from the network's input to its output: .*{reason}"
    ) as caught:
        preflight(two_by_two(), masks, torch.zeros(1, 2), density_requested=0.5)
    assert "\n" not in str(caught.value)


def test_shortcuts_are_a_group_of_their_own_and_starve() -> None:
    """In ResNet-20 at density .1 the 1x1 shortcuts lose nearly all of their 2560 weights; the report shows it."""
    torch.manual_seed(0)
    net = resnet20()
    masks = prune(net, synflow, density=0.1, rounds=10, example_input=torch.zeros(1, 3, 16, 16))
    report = preflight(net, masks, torch.zeros(1, 3, 16, 16), density_requested=0.1)
    shortcuts = [masks["stage2.0.shortcut.conv.weight"], masks["stage3.0.shortcut.conv.weight"]]
    assert report.shortcut_density == sum(int(mask.sum()) for mask in shortcuts) / (512 + 2048)
    assert report.shortcut_density < 0.01
    assert f"shortcut density   {report.shortcut_density:.6g}" in str(report)


def test_torchvision_calls_its_shortcuts_downsample() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)
            self.downsample = nn.Sequential(nn.Conv2d(2, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.downsample(x)

    net = Block()
    masks = Masks({**dense(net), "downsample.0.weight": (torch.arange(4) == 3).view(2, 2, 1, 1)})
    assert preflight(net, masks, IMAGE.float(), density_requested=0.6).shortcut_density == 0.25


def test_attention_is_reported_as_far_as_it_can_be() -> None:
    """Its packed matrix is named among what is not pruned; paths through it are not defined."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].mean(1))

    net = Attention()
    report = preflight(net, random_masks(net), torch.zeros(1, 3, 4), density_requested=0.5)
    assert report.effective_density is None
    assert "effective density  not defined here" in str(report)
    assert "attention.in_proj_weight (MultiheadAttention parameter) 48" in str(report)


def test_excluded_layers_are_named() -> None:
    net = vgg_like()
    masks = Masks({name: mask for name, mask in dense(net).items() if name != "9.weight"})
    text = str(preflight(net, masks, IMAGE, density_requested=1.0))
    assert "9.weight (excluded) 15" in text
    assert "Linear parameter 3" in text


def test_a_report_is_plain_data() -> None:
    """It travels in checkpoints, as a dict of plain values, and comes back equal."""
    from dataclasses import asdict

    report = preflight(residual(), random_masks(residual()), samples(1, 2, 6, 6)[0], density_requested=0.5)
    assert Preflight(**asdict(report)) == report
