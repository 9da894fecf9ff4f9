from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunelab.paper.collapse import bisect, counts_after, critical_compression, layer_collapse, least_kept
from prunelab.paper.subject import CRITERIA
from prunelab.pruning import Masks, keep_highest, prune


def quiet(text: str) -> None:
    pass


def scores(**layers: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in layers.items()}


@pytest.mark.parametrize(
    ("given", "k", "layer"),
    [
        (scores(a=[5.0, 1], b=[3, 2], c=[4, 0]), 3, "b"),
        (scores(a=[1.0], b=[9, 8, 7, 6]), 5, "a"),
        (scores(a=[9.0, 8, 7], b=[1.0, 2]), 4, "b"),
        (scores(a=[2.0, 2], b=[2, 1]), 2, "a"),  # among equals the later is kept first: b's 2, then one of a
        (scores(a=[1.0, 1], b=[1, 1]), 3, "a"),
        (scores(a=[-1.0, -3], b=[-2, -4]), 2, "b"),
        (scores(a=[7.0]), 1, "a"),
    ],
)
def test_least_kept_by_hand(given, k, layer):
    assert least_kept(given) == (k, layer)


def test_least_kept_is_what_selection_does_with_ties_too():
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        sizes = torch.randint(1, 7, (3,), generator=generator).tolist()
        given = {f"l{i}": torch.randint(0, 6, (n,), generator=generator).float() for i, n in enumerate(sizes)}
        dense = Masks({name: torch.ones_like(values, dtype=torch.bool) for name, values in given.items()})

        def survives(k: int, given=given, dense=dense) -> bool:
            return all(keep_highest(given, k / dense.num_weights, dense).layer_num_kept().values())

        expected = next(k for k in range(1, dense.num_weights + 1) if survives(k))
        k, layer = least_kept(given)
        assert k == expected
        if k > 1:
            below = keep_highest(given, (k - 1) / dense.num_weights, dense).layer_num_kept()
            assert [name for name, count in below.items() if count == 0] == [layer]
        assert bisect(survives, 1, dense.num_weights, tolerance=0)[0] == expected


def test_bisection_by_hand():
    tried = []

    def survives(k: int) -> bool:
        tried.append(k)
        return k >= 37

    assert bisect(survives, 3, 1000, tolerance=0) == (37, 36, len(tried))
    assert len(set(tried)) == len(tried) <= 11
    found, dead, _ = bisect(survives, 3, 1000, tolerance=0.2)
    assert dead < 37 <= found <= 1.2 * dead
    assert bisect(lambda k: True, 3, 1000) == (3, None, 1)
    assert bisect(lambda k: k == 4, 3, 4) == (4, 3, 1)


def test_counts_are_those_of_pruning_and_are_measured_once(subject, measured):
    said = []
    for name in ("magnitude", "snip"):
        (counts, _) = counts_after(subject, name, [302, 50], measured, said.append)
        masks = prune(subject.net, CRITERIA[name], density=0.01, **subject.options(CRITERIA[name]))
        assert counts == masks.layer_num_kept()
        assert sum(counts.values()) == 302
    assert len(said) == 4
    counts_after(subject, "snip", [302, 50], measured, said.append)
    assert len(said) == 4


def test_layer_collapse_table(subject, measured):
    result = layer_collapse(subject, ["magnitude"], [0, 1, 3.5], measured, quiet)
    assert len(result.rows) == 9
    dense = [row for row in result.rows if row["exponent"] == 0]
    assert [row["layer"] for row in dense] == ["fc1", "fc2", "classifier"]
    assert [row["density"] for row in dense] == [1, 1, 1]
    last = {row["layer"]: row["layer_num_kept"] for row in result.rows if row["exponent"] == 3.5}
    assert sum(last.values()) == 10  # of 30,200
    assert last["fc1"] == 0  # whose weights are the smallest: N(0, 2 / 192)
    assert "| magnitude | 10^1 " in result.text
    assert "10^3.5" in result.text


def test_critical_compression_is_exact_for_rankings_and_searched_for_rounds(subject, measured, monkeypatch):
    monkeypatch.setitem(CRITERIA, "synflow", replace(CRITERIA["synflow"], rounds=2))
    subjects = [subject, replace(subject, seed=1)]
    result = critical_compression(subjects, ["magnitude", "synflow"], 0.0, measured, quiet)
    rows = {(row["criterion"], row["seed"]): row for row in result.rows}
    for one in subjects:
        k, layer = least_kept(one.scores(CRITERIA["magnitude"]))
        row = rows["magnitude", one.seed]
        assert (row["num_kept"], f"{row['empty_below']}.weight") == (k, layer)
        assert row["critical_compression"] == 30_200 / k
        assert row["maximal_compression"] == 30_200 / 3
        found = rows["synflow", one.seed]["num_kept"]
        at, below = counts_after(one, "synflow", [found, found - 1], measured, quiet)
        assert all(at.values())
        assert found == 3 or not all(below.values())


def test_synflow_reaches_the_maximal_compression(subject, measured):
    """Three weights in three layers: one path (Tanaka et al. 2020: maximal critical compression)."""
    result = critical_compression([subject], ["synflow"], 0.01, measured, quiet)
    assert [row["num_kept"] for row in result.rows] == [3]
    assert result.rows[0]["found_by"] == "one pruning"
    assert "Maximal compression (N / layers): 10,066.7" in result.text
