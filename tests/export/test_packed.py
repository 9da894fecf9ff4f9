"""Packed state dicts: bit for bit back, as small as they should be, and refused when a byte of them is another."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelab.experiment.errors import RunError
from prunelab.export import PackedError, load_packed, save_packed
from prunelab.export.packed import MAGIC, pack, read_packed, unpack
from prunelab.models import resnet20
from prunelab.pruning import Masks, prunable_names

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64, torch.bool]


def sparse(shape: tuple[int, ...], num_kept: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Values that are 0 but for `num_kept`, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.randperm(math.prod(shape), generator=generator) < num_kept).view(shape)
    values = torch.randint(1, 100, shape, generator=generator).to(dtype)
    return [torch.where(mask, values, torch.zeros((), dtype=dtype)), mask]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_round_trip(state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    found, found_masks, _ = unpack(pack(state, masks, {}))
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)
    assert found_masks == Masks(masks)


def header_of(content: bytes) -> dict:
    start = len(MAGIC) + 8
    return json.loads(zlib.decompress(content[start : start + int.from_bytes(content[len(MAGIC) : start], "little")]))


def signed(header: dict, payload: bytes) -> bytes:
    """A file with a good checksum, whatever it says."""
    text = zlib.compress(json.dumps(header).encode())
    whole = MAGIC + len(text).to_bytes(8, "little") + text + payload
    return whole + hashlib.sha256(whole).digest()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40, 25), (7, 3, 2, 2), (1,), (), (0, 3)], ids=str)
@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.3, 1])
def test_all_types_shapes_and_densities_come_back_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, ...], share: float
) -> None:
    values, mask = sparse(shape, round(share * math.prod(shape)), dtype)
    assert_round_trip({"a": values, "count": torch.tensor(7), "b": values * 1}, {"a": mask})


def test_values_that_look_like_zero_or_like_nothing() -> None:
    payload = torch.tensor([0x7FC12345, 0x7F800001, -0x7FFFFFFF, -0x80000000, 1, 0], dtype=torch.int32)
    strange = payload.view(torch.float32)  # two NaNs, two negative ones near and at 0, the least number, 0
    for kept in ([1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1], [0] * 6, [1] * 6):
        assert_round_trip({"a": strange, "raw": strange}, {"a": torch.tensor(kept) > 0})


def test_tensors_that_are_not_contiguous_or_have_gradients() -> None:
    values, mask = sparse((2, 5, 3, 3), 9)
    last = values.to(memory_format=torch.channels_last)
    assert_round_trip({"a": torch.nn.Parameter(last).detach(), "t": values[0].mT}, {"a": mask})
    unpack(pack({"a": torch.nn.Parameter(last)}, {"a": mask}, {}))


@pytest.mark.parametrize(
    ("shape", "kept", "way", "num_bytes"),
    [
        # worked out by hand: one byte for 8 weights, or one for each kept weight and each 255 pruned ones before it
        ((16,), range(16), "all", 0),
        ((17,), range(0, 17, 2), "bits", 3),
        ((800,), [0, 100, 356], "gaps8", 4),
        ((800,), [255], "gaps8", 2),
        ((800,), [254], "gaps8", 1),
        ((800,), [], "gaps8", 0),
        ((2_000,), [1_999, 0], "gaps16", 4),
        ((140_000,), [65_534, 131_070], "gaps16", 6),
    ],
)
def test_positions_are_written_in_the_shortest_way(
    shape: tuple[int, ...], kept: list[int], way: str, num_bytes: int
) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[list(kept)] = True
    content = pack({"a": mask.float()}, {"a": mask}, {})
    entry = header_of(content)["tensors"][0]
    assert (entry["mask"], entry["mask_bytes"], entry["value_bytes"]) == (way, num_bytes, 4 * len(kept))
    assert_round_trip({"a": mask.float()}, {"a": mask})


@pytest.mark.parametrize(("density", "share"), [(0.02, 0.06), (0.1, 0.15), (1.0, 1.05)])
def test_a_sparse_network_is_a_small_file(density: float, share: float, tmp_path: Path) -> None:
    net = resnet20()
    names = prunable_names(net, (), ())
    generator = torch.Generator().manual_seed(0)
    parameters = dict(net.named_parameters())
    masks = Masks({n: torch.rand(parameters[n].shape, generator=generator) < density for n in names})
    masks.apply_to(net)
    save_packed(tmp_path / "net.packed", net.state_dict(), masks)
    dense = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    assert (tmp_path / "net.packed").stat().st_size < share * dense
    state, found = load_packed(tmp_path / "net.packed")
    assert found == masks
    other = resnet20()
    other.load_state_dict(state, strict=True)
    assert all(bits(value) == bits(other.state_dict()[name]) for name, value in net.state_dict().items())


def test_what_is_said_about_it_comes_back(tmp_path: Path) -> None:
    save_packed(tmp_path / "a", {"w": torch.ones(3)}, Masks({}), {"level": 3, "criterion": "snip"})
    assert read_packed(tmp_path / "a")[2] == {"level": 3, "criterion": "snip"}


def test_what_is_loaded_can_be_changed(tmp_path: Path) -> None:
    save_packed(tmp_path / "a", {"w": torch.ones(3)}, Masks({"w": torch.ones(3) > 0}))
    load_packed(tmp_path / "a")[0]["w"].add_(1)
    assert torch.equal(load_packed(tmp_path / "a")[0]["w"], torch.ones(3))


@pytest.mark.parametrize("masks", [{"b": torch.ones(3) > 0}, {"a": torch.ones(4) > 0}])
def test_masks_of_something_else_are_refused(masks: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="fits no tensor of the state dict"):
        pack({"a": torch.ones(3)}, masks, {})


@pytest.fixture
def content() -> bytes:
    values, mask = sparse((60, 20), 30)
    return pack({"a": values, "b": torch.arange(5)}, {"a": mask}, {"level": 0})


def test_every_byte_counts(content: bytes) -> None:
    generator = np.random.default_rng(0)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        with pytest.raises(PackedError):
            unpack(bytes(changed))


def test_every_length_but_the_whole_is_refused(content: bytes) -> None:
    for length in range(len(content)):
        with pytest.raises(PackedError):
            unpack(content[:length])
    with pytest.raises(PackedError):
        unpack(content + b"\0")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda content: content[:-1], "is damaged: its checksum is of other bytes"),
        (lambda content: b"PK" + content[2:], "is damaged or no packed file"),
        (lambda content: b"", "is damaged or no packed file"),
        (lambda content: content[:60] + b"?" + content[61:], "is damaged: its checksum is of other bytes"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(harm, message: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.packed"
    path.write_bytes(harm(content))
    with pytest.raises(PackedError) as caught:
        load_packed(path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert "\n" not in str(caught.value)


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere is missing"):
        load_packed(tmp_path / "nowhere")
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        load_packed(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byteorder": "middle"}, "of the other byte order"),
        ({"tensors": None}, "holds no packed state dict"),
        ({"about": 3}, "holds no packed state dict"),
        ({"dtype": "float31"}, "holds no packed state dict"),
        ({"dtype": "nn"}, "holds no packed state dict"),
        ({"shape": [60, 2]}, "holds no packed state dict"),
        ({"shape": [-60, 20]}, "holds no packed state dict"),
        ({"shape": "60"}, "holds no packed state dict"),
        ({"mask": "bits"}, "a mask has another length than its tensor"),
        ({"mask": "holes"}, "holds no packed state dict"),
        ({"mask": None}, "has values for 30 weights"),
        ({"mask": "all"}, "keeps another number of weights than it says"),
        ({"num_kept": 29}, "keeps another number of weights than it says"),
        ({"value_bytes": 100}, "has values for 25 weights"),
        ({"value_bytes": 1 << 40}, "inconsistent|holds no packed state dict"),
        ({"mask_bytes": -1}, "inconsistent|holds no packed state dict"),
    ],
)
def test_a_good_checksum_over_nonsense(change: dict, message: str, content: bytes) -> None:
    header = header_of(content)
    entry = header["tensors"][0]
    for key, value in change.items():
        (header if key in header else entry)[key] = value
    sizes = [entry["mask_bytes"] + entry["value_bytes"] for entry in header_of(content)["tensors"]]
    payload = content[-32 - sum(sizes) : -32]
    assert unpack(signed(header_of(content), payload))[2] == {"level": 0}
    with pytest.raises(PackedError, match=message):
        unpack(signed(header, payload))


def test_a_header_longer_than_the_file() -> None:
    whole = MAGIC + (1 << 60).to_bytes(8, "little") + b"{"
    with pytest.raises(PackedError, match="holds no packed state dict"):
        unpack(whole + hashlib.sha256(whole).digest())
