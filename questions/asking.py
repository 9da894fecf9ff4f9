"""What all questions share: digits, two small networks, a plain training loop, tables, and the command line.

scikit-learn's digits: 1437 pictures to train on, 360 by other writers to test on; one test picture is 0.28 points.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelab.data.readers.digits import read_digits
from prunelab.models import initialise, lenet_300_100
from prunelab.pruning import Criterion, Masks, prune
from prunelab.pruning.criteria import Magnitude, Random, Snip, SynFlow

EXAMPLE = torch.zeros(1, 1, 8, 8)
EPOCHS, BATCH_SIZE, LEARNING_RATE = 20, 128, 2e-3
SAMPLES_PER_CLASS = 10  # of scoring batches

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Pictures:
    """train (1437, 1, 8, 8) and test (360, 1, 8, 8) as float32 with int64 labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Answer:
    table: str
    figure: Figure | None = None


@cache
def digits(normalised: bool = True) -> Pictures:
    """Grey levels in 0..1, or with mean 0 and deviation 1 over all training pixels."""
    arrays = read_digits()
    train, test = arrays.train_images / 255, arrays.test_images / 255
    if normalised:
        mean, deviation = train.mean(), train.std()
        train, test = (train - mean) / deviation, (test - mean) / deviation
    return Pictures(train, arrays.train_labels, test, arrays.test_labels)


def scoring_batch() -> list[tuple[Tensor, Tensor]]:
    """One batch: the first pictures of each class."""
    pictures = digits()
    chosen = torch.cat([(pictures.train_labels == c).nonzero().flatten()[:SAMPLES_PER_CLASS] for c in range(10)])
    return [(pictures.train[chosen], pictures.train_labels[chosen])]


lenet = partial(lenet_300_100, in_channels=1, image_size=8)  # 50,200 weights in 3 layers


def thin_vgg() -> nn.Module:
    """Six 3x3 convolutions of 16, 16, 32, 32, 64, 64 channels with batch norm, one linear layer: 72,208 weights."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    fan_in = 1
    for index, channels in enumerate((16, 16, 32, 32, 64, 64), start=1):
        if index in (3, 5):
            layers[f"pool{index // 2}"] = nn.MaxPool2d(2)
        layers[f"conv{index}"] = nn.Conv2d(fan_in, channels, 3, padding=1, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(channels)
        layers[f"relu{index}"] = nn.ReLU()
        fan_in = channels
    layers.update(pool3=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=nn.Linear(fan_in, 10))
    return initialise(nn.Sequential(layers))


NETWORKS: dict[str, Make] = {"LeNet-300-100": lenet, "thin VGG": thin_vgg}

CRITERIA: dict[str, Criterion] = {
    "synflow": SynFlow(),
    "snip": Snip(),
    "magnitude": Magnitude(),
    "random": Random(),
}


def build(make: Make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def pruned(net: nn.Module, criterion: str | Criterion, density: float, seed: int = 0, **options: Any) -> Masks:
    """Masks at initialisation, scored with `scoring_batch()` if at all; `options` are those of `prune`."""
    return prune(
        net,
        CRITERIA[criterion] if isinstance(criterion, str) else criterion,
        density=density,
        example_input=EXAMPLE,
        generator=torch.Generator().manual_seed(seed),
        **{"batches": scoring_batch(), **options},
    )


def train(
    net: nn.Module,
    masks: Masks | None,
    seed: int,
    *,
    epochs: int = EPOCHS,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> float:
    """Train in place and return the test accuracy after the last epoch, in %.

    Adam, its learning rate falling to 0 along a cosine; loss = cross-entropy + penalty(net). Pruned weights are exactly
    0 after every step. The order of the pictures is a function of the seed alone.
    """
    pictures, generator = digits(), torch.Generator().manual_seed(seed)
    net = net.to(memory_format=torch.channels_last)  # a fifth less time
    parameters = dict(net.named_parameters())
    pruned = [(parameters[name], ~mask) for name, mask in (masks or {}).items()]
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, fused=True)
    num_batches = -(-len(pictures.train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * num_batches)
    if masks is not None:
        masks.apply_to(net)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures.train), generator=generator).split(BATCH_SIZE):
            loss = cross_entropy(net(pictures.train[chosen]), pictures.train_labels[chosen])
            if penalty is not None:
                loss = loss + penalty(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            for weight, zeros in pruned:
                weight.detach().masked_fill_(zeros, 0)
    return accuracy(net)


@cache
def trained(make: Make, seed: int, masks: Masks) -> float:
    """Accuracy of `make()` built and trained with `seed` under the masks, in %; what two questions ask is run once."""
    return train(build(make, seed), masks, seed)


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """Of the test pictures, in %."""
    net.eval()
    return 100 * (net(digits().test).argmax(1) == digits().test_labels).float().mean().item()


def spread(values: Sequence[float], decimals: int = 1) -> str:
    """Mean and standard deviation (of the sample) as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.{decimals}f} ± {deviation:.{decimals}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def at_least_one(text: str) -> int:
    """For argparse. Raises: ArgumentTypeError for what is no whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text!r}")
    return int(text)


def main(name: str, ask: Callable[[int], Answer], description: str | None) -> None:
    """The command line of one question."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least_one, default=3, help="how many, from 0 (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the table and the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    answer = ask(options.seeds)
    print(f"{answer.table}\n\n{options.seeds} seeds, {time.perf_counter() - started:.0f} s")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"question_{name}.md").write_text(answer.table + "\n")
        save_figure(answer, options.output / f"question_{name}.png")


def save_figure(answer: Answer, path: Path) -> None:
    if answer.figure is not None:
        answer.figure.savefig(path, dpi=90, metadata={"Software": None})
