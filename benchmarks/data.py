"""Pictures per second of prunelab's loader beside torchvision's pipelines, in turns; its share of a training step; and
the first and the second reading of a folder of JPEGs.

    OMP_NUM_THREADS=2 python benchmarks/data.py [--quick] [--jpegs FOLDER]

All pipelines pad by 4, crop, flip and normalise random uint8 pictures in batches of 128, shuffled. torchvision's are
written as its documentation does: a Dataset that transforms one picture at a time, read by a DataLoader with 2 workers
that hold the pictures in memory, as PIL images made from arrays (as its CIFAR10 does) or as tensors (transforms.v2).
Starting the workers is not counted, nor are the batches that they have ready before the clock starts. A ratio is that
of two pipelines in the same turn.
The share of a step is the loader's time over that of loader and step together, ResNet-20, on a GPU if there is one: the
pictures are there then.
JPEGs: `--jpegs` is an image folder, which stays as it is; by default 20,000 pictures of smooth noise. Decoding with 1
and 2 processes, and the cached second reading, take turns.
Writes data.json and data.md into `--output`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from measuring import RESULTS, finish, machine
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from prunelab.data.augment import Normalisation, RandomCropFlip
from prunelab.data.loader import TensorLoader
from prunelab.data.readers import picture_files
from prunelab.data.readers.image_folder import read_image_folder
from prunelab.memory import keep_freed_memory
from prunelab.models import resnet20

BATCH, PADDING, WORKERS = 128, 4, 2
READY = 2 * WORKERS + 2  # batches that workers may have made before the clock starts
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SIZES = {32: 50_000, 64: 25_000}  # pixels: pictures; more of 64 pixels would only take more memory


class OneByOne(Dataset[tuple[Tensor, int]]):
    """One picture at a time, through torchvision's transforms. pil: as a PIL image, else as a tensor."""

    def __init__(self, images: Tensor, labels: Tensor, pil: bool) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy() if pil else images
        self.labels, self.pil = labels.tolist(), pil
        if pil:
            steps = [transforms.RandomCrop(images.shape[-1], padding=PADDING), transforms.RandomHorizontalFlip()]
            self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        else:
            steps = [v2.RandomCrop(images.shape[-1], padding=PADDING), v2.RandomHorizontalFlip()]
            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
            self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.images[index]
        return self.transform(Image.fromarray(picture) if self.pil else picture), self.labels[index]


def ours(images: Tensor, labels: Tensor, device: torch.device | None = None) -> TensorLoader:
    normalise, augment = Normalisation(torch.tensor(MEAN), torch.tensor(STD)), RandomCropFlip(PADDING, True, seed=0)
    indices = torch.arange(len(labels))
    return TensorLoader(images, labels, indices, normalise, batch_size=BATCH, seed=0, augment=augment, device=device)


def pictures(side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SIZES[side], 3, side, side), dtype=torch.uint8, generator=generator)
    return images, torch.arange(len(images)) % 10


def per_second(loader: Iterable[Any], num_batches: int) -> float:
    """Pictures per second over `num_batches` batches in the middle of an epoch."""
    batches = iter(loader)
    for _ in islice(batches, READY):
        pass
    started = time.perf_counter()
    num = sum(len(labels) for _, labels in islice(batches, num_batches))
    return num / (time.perf_counter() - started)


def pipelines(side: int, options: argparse.Namespace) -> dict[str, Any]:
    images, labels = pictures(side)
    rivals = {
        "torchvision, PIL": OneByOne(images, labels, pil=True),
        "torchvision, v2 on tensors": OneByOne(images, labels, pil=False),
    }
    loaders = {
        name: DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=WORKERS)
        for name, dataset in rivals.items()
    }
    loader = ours(images, labels)
    # each for about half a second
    lengths = {"torchvision, PIL": 40 * 32 // side, "torchvision, v2 on tensors": 40 * 32 // side}
    own, found = [], {name: [] for name in loaders}
    for _ in range(options.turns):
        own.append(per_second(loader, 160))
        for name, rival in loaders.items():
            found[name].append(per_second(rival, lengths[name]))
    rows = [{"name": "prunelab", "per_second": statistics.median(own), **spread([1.0])}]
    for name, values in found.items():
        ratios = [mine / its for mine, its in zip(own, values, strict=True)]
        rows.append({"name": name, "per_second": statistics.median(values), **spread(ratios)})
    return {"title": f"{side} x {side} pixels", "rows": rows}


def share_of_step(options: argparse.Namespace) -> dict[str, Any]:
    """Shares of the loader in turns of `num` batches: all made first, then all trained on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = (tensor.to(device) for tensor in pictures(32))
    torch.manual_seed(0)
    net = resnet20().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = ours(images, labels, device)
    batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(loader))  # epoch after epoch
    num = 50 if device.type == "cuda" else 3

    def train(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(net(x.to(memory_format=torch.channels_last)), y).backward()
        optimizer.step()

    def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
        finish(device)
        started = time.perf_counter()
        result = work()
        finish(device)
        return (time.perf_counter() - started) / num, result

    train(*next(batches))
    shares, steps = [], []
    for _ in range(options.turns):
        loading, made = seconds(lambda: list(islice(batches, num)))
        training, _ = seconds(lambda made=made: [train(*batch) for batch in made])
        shares.append(loading / (loading + training))
        steps.append(training)
    return {"device": device.type, "step_ms": 1e3 * statistics.median(steps), **spread(shares)}


def write_jpegs(root: Path, num: int) -> None:
    """An image folder of smooth noise, 32 pixels, 10 classes, a sixth of it test pictures."""
    coarse = torch.randint(0, 256, (num, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    arrays = interpolate(coarse, size=32, mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for index, array in enumerate(np.ascontiguousarray(arrays)):
        folder = root / ("test" if index // 10 % 6 == 0 else "train") / f"class_{index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{index}.jpg", quality=90)


def decoding(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of reading an image folder: decoded by 1 and by 2 processes, and from the cache."""
    cases: dict[str, list[float]] = {"decoded, 1 process": [], "decoded, 2 processes": [], "second start": []}
    num_cores = picture_files.num_cores
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "jpegs"  # a link, so that the cache beside it is in the temporary folder
        if options.jpegs:
            root.symlink_to(options.jpegs.absolute())
        else:
            write_jpegs(root, 2000 if options.quick else 20_000)
        cache = Path(folder) / "jpegs.decoded.pt"
        for _ in range(min(options.turns, 3)):
            for case, num in zip(cases, (1, 2, 2), strict=True):
                if case != "second start":
                    cache.unlink(missing_ok=True)
                picture_files.num_cores = lambda num=num: num
                started = time.perf_counter()
                arrays = read_image_folder(root)
                cases[case].append(time.perf_counter() - started)
    picture_files.num_cores = num_cores
    first = cases["decoded, 1 process"]
    rows = [
        {"name": case, "seconds": statistics.median(own), **spread([a / b for a, b in zip(first, own, strict=True)])}
        for case, own in cases.items()
    ]
    return {"pictures": len(arrays.train_labels) + len(arrays.test_labels), "rows": rows}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def text(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["# Data: pictures per second, share of a step, decoding", "", results["machine"]]
    lines.append(f"torchvision {torchvision.__version__}; {results['turns']} turns")
    for size in results["sizes"]:
        lines += [
            "",
            f"**Crop, flip, normalise, {size['title']}**, batch {BATCH}, torchvision with {WORKERS} workers",
            "",
        ]
        lines += ["| pipeline | pictures/s | prunelab is faster: median (min - max) |", "|---|---|---|"]
        for row in size["rows"]:
            lines.append(f"| {row['name']} | {row['per_second']:,.0f} | x {ratio(row, '.1f')} |")
    share = results["share"]
    lines += ["", f"**Share of the loader in a ResNet-20 step**, {share['device']}, step {share['step_ms']:.1f} ms: "]
    lines[-1] += ratio({key: 100 * share[key] for key in ("median", "min", "max")}, ".2f") + " %"
    lines += ["", f"**A folder of {results['decoding']['pictures']:,} JPEGs**", ""]
    lines += ["| reading | seconds | faster: median (min - max) |", "|---|---|---|"]
    for row in results["decoding"]["rows"]:
        lines.append(f"| {row['name']} | {row['seconds']:.2f} | x {ratio(row, '.2f')} |")
    return "\n".join(lines) + "\n"


def ratio(row: dict[str, float], form: str) -> str:
    return f"{row['median']:{form}} ({row['min']:{form}} - {row['max']:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns, 2,000 JPEGs, nothing written")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--jpegs", type=Path, help="image folder to decode; default: 20,000 pictures made for it")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.turns = min(options.turns, 3)
    keep_freed_memory()  # as train.py does
    where = machine("cuda" if torch.cuda.is_available() else "cpu")
    print(where, flush=True)
    results = {"machine": where, "turns": options.turns, "sizes": [pipelines(side, options) for side in SIZES]}
    results |= {"share": share_of_step(options), "decoding": decoding(options)}
    print(text(results))
    if not options.quick:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "data.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.output / "data.md").write_text(text(results))


if __name__ == "__main__":
    main()
