"""A network as a program that runs without prunelab, tried before it is handed out."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.experiment.errors import RunError

TOLERANCE = 1e-5  # of the largest logit
_INPUT, _OUTPUT = "input", "logits"


@dataclass(frozen=True)
class Program:
    """content: of the file; run: what the file is once it is loaded, (B, ...) -> logits (B, classes), any B."""

    content: bytes
    run: Callable[[Tensor], Tensor]


def torch_program(net: nn.Module, example_input: Tensor, about: Mapping[str, Any]) -> Program:
    """`torch.export.load(FILE).module()` is the network, in evaluation mode. `about` is its extra file prunelab.json.

    Raises: RunError if torch.export cannot take the network.
    """
    exported = _exported(net, example_input)
    with _quiet(), _in_one_line("torch.export"):
        buffer = BytesIO()
        torch.export.save(exported, buffer, extra_files={"prunelab.json": json.dumps(dict(about))})
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
    return Program(buffer.getvalue(), lambda inputs: loaded(inputs))


def onnx_program(net: nn.Module, example_input: Tensor, about: Mapping[str, Any]) -> Program:
    """ONNX with one input `input` and one output `logits`; `about` is in its metadata.

    It runs in onnxruntime on the CPU, with as many threads as torch.
    Raises: RunError if torch.onnx cannot take the network, or onnxruntime not what it makes of it.
    """
    onnxruntime = import_module("onnxruntime")
    # given the network itself, torch.onnx falls back on ways that may fix the size of the batch without a word
    exported = _exported(net, example_input)
    with _quiet(), _in_one_line("torch.onnx"):
        made: Any = torch.onnx.export(
            exported, dynamo=True, input_names=[_INPUT], output_names=[_OUTPUT], verbose=False
        )
        model = made.model_proto
        _tidy(model.graph)
        for name, value in about.items():
            model.metadata_props.add(key=f"prunelab.{name}", value=str(value))
        content = model.SerializeToString()
    with _in_one_line("onnxruntime"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Program(content, lambda inputs: torch.from_numpy(session.run([_OUTPUT], {_INPUT: inputs.numpy()})[0]))


@torch.no_grad()
def checked_difference(program: Program, net: nn.Module, example_input: Tensor) -> tuple[float, float]:
    """Largest difference between the program's logits and those of `net`, and the largest logit; of 1 and 3 inputs.

    Raises: RunError if the difference is above 1e-5 of the largest logit, or either is not finite.
    """
    difference = largest = 0.0
    for size in (1, 3):
        inputs = _noise(example_input, size)
        with _in_one_line("the exported program"):
            found = program.run(inputs)
        wanted = net(inputs)
        if found.shape != wanted.shape:
            raise RunError(f"the exported program gives {tuple(found.shape)}, the network {tuple(wanted.shape)}")
        difference = max(difference, float((found - wanted).abs().max().nan_to_num(torch.inf)))
        largest = max(largest, float(wanted.abs().max().nan_to_num(torch.inf)))
    if not difference <= TOLERANCE * largest < torch.inf:
        raise RunError(
            f"the exported program gives other logits than the masked network: they differ by {difference:.2g}, "
            f"the largest is {largest:.2g}"
        )
    return difference, largest


def _noise(example_input: Tensor, size: int) -> Tensor:
    """`size` inputs like the example: random numbers, or the example again and again if it holds no floats."""
    if not example_input.is_floating_point():
        return example_input.repeat(size, *[1] * (example_input.ndim - 1))
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, *example_input.shape[1:], generator=generator, dtype=torch.float64).to(example_input)


def _exported(net: nn.Module, example_input: Tensor) -> torch.export.ExportedProgram:
    with _quiet(), _in_one_line("torch.export"):
        shapes = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(net, (_noise(example_input, 2),), dynamic_shapes=shapes)
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of the machine that it was made on
    return exported


def _tidy(graph: Any) -> None:
    """Call the size of the batch `batch`, and take out what the exporter noted for its own debugging."""
    for values in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.ClearField("metadata_props")
            value.ClearField("doc_string")
    graph.ClearField("metadata_props")
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            for size in value.type.tensor_type.shape.dim:
                if size.dim_param == symbol:
                    size.dim_param = "batch"


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # exporters give up in many ways
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise RunError(f"{what} cannot take the network: {type(error).__name__}: {first_line}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, before in zip(loggers, levels, strict=True):
                logger.setLevel(before)
