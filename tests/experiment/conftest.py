"""Whole runs on random pictures: 96 to train on, 24 to validate, 33 to test; 6 steps an epoch, a second in all.

And commands of train.py in processes of their own, which can be killed.
"""

from __future__ import annotations

import os
import pkgutil
import select
import signal
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from tensorboard.summary.writer import event_file_writer

from prunelab.data import ImageArrays, ImageDataModule
from prunelab.experiment.run import run
from prunelab.experiment.run_dir import LevelDir, RunDir
from prunelab.models import mlp
from prunelab.pruning.supermask import LearnedSupermask
from prunelab.training import Classifier, PruningAtInit

from ..forks import Forks, forks

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "max_time": None,
        "callbacks": None,
        "logger": None,
    },
    "model": {
        "net": {
            "class_path": "prunelab.models.mlp",
            "init_args": {"num_classes": 3, "in_channels": 1, "image_size": 6, "depth": 2, "width": 8},
        },
        "optimizer": {
            "class_path": "torch.optim.SGD",
            "init_args": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
        },
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.MultiStepLR",
            "init_args": {"milestones": [2], "gamma": 0.1},
        },
        "lr_interval": "epoch",
    },
    "data": {"class_path": "random_pictures", "init_args": {"batch_size": 16, "val_size": 24}},
    "pruning": {
        "criterion": {"class_path": "prunelab.pruning.criteria.Snip", "init_args": {"rounds": 1}},
        "density": 0.1,
        "sparsity": None,
        "compression_ratio": None,
        "on_collapse": "warn",
    },
}
NUM_PRUNABLE = 36 * 8 + 8 * 3


def random_pictures(batch_size: int = 16, val_size: int = 24) -> ImageDataModule:
    def read() -> ImageArrays:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(153) % 3
        images = torch.randint(200, (153, 1, 6, 6), generator=generator) + 18 * labels[:, None, None, None]
        pictures = images.to(torch.uint8)
        return ImageArrays(pictures[:120], labels[:120], pictures[120:], labels[120:], ("a", "b", "c"))

    return ImageDataModule(read, batch_size, val_size, augment="crop_flip", padding=1)


def noisy() -> torch.nn.Module:
    """A network with everything that a rewound training has to bring back: batch norm's statistics and dropout."""
    conv, norm = torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
    head = (torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(144, 3))
    return torch.nn.Sequential(conv, norm, torch.nn.ReLU(), *head)


NOISY = {"class_path": "noisy", "init_args": {}}


def supermask() -> torch.nn.Module:
    return LearnedSupermask(mlp(num_classes=3, in_channels=1, image_size=6, depth=2, width=8))


OWN: dict[str, Callable[..., torch.nn.Module]] = {"noisy": noisy, "supermask": supermask}


def built(spec: dict[str, Any] | None) -> Any:
    """A callable from {class_path, init_args}, None from None."""
    if spec is None:
        return None
    target = OWN.get(spec["class_path"]) or pkgutil.resolve_name(spec["class_path"])
    return partial(target, **spec["init_args"])


class Experiment:
    """experiment(**{"trainer.max_epochs": 5}) runs CONFIG with those values changed; returns the level's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.num_built = 0
        self.make_data: Callable[[], Any] | None = None  # instead of random_pictures
        self.callbacks: list[Callback] = []  # beside those of the config, and no part of it

    def config(self, **changes: Any) -> dict[str, Any]:
        config = deepcopy(CONFIG)
        for path, value in changes.items():
            *groups, key = path.split(".")
            section = config
            for group in groups:
                section = section.setdefault(group, {})
            section[key] = deepcopy(value)
        return config

    def level(self, index: int = 0, **changes: Any) -> LevelDir:
        return RunDir.of(str(self.directory), "tiny", self.config(**changes)).level(index)

    def levels(self, **changes: Any) -> list[LevelDir]:
        """Run it, and return all of its levels."""
        self(**changes)
        return RunDir.of(str(self.directory), "tiny", self.config(**changes)).levels()

    def parts(self, config: dict[str, Any]) -> Any:
        """Fresh arguments for the Trainer, module, data and pruning callback."""
        self.num_built += 1
        spec = deepcopy(config)
        model, pruning = spec["model"], spec["pruning"]
        trainer = spec["trainer"] | {"callbacks": [*self.callbacks, *(spec["trainer"]["callbacks"] or [])]}
        optimizer, schedule, interval = (
            built(model["optimizer"]),
            built(model["lr_scheduler"]),
            model["lr_interval"],
        )
        module = Classifier(built(model["net"])(), optimizer, schedule, interval)
        pruning["criterion"] = pruning["criterion"] and built(pruning["criterion"])()
        data = self.make_data() if self.make_data else random_pictures(**spec["data"]["init_args"])
        return trainer, module, data, PruningAtInit(**pruning)

    def __call__(self, ckpt_path: str | None = None, fresh: bool = False, **changes: Any) -> LevelDir:
        config = self.config(**changes)
        assert run("tiny", config, partial(self.parts, config), str(self.directory), ckpt_path, fresh) == 0
        return self.level(**changes)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more threads, and on a busy machine these wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the files of one second by their number, as text: here all have as many digits."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10**6))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path / "runs")


@pytest.fixture
def data() -> ImageDataModule:
    """What a run with seed 0 sees."""
    module = random_pictures()
    module.seed = 0
    module.setup("fit")
    return module


@pytest.fixture
def num_prunable() -> int:
    return NUM_PRUNABLE


IMPORTS = """
import json, os, subprocess, sys, time, types
import sklearn.datasets
import torch.distributed.run
import torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler as of_torchrun
import pytorch_lightning.strategies.launchers.subprocess_script as of_lightning
from pytorch_lightning.utilities import rank_zero_only
from prunelab.cli import main
from prunelab.launcher import end_with_launcher
import prunelab.pruning.criteria
"""
THEN = """
is_torchrun, num_others = request["torchrun"], request["processes"] - (not request["torchrun"])
others = []


class Started:
    # instead of a Popen: one of the processes that were forked before anything began

    def __init__(self, *_, env, **__):
        self.returncode = None
        self.pid, writer = others.pop(0)
        os.write(writer, json.dumps(dict(env)).encode() + b"\\n")

    def poll(self):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout):
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


for _ in range(num_others):
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(reader)
        others.append((pid, writer))
        continue
    os.close(writer)
    if is_torchrun:
        os.setsid()
    with os.fdopen(reader) as environment:
        line = environment.readline()
    if not line:  # it has never been started
        os._exit(0)
    os.environ |= json.loads(line)
    rank_zero_only.rank = int(os.environ.get("RANK", os.environ["LOCAL_RANK"]))
    is_torchrun = False
    break
else:
    of_lightning.subprocess = types.SimpleNamespace(Popen=Started)
    of_torchrun.Popen = Started
code = 1
try:
    if is_torchrun:
        request["arguments"] = [f"--nproc_per_node={num_others}", "--standalone", "train.py", *request["arguments"]]
        code = torch.distributed.run.main(request["arguments"]) or 0
    else:
        end_with_launcher()
        code = main(request["arguments"])
except SystemExit as end:
    code = end.code
except BaseException:
    sys.excepthook(*sys.exc_info())
finally:
    os._exit(code)  # Python's own end would take seconds
"""


class Command:
    """A command of train.py that runs in a process of its own. lines: what it has printed, errors too.

    processes: how many it may start, itself included; they are forks too, made beforehand. torchrun: under its agent.
    """

    def __init__(
        self,
        server: Forks,
        arguments: list[str],
        directory: Path,
        processes: int = 1,
        torchrun: bool = False,
        **environment: str,
    ) -> None:
        self._server = server
        reader, writer = os.pipe()
        told = {"arguments": arguments, "processes": processes, "torchrun": torchrun}
        self.pid = server.start(writer, directory, environment, **told)
        os.close(writer)
        self.lines: list[str] = []
        self._output = os.fdopen(reader)
        self._code: int | None = None

    def read_to(self, sign: str) -> None:
        """Go on when it prints a line with `sign`."""
        for line in self._output:
            self.lines.append(line)
            if sign in line:
                return
        raise AssertionError("".join(self.lines))

    def read_available(self) -> None:
        """What it has printed since, without waiting for more; not after `read_to`, which may hold some back."""
        while select.select([self._output], [], [], 0)[0] and (printed := os.read(self._output.fileno(), 2**16)):
            self.lines.append(printed.decode(errors="replace"))

    def send(self, number: signal.Signals) -> None:
        if self._code is None:  # afterwards the id may be another's
            os.kill(self.pid, number)

    def end(self) -> int:
        """Its exit code, once it has ended; below 0 the signal that killed it."""
        if self._code is None:
            with self._output:
                self.lines += self._output
            self._code = self._server.end(self.pid)
        return self._code

    @property
    def text(self) -> str:
        return "".join(self.lines)


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Command]]:
    """launch(arguments, directory, **environment) -> the Command; none of them outlives the tests."""
    with forks(IMPORTS, THEN) as server:
        yield partial(Command, server)


@pytest.fixture
def start(launch: Callable[..., Command]) -> Iterator[Callable[..., Command]]:
    """Like `launch`; what the test leaves running, as when it fails, is killed."""
    commands: list[Command] = []

    def begin(arguments: list[str], directory: Path, **settings: Any) -> Command:
        commands.append(launch(arguments, directory, **settings))
        return commands[-1]

    yield begin
    for command in commands:
        command.send(signal.SIGKILL)
        command.end()
