"""The numbers of one finished training epoch, as Lightning logged them."""

from __future__ import annotations

from pytorch_lightning import Trainer

METRICS = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


def epoch_metrics(trainer: Trainer, *, validated: bool) -> dict[str, float]:
    """Return those of METRICS that this epoch logged, for use in `on_train_epoch_end`.

    Lightning keeps a validation result until the next one replaces it; without `validated` (validation ran in
    this epoch) such an old value is left out. Every rank has to call it: reading a metric may synchronise it.
    """
    logged = trainer.callback_metrics
    names = [name for name in METRICS if name in logged and (validated or not name.startswith("val_"))]
    return {name: float(logged[name]) for name in names}
