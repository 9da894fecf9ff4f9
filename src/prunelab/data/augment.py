"""Whole batches at once: random crop and flip, normalisation. Works on any device, with equal results."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.data.seeds import derive_seed


def crop_and_flip(images: Tensor, padding: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad by `padding` black pixels, cut an H x W window at (top, left), then mirror where `flip` is true.

    images (B, C, H, W); top, left int64 (B,) in 0..2 * padding; flip bool (B,). Returns (B, C, H, W), not contiguous.
    Equals torchvision's `pad`, `crop`, `hflip` on each picture.
    """
    num, channels, height, width = images.shape
    # every padded picture and its mirror image, and a spare one, as windows reach beyond the end of their picture
    padded = images.new_zeros(2 * num + 1, channels, height + 2 * padding, width + 2 * padding)
    inner = padded[..., padding : padding + height, padding : padding + width]
    inner[:num] = images
    inner[num : 2 * num] = images.flip(3)
    # a window is what follows its first pixel in memory: one long copy, several times faster than pixel by pixel
    size = padded[0].numel()
    picture = torch.arange(num, device=images.device) + num * flip
    start = picture * size + top * padded.shape[3] + torch.where(flip, 2 * padding - left, left)
    windows = padded.flatten().unfold(0, size, 1).index_select(0, start)
    return windows.view(num, *padded.shape[1:])[..., :height, :width]


@dataclass(frozen=True)
class RandomCropFlip:
    """Random crop after padding, and a mirror image in half of the cases.

    What happens to a picture depends on (seed, epoch, its index) alone: not on its batch, rank or device.
    """

    padding: int
    flip: bool
    seed: int

    def __call__(self, images: Tensor, samples: Tensor, epoch: int) -> Tensor:
        """images (B, C, H, W), samples int64 (B,): their indices in the data set; on one device."""
        bits = random_bits(samples, derive_seed(self.seed, "augment", epoch))
        positions = 2 * self.padding + 1
        top = (bits & 0xFFFFF) % positions
        left = (bits >> 20 & 0xFFFFF) % positions
        flip = (bits >> 40 & 1).bool() & self.flip
        return crop_and_flip(images, self.padding, top, left, flip)


def random_bits(counters: Tensor, key: int) -> Tensor:
    """64 random bits for each counter: output number `counter` of the generator splitmix64 started at `key`.

    Counters and bits are int64. Reference: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
    generators", with Stafford's mixing constants (variant 13).
    """
    bits = (counters + 1) * _signed(0x9E3779B97F4A7C15) + _signed(key)
    bits = (bits ^ _shift_right(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    # torch's >> on int64 copies the sign bit in from the left: mask it away
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


@dataclass(frozen=True, eq=False)
class Normalisation:
    """(x / 255 - mean) / std per channel; `mean` and `std` are float32 (C,), of pixels in 0..1."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor, indices: Tensor) -> Normalisation:
        """Mean and population standard deviation of every channel over `images[indices]`, uint8 (N, C, H, W).

        Counts of the 256 grey levels are summed, so that the result is exact and needs little memory.
        A channel without any variation keeps its scale (std 1).
        """
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
        for chunk in indices.split(4096):
            for channel, pixels in enumerate(images[chunk].transpose(0, 1)):
                counts[channel] += torch.bincount(pixels.reshape(-1), minlength=256)
        shares = counts / counts.sum(1, keepdim=True)
        mean = shares @ levels
        std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
        return cls(mean.float(), torch.where(std > 0, std, 1.0).float())

    def to(self, device: torch.device) -> Normalisation:
        """For pictures on `device`: moved once, as each move of so little makes the host wait for a GPU."""
        return Normalisation(self.mean.to(device), self.std.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) in 0..255 -> float32 of that shape, contiguous; on the device of `mean` and `std`.

        The operations of torchvision's `to_tensor` and `normalize` in their order, so the same bits. (Its v2 multiplies
        by 1 / 255, which differs in the last place.)
        """
        # a divisor that is no tensor of the device would be turned into a factor on a GPU: other bits
        levels = torch.full((), 255.0, device=images.device)
        mean, std = (values[:, None, None] for values in (self.mean, self.std))
        return images.float().div_(levels).sub_(mean).div_(std)
