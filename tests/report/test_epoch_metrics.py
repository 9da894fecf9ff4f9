from __future__ import annotations

import pytest
from pytorch_lightning import Callback

from prunelab.report.epoch_metrics import epoch_metrics


def test_a_validation_result_of_an_earlier_epoch_is_left_out(fit):
    seen = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append((epoch_metrics(trainer, validated=True), epoch_metrics(trainer, validated=False)))

    fit([Look()], max_epochs=2, check_val_every_n_epoch=1)
    for all_of_them, without_validation in seen:
        assert set(all_of_them) == {"train_loss", "val_loss", "val_accuracy", "lr"}
        assert set(without_validation) == {"train_loss", "lr"}
    assert [values["lr"] for values, _ in seen] == pytest.approx([0.1, 0.05])
