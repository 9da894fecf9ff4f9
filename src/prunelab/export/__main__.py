"""The command. An entry, as train.py is one: it builds the run's network from its config, as the command line does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.compaction import CompactionError
from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import RunDir, write_atomically
from prunelab.export.costs import SIMULATED, cost_lines, measure, size_line
from prunelab.export.found import Found, When, compacted, find, with_weights
from prunelab.export.programs import Program, checked_difference, onnx_program, torch_program
from prunelab.export.state_dicts import packed, safetensors, ticket


@dataclass(frozen=True)
class Format:
    """help: what it is; suffix: of its files; when: the weights it has unless the user says; needs: packages beyond
    prunelab's own; state_dict or program: what writes it.
    """

    help: str
    suffix: str
    when: When = "trained"
    needs: tuple[str, ...] = ()
    state_dict: Callable[[Found], bytes] | None = None
    program: Callable[[nn.Module, Tensor, Mapping[str, Any]], Program] | None = None


FORMATS = {
    "ticket": Format("a state dict for net.load_state_dict(torch.load(FILE))", ".pt", when="start", state_dict=ticket),
    "safetensors": Format("the same in that format", ".safetensors", needs=("safetensors",), state_dict=safetensors),
    "packed": Format(
        "state dict and masks in few bytes, for prunelab.export.load_packed(FILE)", ".packed", state_dict=packed
    ),
    "torch": Format("the compact network for torch.export.load(FILE).module()", ".pt2", program=torch_program),
    "onnx": Format(
        "the compact network for onnxruntime",
        ".onnx",
        needs=("onnx", "onnxscript", "onnxruntime"),
        program=onnx_program,
    ),
}


def main(argv: list[str]) -> int:
    """Write the file that `argv` asks for; returns the exit code, 2 for what cannot be read or written."""
    parser = argparse.ArgumentParser(
        prog="python -m prunelab.export",
        description="Write what a run found into one file to use or deploy, and say how large and how fast it is.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the last word that a run printed")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{name}: {form.help}" for name, form in FORMATS.items()),
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="otherwise in the level's directory")
    parser.add_argument("--level", type=int, help="which level; otherwise the last one that is finished")
    parser.add_argument(
        "--weights",
        choices=("start", "trained"),
        help="as they were before the level's first step, or after its last one; otherwise trained, of a ticket start",
    )
    parser.add_argument(
        "--input_shape",
        type=_shape,
        metavar="C,H,W",
        help="of one input of the network; otherwise that of the run's data, which is read for it",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    arguments = parser.parse_args(argv)
    try:
        for line in _export(arguments):
            print(line)
    except (RunError, CompactionError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _export(arguments: argparse.Namespace) -> list[str]:
    """Write the file; returns what there is to say about it."""
    form = FORMATS[arguments.format]
    if missing := [package for package in form.needs if find_spec(package) is None]:
        raise RunError(f"--format {arguments.format} needs {', '.join(missing)}: pip install -e '.[export]'")
    run_dir = RunDir(arguments.run_dir)
    found = find(run_dir, arguments.level, arguments.weights or form.when)
    output = arguments.output or run_dir.level(found.level).path / f"{found.when}{form.suffix}"
    _check_free(output, arguments.force)
    lines: list[str] = []
    if form.program is not None:
        net, example_input = _network(run_dir, found, arguments.input_shape)
        small = compacted(net, found, example_input)
        program = form.program(small, example_input, found.about)
        difference, largest = checked_difference(program, net, example_input)
        dense = form.program(net, example_input, found.about)  # what is gained by the runtime is not gained by pruning
        _write(output, program.content)
        lines.append(f"the dense network in this format: {len(dense.content):,} bytes")
        lines += cost_lines(measure(found, net, small, example_input, (dense.run, program.run)))
        lines.append(f"logits: at most {difference:.2g} from the masked network's, the largest is {largest:.3g}")
    elif form.state_dict is not None:
        _write(output, form.state_dict(found))
        if arguments.format != "ticket":  # what another experiment begins with needs no network here
            lines += _costs_of_state_dict(run_dir, found, arguments.input_shape)
        lines += [SIMULATED] if found.masks.density < 1 else []
    return [size_line(found, output), *lines]


def _costs_of_state_dict(run_dir: RunDir, found: Found, shape: tuple[int, ...] | None) -> list[str]:
    """The lines about the network that the weights make; why there are none if it cannot be built."""
    try:
        net, example_input = _network(run_dir, found, shape)
    except RunError as error:
        return [f"MACs and latency: not measured, {' '.join(str(error).split())}"]
    try:
        small, lines = compacted(net, found, example_input), []
    except CompactionError as error:
        small, lines = None, [f"no compact form: {' '.join(str(error).split())}"]
    return [*cost_lines(measure(found, net, small, example_input)), *lines]


def _network(run_dir: RunDir, found: Found, shape: tuple[int, ...] | None) -> tuple[nn.Module, Tensor]:
    """The run's full network with the weights that were found, on the CPU, and one input of zeros.

    Raises: RunError if the config or the data cannot be read, or the network is another one.
    """
    config = run_dir.read_config()
    # late: these take seconds to import
    from prunelab.cli import USER_ERRORS, build_parser, instantiator, resolve
    from prunelab.experiment.trainer import quiet_libraries
    from prunelab.training.network import find_network

    try:
        parser = build_parser()
        with quiet_libraries():
            _, model, data, pruning = instantiator(parser, resolve(parser, config))()
            net = with_weights(find_network(model, pruning.net), found)
            example_input = _example_input(data) if shape is None else torch.zeros(1, *shape)
    except USER_ERRORS as error:
        raise RunError(str(error)) from error
    if example_input.is_floating_point():
        example_input = example_input.to(next(net.parameters()).dtype)
    try:
        with torch.no_grad():
            net(example_input)
    except (RuntimeError, ValueError, IndexError) as error:
        taken = ",".join(map(str, example_input.shape[1:]))
        raise RunError(f"the network cannot take an input of {taken}: {str(error).splitlines()[0]}") from error
    return net, example_input


def _example_input(data: Any) -> Tensor:
    if not hasattr(data, "example_input"):
        raise RunError(
            f"{type(data).__name__} does not say what the network takes: give --input_shape, such as 3,32,32"
        )
    data.prepare_data()
    data.setup("fit")
    example_input: Tensor = data.example_input()
    return example_input


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected sizes such as 3,32,32, got {text}")
    return tuple(map(int, sizes))


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise RunError(f"{path} is a directory: --output takes the file to write")
    if path.exists() and not force:
        raise RunError(f"{path} is there already: --force replaces it")


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
