"""Whole batches at once: random crop and flip, normalisation. Works on any device, with equal results."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunelab.data.seeds import derive_seed


def crop_and_flip(images: Tensor, padding: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad by `padding` black pixels, cut an H x W window at (top, left), then mirror where `flip` is true.

    images (B, C, H, W); top, left int64 (B,) in 0..2 * padding; flip bool (B,).
    Equals torchvision's `pad`, `crop`, `hflip` on each picture.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(len(images), device=images.device)
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, 2p + 1, 2p + 1, H, W)
    cropped = windows[rows, :, top, left]
    # choosing whole pictures among both versions is several times faster than torch.where on single pixels
    return torch.cat([cropped, cropped.flip(3)]).index_select(0, rows + len(images) * flip)


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

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) in 0..255 -> float32 of that shape, on the same device."""
        mean, std = (255 * values.to(images.device)[:, None, None] for values in (self.mean, self.std))
        return images.float().sub_(mean).div_(std)
