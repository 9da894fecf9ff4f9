from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from prunelab.pruning.blocks import Block, BlockPass, Uses


def weight_of(*shape: int, rows: list[int], columns: list[int]) -> Tensor:
    """Positive in these rows and columns, 0 elsewhere."""
    whole = torch.zeros(shape, dtype=torch.float64)
    for row in rows:
        whole[row, columns] = torch.rand(len(columns), *shape[2:], dtype=torch.float64) + 0.1
    return whole


@pytest.mark.parametrize(
    ("rows", "columns"), [([1, 3], [0, 2]), ([0, 1, 2, 3], [1]), ([2], [0, 1, 2]), ([0, 1, 2, 3], [0, 1, 2])]
)
@pytest.mark.parametrize("kernel", [(), (3,), (3, 2)], ids=len)
def test_a_block_holds_all_that_is_kept_and_is_put_back(
    rows: list[int], columns: list[int], kernel: tuple[int, ...]
) -> None:
    whole = weight_of(4, 3, *kernel, rows=rows, columns=columns)
    block = Block(whole.shape, whole).around(whole != 0)
    assert block.weight.shape == (len(rows), len(columns), *kernel)
    assert torch.equal(block.take(whole), block.weight)
    assert torch.equal(block.put(block.weight, torch.zeros_like(whole)), whole)
    # and again, within the block: places are those of the whole weight
    part = block.weight.clone()
    part[:-1] = 0
    inner = block.around(part != 0)
    assert inner.weight.shape[0] == 1
    wanted = torch.zeros_like(whole)
    wanted[rows[-1]] = whole[rows[-1]]
    assert torch.equal(inner.put(inner.weight, torch.zeros_like(whole)), wanted)


def test_a_layer_without_kept_weights_keeps_one_by_one() -> None:
    block = Block(torch.Size((4, 3)), torch.zeros(4, 3)).around(torch.zeros(4, 3, dtype=torch.bool))
    assert block.weight.shape == (1, 1)


OPERATIONS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (F.linear, (), (2, 5)),
    "linear, tokens": (F.linear, (), (2, 7, 5)),
    "conv1d": (F.conv1d, (3,), (2, 5, 8)),
    "conv2d": (F.conv2d, (3, 2), (2, 5, 8, 7)),
    "conv2d, one picture": (F.conv2d, (3, 3), (5, 8, 8)),
    "conv3d": (F.conv3d, (1, 2, 2), (1, 5, 4, 4, 4)),
}


@pytest.mark.parametrize("rows", [[0, 3], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_pass_through_a_block_gives_output_and_gradients_of_the_whole(name: str, rows: list[int]) -> None:
    operation, kernel, size = OPERATIONS[name]
    torch.manual_seed(0)
    whole = weight_of(4, 5, *kernel, rows=rows, columns=[1, 2, 4])
    block = Block(whole.shape, whole).around(whole != 0)
    leaves = [whole.clone().requires_grad_(), torch.rand(size, dtype=torch.float64, requires_grad=True)]
    shift = torch.ones(4, dtype=torch.float64)  # which the positive linear network has not
    wanted = operation(leaves[1], leaves[0])
    mode = BlockPass()
    mode.blocks = {id(leaves[0]): block}
    block.weight.requires_grad_()
    with mode:
        found = operation(leaves[1], leaves[0], shift)
    assert_close(found, wanted, rtol=1e-14, atol=0)
    factors = torch.rand_like(wanted)
    weight, entering = torch.autograd.grad((wanted * factors).sum(), leaves)
    part, other = torch.autograd.grad((found * factors).sum(), [block.weight, leaves[1]])
    assert_close(part, block.take(weight), rtol=1e-14, atol=0)
    assert_close(other, entering, rtol=1e-14, atol=0)


def test_uses_tell_layers_from_other_readers() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 4, 6, 6)
    weights = [torch.rand(6, 4, 3, 3), torch.rand(6, 1, 3, 3), torch.rand(6, 5, 3, 3), torch.rand(7, 5), torch.rand(7)]
    with Uses(weights) as uses:
        x = F.conv2d(x, weights[0], padding=1)
        x = F.conv2d(x, weights[1], groups=6)
        x = F.conv_transpose2d(x, weights[2]).mean((2, 3))
        (F.linear(x, weights[3]) * weights[4]).relu()
    assert uses.is_plain == [True, True, False, True, False]
    assert uses.is_grouped[:2] == [False, True]
    assert uses.positions == [2 * 36, 2 * 16, 0, 2, 0]
    # terms of a forward sum, of a backward one, of one over positions; the mean's 36, and two operations of one
    wanted = (36 + 54 + 72) + (9 + 54 + 32) + (45 + 54 + 2 * 16) + 36 + (5 + 7 + 2) + 2
    assert uses.rounding == 4 * wanted
    assert uses.is_bounded


def test_layers_of_weights_that_nobody_asks_about_are_counted_too() -> None:
    x, excluded, asked = torch.rand(2, 512, 3, 3), torch.rand(4, 512, 3, 3), torch.rand(3, 4)
    with Uses([asked]) as uses:
        F.linear(F.conv2d(x, excluded).flatten(1), asked)
    assert uses.rounding >= 4 * (4608 + 4)


PICTURE = torch.linspace(0.5, 1, 2 * 4 * 4).view(1, 2, 4, 4)
SIGNED = torch.tensor([[1.0, -0.5], [0.5, 1.0]])


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        lambda x: x - 0.5 * F.avg_pool2d(x, 3, 1, 1),
        lambda x: torch.sub(x, 0.1),
        lambda x: x.clone().sub_(0.1),
        lambda x: 2 - x,
        lambda x: torch.rsub(x, 2),
        lambda x: (-x).abs(),
        lambda x: torch.add(x, x, alpha=-0.5),
        lambda x: x + x * -0.5,
        lambda x: F.conv2d(x, SIGNED[:, :, None, None]),
        lambda x: F.linear(x.mean((2, 3)), SIGNED),
        lambda x: x.std(1),
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x)),
        lambda x: x @ x,
        lambda x: torch.matmul(x, x),
        lambda x: x[0].bmm(x[0]),
        lambda x: torch.einsum("nchw,ncwv->nchv", x, x),
        lambda x: torch.tensordot(x, torch.ones(2, 2), ([1], [0])),
    ],
)
def test_no_bound_where_something_subtracts_or_products_are_added_up_elsewhere(operation: Any) -> None:
    with Uses([]) as uses:
        operation(PICTURE)
    assert not uses.is_bounded


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1),
        lambda x: torch.cat([x, F.pad(x[:, :, ::2, ::2], (1, 1, 1, 1))], 1).transpose(-1, -2),
        lambda x: x + 0.5 * x.mean(-1, keepdim=True),
        lambda x: x[:, torch.arange(2) - 1],  # whole numbers may be negative
        lambda x: F.conv2d(x, torch.ones(2, 2, 1, 1), padding="same"),
    ],
)
def test_what_networks_are_made_of_has_a_bound(operation: Any) -> None:
    with Uses([]) as uses:
        operation(PICTURE)
    assert uses.is_bounded
    assert uses.rounding > 0


@pytest.mark.parametrize(
    "read", [lambda w: w.detach(), lambda w: torch.cat([w, w]), lambda w: w[0], lambda w: w.sum().item()]
)
def test_any_other_reader_is_seen(read: Any) -> None:
    weight = torch.rand(3, 3)
    with Uses([weight]) as uses:
        F.linear(torch.rand(1, 3 * weight.dim() - weight.shape[0]), weight)
        assert uses.is_plain == [True]
        read(weight)
    assert uses.is_plain == [False]
