from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunelab.data.augment import Normalisation, RandomCropFlip
from prunelab.data.errors import DataError
from prunelab.data.loader import TensorLoader

LEAVE_AS_IS = Normalisation(torch.zeros(1), torch.full((1,), 1 / 255))


def loader(num: int, batch_size: int, **options: Any) -> TensorLoader:
    """Sample i is one pixel of grey level i with label i."""
    numbers = torch.arange(num)
    images = numbers.to(torch.uint8).reshape(num, 1, 1, 1)
    return TensorLoader(images, numbers, numbers, LEAVE_AS_IS, batch_size=batch_size, **options)


def labels(batches: TensorLoader) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


def epoch(num: int, batch_size: int, number: int = 0, **options: Any) -> list[list[int]]:
    batches = loader(num, batch_size, **options)
    batches.sampler.set_epoch(number)
    return labels(batches)


def test_yields_float_images_with_their_labels() -> None:
    for x, y in loader(10, 4, seed=0):
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        torch.testing.assert_close(x.flatten(), y.float())


def test_without_seed_keeps_the_order_and_the_last_partial_batch() -> None:
    assert epoch(10, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first = epoch(50, 8, seed=1, number=3)
    assert epoch(50, 8, seed=1, number=3) == first
    assert epoch(50, 8, seed=1, number=4) != first
    assert epoch(50, 8, seed=2, number=3) != first


def test_order_does_not_touch_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    epoch(50, 8, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_takes_the_given_indices_only() -> None:
    images = torch.zeros(20, 1, 1, 1, dtype=torch.uint8)
    indices = torch.tensor([3, 5, 11])
    batches = TensorLoader(images, torch.arange(20), indices, LEAVE_AS_IS, batch_size=2, seed=0)
    assert sorted(chain(*labels(batches))) == [3, 5, 11]


@pytest.mark.parametrize("num", [6, 23, 24, 25, 27, 48, 101])
@pytest.mark.parametrize("batch_size", [6, 12, 120])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", [None, 0])
def test_shards_are_disjoint_and_complete(num: int, batch_size: int, world_size: int, seed: int | None) -> None:
    shards = [loader(num, batch_size, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [labels(shard) for shard in shards]
    assert sorted(chain(*chain(*batches))) == list(range(num))
    for shard, its_batches in zip(shards, batches, strict=True):
        assert len(shard) == len(its_batches) == len(batches[0])  # DDP waits for ever otherwise
        assert all(its_batches)  # an empty batch has no mean loss
    whole = epoch(num, batch_size, seed=seed)
    for step, together in enumerate(zip(*batches, strict=True)):
        if step < len(shards[0]) - 1:  # the batch that all ranks see together is that of one rank
            assert sorted(chain(*together)) == sorted(whole[step])


def test_a_remainder_smaller_than_the_ranks_joins_the_batch_before() -> None:
    assert [len(batch) for batch in epoch(9, 4, rank=0, world_size=2)] == [2, 3]
    assert [len(batch) for batch in epoch(9, 4, rank=1, world_size=2)] == [2, 2]


@pytest.mark.parametrize("num", [6, 23, 24, 25, 27, 48, 101])
@pytest.mark.parametrize("batch_size", [6, 12, 120])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_empty_shards_keep_the_batches_of_one_rank(num: int, batch_size: int, world_size: int) -> None:
    options: dict[str, Any] = {"seed": 0, "world_size": world_size, "allow_empty": True}
    shards = [labels(loader(num, batch_size, rank=rank, **options)) for rank in range(world_size)]
    together = [sorted(chain(*batch)) for batch in zip(*shards, strict=True)]
    assert together == [sorted(batch) for batch in epoch(num, batch_size, seed=0)]
    images, _ = list(loader(9, 4, rank=1, world_size=2, allow_empty=True))[-1]
    assert images.shape == (0, 1, 1, 1)


@pytest.mark.parametrize("num", [6, 23, 24, 97, 101])
@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("allow_empty", [False, True])
def test_loss_factors_make_the_mean_over_ranks_one_over_samples(num: int, world_size: int, allow_empty: bool) -> None:
    shards = [
        loader(num, 12, seed=0, rank=rank, world_size=world_size, allow_empty=allow_empty) for rank in range(world_size)
    ]
    for index, batches in enumerate(zip(*map(labels, shards), strict=True)):
        factors = [shard.loss_factor(index) for shard in shards]
        means = [sum(own) / max(1, len(own)) for own in batches]
        mean = sum(factor * own for factor, own in zip(factors, means, strict=True)) / world_size
        everything = list(chain(*batches))
        assert mean == pytest.approx(sum(everything) / len(everything), rel=1e-12)
        if index < len(shards[0]) - 1:
            assert factors == [1.0] * world_size


def test_batch_size_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(DataError, match=r"batch_size 10 .* use a multiple of 4"):
        loader(100, 10, world_size=4)


def test_fewer_pictures_than_ranks_are_refused() -> None:
    with pytest.raises(DataError, match="3 pictures cannot be shared by 4 devices"):
        loader(3, 4, world_size=4)


@pytest.mark.parametrize("num_done", [0, 1, 3, 6, 7])
def test_resumes_inside_an_epoch(num_done: int) -> None:
    interrupted = loader(50, 8, seed=0)
    interrupted.set_epoch(2)
    batches = iter(interrupted)
    before = [next(batches)[1].tolist() for _ in range(num_done)]
    resumed = loader(50, 8, seed=0)
    resumed.load_state_dict(interrupted.state_dict())
    assert resumed.state_dict() == interrupted.state_dict()  # saved again before the first batch
    lightning_iterates_first = iter(resumed)
    resumed.set_epoch(2)
    after = [y.tolist() for _, y in lightning_iterates_first]
    assert before + after == epoch(50, 8, seed=0, number=2)
    assert labels(resumed) == before + after  # the next pass is a whole one


def test_state_of_a_finished_epoch_starts_the_next_one_from_its_first_batch() -> None:
    finished = loader(50, 8, seed=0)
    labels(finished)
    resumed = loader(50, 8, seed=0)
    resumed.load_state_dict(finished.state_dict())
    resumed.set_epoch(1)
    assert resumed.state_dict() == {"epoch": 1, "num_batches_done": 0}
    assert labels(resumed) == epoch(50, 8, seed=0, number=1)


def test_augmentation_does_not_depend_on_ranks_or_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8, generator=generator)
    numbers = torch.arange(40)

    def pictures(batch_size: int, rank: int = 0, world_size: int = 1) -> dict[int, torch.Tensor]:
        batches = TensorLoader(
            images,
            numbers,
            numbers,
            LEAVE_AS_IS,
            batch_size=batch_size,
            seed=3,
            augment=RandomCropFlip(2, True, seed=3),
            rank=rank,
            world_size=world_size,
        )
        batches.set_epoch(1)
        return {int(label): x for xs, ys in batches for x, label in zip(xs, ys, strict=True)}

    alone = pictures(8)
    shared = pictures(16, 0, 2) | pictures(16, 1, 2)
    assert alone.keys() == shared.keys() == set(range(40))
    assert all(torch.equal(alone[label], shared[label]) for label in alone)


class Moves(TorchDispatchMode):
    """Counts the tensors that go from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            self.num += source.device != out.device
        return out


@pytest.mark.parametrize("seed", [None, 0])
def test_on_a_device_only_the_order_moves_once_an_epoch(seed: int | None) -> None:
    # "meta" stands in for a GPU: as it holds no values, whatever makes the host wait for one raises there
    # (.item(), .cpu(), boolean indexing, nonzero)
    images, numbers = torch.zeros(40, 3, 6, 6, dtype=torch.uint8, device="meta"), torch.arange(40)
    batches = TensorLoader(
        images,
        numbers.to("meta"),
        numbers,
        LEAVE_AS_IS,
        batch_size=8,
        seed=seed,
        augment=RandomCropFlip(2, True, seed=3),
    )
    with Moves() as moves:
        for epoch in range(2):
            batches.set_epoch(epoch)
            shapes = [(tuple(x.shape), len(y), x.device.type, y.device.type) for x, y in batches]
            assert shapes == [((8, 3, 6, 6), 8, "meta", "meta")] * 5
    assert moves.num == 2


@pytest.mark.parametrize("augment", [None, RandomCropFlip(2, True, seed=3)])
def test_a_batch_made_in_blocks_is_the_same(augment: RandomCropFlip | None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 3, 6, 6), dtype=torch.uint8, generator=generator)
    numbers = torch.arange(23)

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        normalise = Normalisation(torch.full((3,), 0.4), torch.full((3,), 0.3))
        return list(TensorLoader(images, numbers, numbers, normalise, batch_size=10, seed=0, augment=augment))

    whole = batches()
    monkeypatch.setattr("prunelab.data.loader.BLOCK_PIXELS", 4 * 3 * 6 * 6)
    for (x, y), (block_x, block_y) in zip(whole, batches(), strict=True):
        assert torch.equal(x, block_x)
        assert torch.equal(y, block_y)
