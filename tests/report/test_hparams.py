from __future__ import annotations

from copy import deepcopy

from prunelab.report.hparams import run_hparams


def test_classes_are_short_names_and_settings_and_numbers_stand_alone(config):
    assert run_hparams(config) == {
        "criterion": "synflow",
        "criterion_settings": "rounds=100",
        "net": "resnet20",
        "net_settings": "num_classes=10 width=1",
        "data": "digits",
        "data_settings": "batch_size=64",
        "optimizer": "sgd",
        "optimizer_settings": "lr=0.1 weight_decay=0.0001",
        "lr_scheduler": "none",
        "lr_scheduler_settings": "",
        "rounds": 100,
        "schedule": "exponential",
        "scope": "global",
        "allocation": "none",
        "min_layer_density": 0.0,
        "compact": False,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "batch_size": 64,
        "precision": "32-true",
        "seed": 0,
        "level": 0,
        "control": "none",
    }


def test_every_run_has_the_same_columns(config):
    other = deepcopy(config)
    other["pruning"]["criterion"] = {"class_path": "my.Own"}
    other["pruning"]["rounds"] = 7
    other["model"]["lr_scheduler"] = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}
    other["data"] = {"class_path": "pl_bolts.datamodules.CIFAR10DataModule"}
    columns = run_hparams(other)
    assert columns.keys() == run_hparams(config).keys()
    assert (columns["criterion"], columns["rounds"], columns["lr_scheduler"]) == ("Own", 7, "step")
    assert columns["data"] == "CIFAR10DataModule"
    assert columns["batch_size"] == "none"


def test_a_level_of_a_ticket_has_the_columns_of_every_run(config):
    columns = run_hparams(config | {"control": "reinit", "tickets": {"levels": 3}}, level=2)
    assert columns == run_hparams(config) | {"level": 2, "control": "reinit"}
