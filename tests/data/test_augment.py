from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as tv

from prunelab.data.augment import Normalisation, RandomCropFlip, crop_and_flip, random_bits

IMAGES = torch.randint(0, 256, (64, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SAMPLES = torch.arange(64)


def test_crop_flip_normalise_equals_torchvision() -> None:
    generator = torch.Generator().manual_seed(1)
    top, left = torch.randint(0, 9, (2, 64), generator=generator)
    flip = torch.rand(64, generator=generator) < 0.5
    mean, std = torch.tensor([0.49, 0.48, 0.44]), torch.tensor([0.25, 0.24, 0.26])
    ours = Normalisation(mean, std)(crop_and_flip(IMAGES, 4, top, left, flip))
    for index in range(64):
        picture = tv.crop(tv.pad(IMAGES[index], [4]), int(top[index]), int(left[index]), 9, 12)
        picture = tv.hflip(picture) if flip[index] else picture
        theirs = tv.normalize(picture.float() / 255, mean.tolist(), std.tolist())
        torch.testing.assert_close(ours[index], theirs, atol=1e-6, rtol=0)


def splitmix64(key: int, count: int) -> list[int]:
    """The generator as published, with Python's unbounded integers."""
    word = (1 << 64) - 1
    outputs = []
    for _ in range(count):
        key = (key + 0x9E3779B97F4A7C15) & word
        bits = key
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & word
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & word
        outputs.append(bits ^ (bits >> 31))
    return outputs


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1])
def test_random_bits_are_those_of_splitmix64(key: int) -> None:
    ours = random_bits(torch.arange(1000), key)
    assert [bits % 2**64 for bits in ours.tolist()] == splitmix64(key, 1000)


def test_splitmix64_first_output_for_seed_0_is_the_published_one() -> None:
    assert random_bits(torch.tensor([0]), 0).item() % 2**64 == 0xE220A8397B1DCDAF


def test_draws_depend_on_the_sample_not_on_its_batch() -> None:
    augment = RandomCropFlip(padding=4, flip=True, seed=5)
    whole = augment(IMAGES, SAMPLES, epoch=2)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    for part in shuffled.split(10):
        assert torch.equal(augment(IMAGES[part], part, epoch=2), whole[part])


def test_draws_change_with_seed_and_epoch() -> None:
    first = RandomCropFlip(4, True, seed=0)(IMAGES, SAMPLES, epoch=0)
    assert not torch.equal(first, RandomCropFlip(4, True, seed=0)(IMAGES, SAMPLES, epoch=1))
    assert not torch.equal(first, RandomCropFlip(4, True, seed=1)(IMAGES, SAMPLES, epoch=0))


def test_all_offsets_and_both_sides_come_up_equally_often() -> None:
    # one bright pixel in the middle of 5 x 5 shows where the crop was taken and whether it was mirrored
    num = 20_000
    pictures = torch.zeros(num, 1, 5, 5, dtype=torch.uint8)
    pictures[:, 0, 2, 2] = 1
    pictures[:, 0, 2, 3] = 2
    out = RandomCropFlip(padding=1, flip=True, seed=0)(pictures, torch.arange(num), epoch=0)
    one, two = ((out == value).flatten(1).int().argmax(1) for value in (1, 2))
    mirrored = two < one
    row, column = one // 5, torch.where(mirrored, 4 - one % 5, one % 5)
    positions = torch.bincount(row * 5 + column, minlength=25).reshape(5, 5)[1:4, 1:4]
    assert positions.sum() == num
    assert (positions / num - 1 / 9).abs().max() < 0.01
    assert abs(mirrored.float().mean() - 0.5) < 0.02


def test_crop_alone_never_mirrors() -> None:
    pictures = torch.arange(5, dtype=torch.uint8).expand(200, 1, 5, 5).contiguous()
    out = RandomCropFlip(padding=0, flip=False, seed=0)(pictures, torch.arange(200), epoch=0)
    assert torch.equal(out, pictures)


def test_statistics_are_those_of_the_chosen_pictures() -> None:
    chosen = torch.arange(0, 64, 3)
    normalise = Normalisation.of(IMAGES, chosen)
    pixels = IMAGES[chosen].double() / 255
    torch.testing.assert_close(normalise.mean.double(), pixels.mean((0, 2, 3)), atol=1e-7, rtol=0)
    torch.testing.assert_close(normalise.std.double(), pixels.std((0, 2, 3), correction=0), atol=1e-7, rtol=0)
    out = normalise(IMAGES[chosen])
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_a_constant_channel_keeps_its_scale() -> None:
    normalise = Normalisation.of(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8), torch.arange(4))
    assert normalise.std.item() == 1
    torch.testing.assert_close(normalise(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)).item(), 0.0)
