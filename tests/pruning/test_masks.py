from __future__ import annotations

import copy
import hashlib
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from prunelab.pruning import Masks, PruningError, prunable_names

from .nets import dense, mlp, random_masks, vgg_like


def example() -> Masks:
    return Masks({"a": torch.tensor([[True, False], [True, True]]), "b": torch.tensor([False, False, True])})


def test_counts_and_densities() -> None:
    masks = example()
    assert (masks.num_kept, masks.num_weights, masks.density) == (4, 7, 4 / 7)
    assert masks.layer_densities() == {"a": 0.75, "b": 1 / 3}
    assert masks.layer_num_kept() == {"a": 3, "b": 1}


def test_is_a_mapping() -> None:
    masks = example()
    assert list(masks) == ["a", "b"]
    assert len(masks) == 2
    assert "a" in masks
    assert dict(masks).keys() == masks.keys()


def test_immutable_whatever_one_does_to_what_it_gives_or_takes() -> None:
    given = torch.ones(3, dtype=torch.bool)
    masks = Masks({"a": given})
    before = masks.digest()
    given[0] = False
    masks["a"].zero_()
    for mask in masks.values():
        mask.zero_()
    masks.layer_num_kept()["a"] = 0
    with pytest.raises(TypeError):
        masks["a"] = given
    assert masks.digest() == before
    assert masks.num_kept == 3
    assert masks["a"].all()


@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(2, dtype=torch.uint8), [True, False], True])
def test_takes_bool_tensors_only(wrong: object) -> None:
    with pytest.raises(TypeError, match="'a'"):
        Masks({"a": wrong})


def test_dense_keeps_all() -> None:
    net = vgg_like()
    masks = Masks.dense(net, ["0.weight", "9.weight"])
    assert masks.density == 1
    assert {name: mask.shape for name, mask in masks.items()} == {
        "0.weight": net[0].weight.shape,
        "9.weight": net[9].weight.shape,
    }


def test_dense_masks_are_one_number_each_until_they_are_read(tmp_path: Path) -> None:
    net = nn.Linear(300, 200)
    masks = Masks.dense(net, ["weight"]).to("cpu")
    assert masks.num_kept == masks.num_weights == 60000
    assert masks == Masks({"weight": torch.ones(200, 300, dtype=torch.bool)})
    masks["weight"][0] = False
    assert masks["weight"].all()
    assert len(pickle.dumps(masks)) < 5000
    masks.save(tmp_path / "masks.pt")
    saved = torch.load(tmp_path / "masks.pt", weights_only=True)["weight"]
    saved[0] = False  # what is saved is a plain tensor
    assert saved.sum() == 199 * 300


def test_digest_is_of_names_shapes_and_bits_only() -> None:
    masks = example()
    reordered = Masks(dict(reversed(list(masks.items()))))
    strided = Masks({"a": masks["a"].t().contiguous().t(), "b": masks["b"]})
    assert masks.digest() == reordered.digest() == strided.digest() == masks.to("cpu").digest()
    assert masks == reordered
    assert hash(masks) == hash(reordered)
    others = [
        Masks({**masks, "b": torch.tensor([False, True, False])}),
        Masks({"a": masks["a"], "c": masks["b"]}),
        Masks({**masks, "b": masks["b"].view(3, 1)}),
        Masks({"a": masks["a"]}),
    ]
    assert len({masks.digest(), *(other.digest() for other in others)}) == 5
    assert masks not in others
    assert masks != dict(masks)


def test_digest_is_the_same_on_every_machine() -> None:
    layers = b"a(2, 2)" + bytes([1, 0, 1, 1]) + b"b(3,)" + bytes([0, 0, 1])
    assert example().digest() == hashlib.sha256(layers).hexdigest()


def test_subset() -> None:
    masks = example()
    smaller = Masks({"a": torch.tensor([[True, False], [False, True]]), "b": masks["b"]})
    assert smaller.is_subset_of(masks)
    assert masks.is_subset_of(masks)
    assert not masks.is_subset_of(smaller)
    with pytest.raises(ValueError, match="b"):
        masks.is_subset_of(Masks({"a": masks["a"]}))


def test_apply_sets_exact_zeros_even_where_weights_are_not_numbers() -> None:
    """0 * NaN is NaN, 0 * inf is NaN and 0 * -1 is -0.0: multiplying by a mask would leave all three."""
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[float("nan"), float("inf")], [-1.0, -2.0]]))
    Masks({"weight": torch.tensor([[False, False], [False, True]])}).apply_to(net)
    assert net.weight.tolist() == [[0, 0], [0, -2]]
    assert not torch.signbit(net.weight[~(net.weight < 0)]).any()


def test_apply_leaves_names_objects_and_kept_weights() -> None:
    net = vgg_like()
    masks = random_masks(net)
    before = {name: (id(parameter), parameter.detach().clone()) for name, parameter in net.named_parameters()}
    keys = list(net.state_dict())
    masks.apply_to(net)
    assert list(net.state_dict()) == keys
    for name, parameter in net.named_parameters():
        identity, old = before[name]
        assert id(parameter) == identity
        assert parameter.requires_grad
        kept = masks[name] if name in masks else torch.ones_like(old, dtype=torch.bool)
        assert torch.equal(parameter[kept], old[kept])
        assert (parameter[~kept] == 0).all()


def test_a_pruned_network_stays_a_plain_network(tmp_path: Path) -> None:
    """Its state dict loads strictly into a new one with the same outputs; deepcopy and pickle work."""
    net = vgg_like().eval()
    random_masks(net).apply_to(net)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    plain = vgg_like(seed=1).eval()
    plain.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=True)
    inputs = torch.ones(2, 2, 6, 6, dtype=torch.float64)
    for copied in (plain, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(inputs), net(inputs))
        assert type(copied[0]) is nn.Conv2d


def test_tied_weights_appear_once_and_are_masked_everywhere() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    names = prunable_names(net)
    assert names == ["0.weight"]
    assert Masks.dense(net, names).num_weights == 9
    Masks({"0.weight": torch.eye(3, dtype=torch.bool)}).apply_to(net)
    assert net[2].weight is net[0].weight
    assert torch.count_nonzero(net[2].weight) == 3


@pytest.mark.parametrize("wrong", [{"nowhere": torch.ones(2, dtype=torch.bool)}, {"0.weight": torch.ones(2) > 0}])
def test_apply_refuses_another_network(wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises(PruningError, match="does not fit"):
        Masks(wrong).apply_to(mlp(3, 2))


def test_a_refused_apply_changes_nothing() -> None:
    net = mlp(3, 2)
    before = net[0].weight.detach().clone()
    with pytest.raises(PruningError):
        Masks({"0.weight": before < before, "other": torch.ones(1) > 0}).apply_to(net)
    assert torch.equal(net[0].weight, before)


def test_apply_sets_frozen_values_and_leaves_every_bit_of_kept_ones() -> None:
    """Kept: NaN, -0.0 and inf too. Frozen values at kept weights are not looked at."""
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[float("nan"), -0.0, float("inf")], [float("nan"), 5.0, -1.0]]))
    before = net.weight.detach().clone()
    mask = torch.tensor([[True, True, True], [False, False, True]])
    frozen = {"weight": torch.tensor([[7.0, 7.0, 7.0], [0.1, -0.0, 7.0]], dtype=torch.float64)}
    parameter = net.weight
    Masks({"weight": mask}).apply_to(net, frozen)
    assert net.weight is parameter
    assert net.weight[mask].detach().numpy().tobytes() == before[mask].numpy().tobytes()
    assert net.weight[~mask].detach().numpy().tobytes() == torch.tensor([0.1, -0.0]).numpy().tobytes()


def test_frozen_values_of_channels_last_weights_stand_in_their_places() -> None:
    net = vgg_like().to(memory_format=torch.channels_last)
    masks, values = random_masks(net), {n: p.detach().contiguous() for n, p in vgg_like(seed=1).named_parameters()}
    masks.apply_to(net, values)
    assert net[4].weight.is_contiguous(memory_format=torch.channels_last)
    for name, mask in masks.items():
        expected = torch.where(mask, vgg_like().get_parameter(name), values[name])
        assert torch.equal(net.get_parameter(name), expected)


@pytest.mark.parametrize("frozen", [{}, {"0.weight": torch.zeros(3, 2)}])
def test_frozen_values_of_another_network_are_refused(frozen: dict[str, torch.Tensor]) -> None:
    net = mlp(3, 2)
    before = net[0].weight.detach().clone()
    with pytest.raises(PruningError, match=r"mask of 0\.weight .* does not fit the frozen values"):
        random_masks(net).apply_to(net, frozen)
    assert torch.equal(net[0].weight, before)


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_sharded_weights_take_their_part(one_process_group: DeviceMesh, is_frozen: bool) -> None:
    net, plain = mlp(6, 4), mlp(6, 4)
    masks = random_masks(net)
    frozen = dict(mlp(6, 4, seed=1).named_parameters()) if is_frozen else None
    net[0].weight = nn.Parameter(distribute_tensor(net[0].weight.detach(), one_process_group, [Shard(0)]))
    masks.apply_to(net, frozen)
    masks.apply_to(plain, frozen)
    assert isinstance(net[0].weight, DTensor)
    assert torch.equal(net[0].weight.full_tensor(), plain[0].weight)
    assert (plain[0].weight[~masks["0.weight"]] != 0).all() == is_frozen


def test_save_writes_what_torch_alone_reads(tmp_path: Path) -> None:
    masks = random_masks(vgg_like())
    masks.save(tmp_path / "masks.pt")
    plain = torch.load(tmp_path / "masks.pt", weights_only=True)
    assert type(plain) is dict
    assert all(torch.equal(plain[name], mask) for name, mask in masks.items())
    assert Masks.load(tmp_path / "masks.pt") == masks
    assert Masks.load(str(tmp_path / "masks.pt")).digest() == masks.digest()


def test_deepcopy_and_pickle() -> None:
    masks = example()
    assert copy.deepcopy(masks) == masks
    assert pickle.loads(pickle.dumps(masks)) == masks


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "masks.pt"
    dense(vgg_like()).save(path)
    whole = path.read_bytes()
    draw = random.Random(0)
    damaged = [b"", b"text", b"{}", b"\x80", whole[:100], whole[: len(whole) // 2], whole[:-1], whole[10:]]
    damaged += [bytes(draw.randrange(256) for _ in range(200)) for _ in range(30)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(PruningError, match=r"masks\.pt"):
            Masks.load(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"a": torch.ones(2)}, torch.ones(2), None, {"a": {"b": 1}}])
def test_a_file_with_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(PruningError, match=r"other\.pt"):
        Masks.load(tmp_path / "other.pt")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Masks.load(tmp_path / "none.pt")


def test_repr_is_short() -> None:
    assert repr(example()) == "Masks(2 layers, 4 of 7 weights kept)"
