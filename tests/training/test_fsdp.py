"""Networks sharded over two processes (FSDP2, gloo) have the masks, and up to rounding the weights, of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import ModelParallelStrategy

from prunelab.experiment.errors import RunError
from prunelab.experiment.run_dir import RunDir
from prunelab.experiment.trainer import run_trainer
from prunelab.pruning import Masks, PruningError, prune
from prunelab.pruning.criteria import magnitude
from prunelab.training import Classifier, PruningAtInit
from prunelab.training.network import load_weights

from .sharded_fits import CRITERIA, NUM_PROCESSES, TRAININGS, outcome, sgd, tiny_net, train, without_norm

Result = dict[str, Any]
NUM_PRUNABLE = 5 * 9 + 4 * 5 * 9 + 3 * 16


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes has found."""
    directory = tmp_path_factory.mktemp("sharded")
    script = str(Path(__file__).with_name("sharded_fits.py"))
    outputs = [directory / f"{rank}.txt" for rank in range(NUM_PROCESSES)]
    processes = []
    try:
        for rank, output in enumerate(outputs):
            with output.open("w") as file:
                command = [sys.executable, script, str(rank), str(directory)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                processes.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
        # one that fails leaves the other waiting for it: both are over then
        for process in processes:
            process.wait(timeout=300)
        assert [process.returncode for process in processes] == [0, 0], "".join(o.read_text() for o in outputs)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES)]


@pytest.fixture(scope="module")
def results(of_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first process has found."""
    return of_ranks[0]


def alone(directory: Path, net: torch.nn.Module, optimizer: Any = sgd, **options: Any) -> Result:
    """The same on one process."""
    module = Classifier(net, optimizer)
    return outcome(module, *train(directory, module, **options)[1:])


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("criterion", CRITERIA)
def test_masks_are_those_of_one_process(criterion: str, results: Result, tmp_path: Path) -> None:
    one = alone(tmp_path, tiny_net(), criterion=CRITERIA[criterion](), max_steps=1)
    assert Masks(results[criterion]["masks"]).num_kept == round(0.2 * NUM_PRUNABLE)
    assert_equal(results[criterion]["masks"], one["masks"])
    assert results[criterion]["scoring_loss"] == one["scoring_loss"]


@pytest.mark.parametrize("training", TRAININGS)
def test_weights_are_those_of_one_process_up_to_rounding(training: str, results: Result, tmp_path: Path) -> None:
    options = dict(TRAININGS[training])
    one = alone(tmp_path, without_norm(), options.pop("optimizer", sgd), **options)
    start = without_norm().state_dict()
    assert_equal(results[training]["masks"], one["masks"])
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if training == "bf16" else {"rtol": 1e-5, "atol": 1e-7}
    for name, values in one["weights"].items():
        assert not torch.equal(values, start[name])
        torch.testing.assert_close(results[training]["weights"][name], values, **tolerance)


@pytest.mark.parametrize("training", TRAININGS)
def test_pruned_weights_gradients_and_slots_are_exactly_0_after_every_step(training: str, results: Result) -> None:
    found = results[training]
    num_layers, num_slots = 3, 2 if training == "adamw" else 1
    num_steps = 3 if training == "accumulated" else 5
    assert found["sharded"] == num_layers
    assert found["looked_at"] == num_steps * num_layers * (2 + num_slots)  # weights, gradients, slots
    assert found["not_zero"] == 0
    for name, mask in found["masks"].items():
        assert not found["weights"][name][~mask].any()
        assert found["weights"][name][mask].all()


def test_all_processes_hold_the_same_masks_and_weights(of_ranks: list[dict[str, Any]]) -> None:
    first, second = of_ranks
    for name in (*CRITERIA, *TRAININGS, "seeded apart"):
        assert_equal(second[name]["masks"], first[name]["masks"])
        assert_equal(second[name]["weights"], first[name]["weights"]) if name in TRAININGS else None


def test_processes_that_were_seeded_apart_prune_the_network_that_they_have_together(results: Result) -> None:
    """Of each layer the first process brings the first half of the outputs, rounded up, the second the others."""
    net, other = tiny_net(seed=0), tiny_net(seed=1)
    with torch.no_grad():
        for own, part in zip(net.parameters(), other.parameters(), strict=True):
            own[-(-len(own) // 2) :] = part[-(-len(own) // 2) :]
    expected = prune(net, magnitude, density=0.2, example_input=torch.zeros(1, 1, 6, 6))
    assert Masks(results["seeded apart"]["masks"]) == expected


def test_a_network_made_in_configure_model_is_pruned(results: Result) -> None:
    found = results["made late"]
    assert found["sharded"] == 3
    assert Masks(found["masks"]).num_kept == round(0.2 * NUM_PRUNABLE)
    assert all(not found["weights"][name][~mask].any() for name, mask in found["masks"].items())


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_resumed_training_scores_nothing_and_ends_with_the_same_bits(kind: str, results: Result) -> None:
    found = results[f"resumed from a {kind}"]
    assert_equal(found["masks"], results["adamw"]["masks"])
    assert_equal(found["weights"], results["adamw"]["weights"])
    assert found["not_zero"] == 0


def test_weights_are_those_of_ddp_up_to_rounding(results: Result) -> None:
    assert results["DDP"]["sharded"] == 0
    for name, values in results["DDP"]["weights"].items():
        torch.testing.assert_close(results["adamw"]["weights"][name], values, rtol=1e-5, atol=1e-7)


def test_the_copy_to_score_is_the_plain_network_with_the_hooks_of_its_user(results: Result) -> None:
    assert results["copy"] == {
        "same": True,
        "sharded": [],
        "kinds": [type(module).__name__ for module in without_norm().modules()],
        "plain": True,
        "hooks": 1,
    }


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("tensor parallel", "ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)"),
        ("no configure_model", "Classifier has no configure_model"),
        ("compact", "compact: goes with one device or ddp"),
        ("averaging", "EMAWeightAveraging copies the network"),
        ("partly sharded", "leaves 3.weight, 3.bias, 6.weight and 1 more out of fully_shard"),
        ("order", "PruningAtInit goes before KeepPruned"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_on_all_processes(
    case: str, words: str, of_ranks: list[dict[str, Any]]
) -> None:
    for found in of_ranks:
        assert words in found[case]
        assert "\n" not in found[case]


def test_a_run_of_train_py_refuses_to_shard(tmp_path: Path) -> None:
    level = RunDir(tmp_path).level(0)
    arguments = {"accelerator": "cpu", "devices": 2, "strategy": ModelParallelStrategy(), "max_epochs": 1}
    with pytest.raises(RunError, match="ModelParallelStrategy: runs train on one device or with ddp"):
        run_trainer(arguments, {}, PruningAtInit(magnitude, density=0.2), level, 0, None, "")


def test_weights_for_a_network_without_memory_are_refused(tmp_path: Path) -> None:
    torch.save(tiny_net().state_dict(), tmp_path / "weights.pt")
    with torch.device("meta"):
        net = tiny_net()
    with pytest.raises(PruningError, match="weights_from: the network is on the meta device"):
        load_weights(net, str(tmp_path / "weights.pt"), "net")
