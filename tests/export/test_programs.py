"""Networks as programs: any batch size, the same logits, nothing of the machine that they were made on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from prunelab.experiment.errors import RunError
from prunelab.export.programs import Program, checked_difference, onnx_program, torch_program
from prunelab.models import resnet20

MAKERS = pytest.mark.parametrize("make", [torch_program, onnx_program])
EXAMPLE = torch.zeros(1, 3, 8, 8)


def trained_norms(net: nn.Module) -> nn.Module:
    """Statistics and shifts as training leaves them: neither 0 nor 1."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            nn.init.normal_(module.bias, generator=generator)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return trained_norms(resnet20(width=0.25, shortcut="identity", image_size=8))


@MAKERS
def test_a_residual_network_with_padded_shortcuts(make: Callable[..., Program], net: nn.Module) -> None:
    program = make(net, EXAMPLE, {"level": 3})
    difference, largest = checked_difference(program, net, EXAMPLE)
    assert difference <= 1e-5 * largest
    for size in (1, 2, 7):
        inputs = torch.randn(size, 3, 8, 8)
        assert torch.allclose(program.run(inputs), net(inputs), rtol=0, atol=1e-5 * largest)


@MAKERS
def test_nothing_of_the_machine_is_in_it(make: Callable[..., Program], net: nn.Module) -> None:
    content = make(net, EXAMPLE, {}).content
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


def test_what_is_said_about_it_travels_with_it(net: nn.Module) -> None:
    about = {"level": 3, "criterion": "snip"}
    files = {"prunelab.json": ""}
    torch.export.load(io.BytesIO(torch_program(net, EXAMPLE, about).content), extra_files=files)
    assert json.loads(files["prunelab.json"]) == about
    model = onnx.load_from_string(onnx_program(net, EXAMPLE, about).content)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "prunelab.level": "3",
        "prunelab.criterion": "snip",
    }
    sizes = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 8, 8]


@MAKERS
def test_double_precision_stays(make: Callable[..., Program]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double().eval()
    program = make(net, torch.zeros(1, 3, 2, 2, dtype=torch.float64), {})
    inputs = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    found = program.run(inputs)
    assert found.dtype == torch.float64
    assert torch.allclose(found, net(inputs), rtol=1e-14)


class ByValue(nn.Module):
    """What it does depends on what it is given."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) if inputs.sum() > 0 else -inputs.flatten(1)


class ByBatch(nn.Module):
    """What it does depends on how many there are."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1) if len(inputs) == 2 else inputs.flatten(1)[:, 1:]


@MAKERS
@pytest.mark.parametrize("net", [ByValue(), ByBatch()], ids=["value", "batch"])
def test_what_cannot_be_exported_is_one_line(make: Callable[..., Program], net: nn.Module) -> None:
    with pytest.raises(RunError, match=r"^torch\.export cannot take the network: ") as caught:
        make(net, EXAMPLE, {})
    assert "\n" not in str(caught.value)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).requires_grad_(False)


@pytest.mark.parametrize("factor", [1.0, 1 + 5e-6, 1 + 2e-5, float("nan"), float("inf"), 0.0])
def test_logits_are_compared_with_the_largest(factor: float) -> None:
    net, example = linear(), torch.zeros(1, 3, 2, 2)
    program = Program(b"", lambda inputs: net(inputs) * factor)
    if abs(factor - 1) < 1e-5:
        difference, largest = checked_difference(program, net, example)
        assert difference == pytest.approx(abs(factor - 1) * largest, rel=0.1)
    else:
        with pytest.raises(RunError, match="gives other logits than the masked network"):
            checked_difference(program, net, example)


def test_a_difference_in_one_batch_size_is_enough() -> None:
    net, example = linear(), torch.zeros(1, 3, 2, 2)
    program = Program(b"", lambda inputs: net(inputs) + (len(inputs) > 1))
    with pytest.raises(RunError, match="they differ by 1, "):
        checked_difference(program, net, example)


def test_logits_of_another_shape() -> None:
    net = linear()
    program = Program(b"", lambda inputs: net(inputs)[:, :3])
    with pytest.raises(RunError, match=r"gives \(1, 3\), the network \(1, 4\)"):
        checked_difference(program, net, torch.zeros(1, 3, 2, 2))


def test_a_program_that_fails_is_one_line() -> None:
    def fail(inputs: Tensor) -> Tensor:
        raise RuntimeError("first\nsecond")

    with pytest.raises(RunError, match=r"^the exported program cannot take the network: RuntimeError: first$"):
        checked_difference(Program(b"", fail), linear(), torch.zeros(1, 3, 2, 2))


def test_a_network_whose_logits_are_all_zero_is_exact() -> None:
    net = linear()
    for parameter in net.parameters():
        parameter.zero_()
    assert checked_difference(Program(b"", net), net, torch.zeros(1, 3, 2, 2)) == (0, 0)
