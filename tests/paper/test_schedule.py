from __future__ import annotations

import pytest
import torch

from prunelab.paper.schedule import LargestCut, schedule
from prunelab.pruning import Masks


def masks(**layers: list[bool]) -> Masks:
    return Masks({name: torch.tensor(values) for name, values in layers.items()})


def test_share_of_the_flow_by_hand():
    """Two layers that both sum to 10; a round that drops 1 and 2 + 3 drops six tenths of what flows."""
    cut = LargestCut()
    scores = {"a": torch.tensor([9.0, 1]), "b": torch.tensor([5.0, 2, 3])}
    cut(0, 0.4, scores, masks(a=[True, False], b=[True, False, False]))
    assert cut.share == pytest.approx(0.6)
    cut(1, 0.3, {"a": torch.tensor([9.0, 0]), "b": torch.tensor([9.0, 0, 0])}, masks(a=[True, False], b=[True] * 3))
    assert cut.share == pytest.approx(0.6)  # dropped nothing
    cut(2, 0.2, {"a": torch.zeros(2), "b": torch.zeros(3)}, masks(a=[True, False], b=[False] * 3))
    assert cut.share == pytest.approx(0.6)  # nothing flows
    cut(3, 0.1, scores, masks(a=[False, False], b=[True, True, True]))
    assert cut.share == 1


def test_schedules(subject, measured):
    said: list[str] = []
    result = schedule(subject, ["exponential", "linear"], [1, 4, 30], [1, 4], measured, said.append)
    rows = {(row["schedule"], row["rounds"], row["exponent"]): row for row in result.rows}
    assert len(rows) == 12 == len(said)
    for row in rows.values():
        assert row["largest_share_dropped"] >= 1 or row["num_collapsed"] == 0  # theorem 3
        assert row["num_collapsed"] == len(row["collapsed_layers"].split())
    for exponent in (1, 4):
        one, other = rows["exponential", 1, exponent], rows["linear", 1, exponent]
        assert {**one, "schedule": ""} == {**other, "schedule": ""}  # one round has no schedule
    assert rows["exponential", 30, 1]["largest_share_dropped"] < rows["linear", 30, 1]["largest_share_dropped"]
    assert rows["exponential", 30, 4]["num_kept"] == 3
    assert rows["exponential", 30, 4]["num_collapsed"] == 0
    assert rows["linear", 30, 4]["num_collapsed"] > 0
    again = schedule(subject, ["exponential", "linear"], [1, 4, 30], [1, 4], measured, said.append)
    assert again.rows == result.rows
    assert len(said) == 12
