"""Whole batches at once: random crop and flip, normalisation. Works on any device, with equal results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.data.seeds import derive_seed


def window_starts(shape: Sequence[int], padding: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Where `cut_windows` finds the windows at (top, left) of pictures that are padded, and then mirrored by `flip`.

    shape: of the pictures, (..., C, H, W); top, left int64 (B,) in 0..2 * padding; flip bool (B,). Returns int64 (B,).
    """
    *_, channels, height, width = shape
    row = width + 2 * padding
    size = channels * (height + 2 * padding) * row
    return flip * size + top * row + torch.where(flip, 2 * padding - left, left)


def cut_windows(images: Tensor, padding: int, starts: Tensor) -> Tensor:
    """Pad by `padding` black pixels, cut an H x W window, then mirror it, as `window_starts` was asked to.

    images (B, C, H, W), starts int64 (B,). Returns (B, C, H, W), not contiguous.
    Equals torchvision's `pad`, `crop`, `hflip` on each picture.
    """
    num, channels, height, width = images.shape
    # every padded picture and its mirror image, and a spare one, as windows reach beyond the end of their picture
    padded = images.new_zeros(2 * num + 1, channels, height + 2 * padding, width + 2 * padding)
    inner = padded[..., padding : padding + height, padding : padding + width]
    inner[:-1:2] = images
    inner[1::2] = images.flip(3)
    # a window is what follows its first pixel in memory: one long copy, several times faster than pixel by pixel
    size = padded[0].numel()
    first = torch.arange(0, 2 * num * size, 2 * size, device=images.device)
    windows = padded.flatten().unfold(0, size, 1).index_select(0, first + starts)
    return windows.view(num, *padded.shape[1:])[..., :height, :width]


@dataclass(frozen=True)
class RandomCropFlip:
    """Random crop after padding, and a mirror image in half of the cases.

    What happens to a picture depends on (seed, epoch, its index) alone: not on its batch, rank or device.
    """

    padding: int
    flip: bool
    seed: int

    def starts(self, samples: Tensor, shape: Sequence[int], epoch: int) -> Tensor:
        """Of the windows for `cut_windows`. samples: int64 (B,), indices in a data set of pictures of this `shape`."""
        bits = random_bits(samples, derive_seed(self.seed, "augment", epoch))
        positions = 2 * self.padding + 1
        top = (bits & 0xFFFFF) % positions
        left = (bits >> 20 & 0xFFFFF) % positions
        flip = (bits >> 40 & 1).bool() & self.flip
        return window_starts(shape, self.padding, top, left, flip)


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

    def __call__(self, images: Tensor, out: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W) in 0..255 -> float32 of that shape, contiguous; on the device of `mean` and `std`.

        out: what to write into.

        The operations of torchvision's `to_tensor` and `normalize` in their order, so the same bits. (Its v2 multiplies
        by 1 / 255, which differs in the last place.)
        """
        # a divisor that is no tensor of the device would be turned into a factor on a GPU: other bits
        levels = torch.full((), 255.0, device=images.device)
        mean, std = (values[:, None, None] for values in (self.mean, self.std))
        pixels = images.float() if out is None else out.copy_(images)
        return pixels.div_(levels).sub_(mean).div_(std)
