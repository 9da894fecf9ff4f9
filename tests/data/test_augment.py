from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as tv

from prunelab.data.augment import Normalisation, RandomCropFlip, cut_windows, random_bits, window_starts

IMAGES = torch.randint(0, 256, (64, 3, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SAMPLES = torch.arange(64)


def augmented(augment: RandomCropFlip, images: torch.Tensor, samples: torch.Tensor, epoch: int) -> torch.Tensor:
    return cut_windows(images, augment.padding, augment.starts(samples, images.shape, epoch))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 64, 64), (1, 64, 64), (3, 9, 12)])
@pytest.mark.parametrize("padding", [0, 4, 8])
def test_crop_flip_normalise_equals_torchvision_bit_for_bit(shape: tuple[int, int, int], padding: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, *shape), dtype=torch.uint8, generator=generator)
    top, left = torch.randint(0, 2 * padding + 1, (2, 40), generator=generator)
    flip = torch.rand(40, generator=generator) < 0.5
    top[:4], left[:4] = torch.tensor([[0, 0, 2 * padding, 2 * padding], [0, 2 * padding, 0, 2 * padding]])  # corners
    flip[:4], flip[-1] = torch.tensor([True, False, True, False]), True
    mean, std = torch.tensor([0.49, 0.48, 0.44])[: shape[0]], torch.tensor([0.25, 0.24, 0.26])[: shape[0]]
    cropped = cut_windows(images, padding, window_starts(images.shape, padding, top, left, flip))
    ours = Normalisation(mean, std)(cropped)
    assert cropped.dtype == torch.uint8
    assert ours.is_contiguous()
    assert torch.equal(Normalisation(mean, std)(cropped, out=torch.empty(cropped.shape)), ours)
    for index, image in enumerate(images):
        # on PIL images, as in the pipeline that everyone writes
        picture = tv.crop(tv.pad(tv.to_pil_image(image), [padding]), int(top[index]), int(left[index]), *shape[1:])
        picture = tv.hflip(picture) if flip[index] else picture
        assert torch.equal(cropped[index], tv.pil_to_tensor(picture))
        assert torch.equal(ours[index], tv.normalize(tv.to_tensor(picture), mean.tolist(), std.tolist()))


def test_every_grey_level_is_normalised_as_by_torchvision() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for mean, std in ((0.1307, 0.3081), (0.485, 0.229), (0.0, 1 / 255), (0.5, 0.5)):
        theirs = tv.normalize(levels.float() / 255, [mean], [std])
        assert torch.equal(Normalisation(torch.tensor([mean]), torch.tensor([std]))(levels), theirs)


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
    whole = augmented(augment, IMAGES, SAMPLES, epoch=2)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    for part in shuffled.split(10):
        assert torch.equal(augmented(augment, IMAGES[part], part, epoch=2), whole[part])


def test_draws_change_with_seed_and_epoch() -> None:
    first = augmented(RandomCropFlip(4, True, seed=0), IMAGES, SAMPLES, epoch=0)
    assert not torch.equal(first, augmented(RandomCropFlip(4, True, seed=0), IMAGES, SAMPLES, epoch=1))
    assert not torch.equal(first, augmented(RandomCropFlip(4, True, seed=1), IMAGES, SAMPLES, epoch=0))


def test_all_offsets_and_both_sides_come_up_equally_often() -> None:
    # one bright pixel in the middle of 5 x 5 shows where the crop was taken and whether it was mirrored
    num = 20_000
    pictures = torch.zeros(num, 1, 5, 5, dtype=torch.uint8)
    pictures[:, 0, 2, 2] = 1
    pictures[:, 0, 2, 3] = 2
    out = augmented(RandomCropFlip(padding=1, flip=True, seed=0), pictures, torch.arange(num), epoch=0)
    one, two = ((out == value).flatten(1).int().argmax(1) for value in (1, 2))
    mirrored = two < one
    row, column = one // 5, torch.where(mirrored, 4 - one % 5, one % 5)
    positions = torch.bincount(row * 5 + column, minlength=25).reshape(5, 5)[1:4, 1:4]
    assert positions.sum() == num
    assert (positions / num - 1 / 9).abs().max() < 0.01
    assert abs(mirrored.float().mean() - 0.5) < 0.02


def test_crop_alone_never_mirrors() -> None:
    pictures = torch.arange(5, dtype=torch.uint8).expand(200, 1, 5, 5).contiguous()
    out = augmented(RandomCropFlip(padding=0, flip=False, seed=0), pictures, torch.arange(200), epoch=0)
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
