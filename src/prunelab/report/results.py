"""What many runs found: tidy files, tables, pictures and TensorBoard, all from the records of their levels."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunelab.report.figure_style import save_figure
from prunelab.report.figures import accuracy_figure, layer_profiles_figure
from prunelab.report.groups import Group, groups
from prunelab.report.markup import Lines, latex, latex_text, markdown, plain
from prunelab.report.results_board import write_board
from prunelab.report.results_table import (
    COLLAPSE_SAYS,
    COLUMNS_SAY,
    MARKS_SAY,
    collapse_lines,
    curves_lines,
    expectations,
    expected_lines,
    results_lines,
    summary_rows,
)
from prunelab.report.tidy import FinishedCell, Results, csv_text, write_parquet, write_text

__all__ = ["FinishedCell", "Results", "write_results"]

WIDTH = 100  # of a terminal
MOST_REASONS = 5
LATEX_NEEDS = "% \\usepackage{booktabs,longtable}, then \\input{results}; a longtable needs pages of one column"
ACCURACY, LAYERS = "accuracy", "layer_densities"  # pictures; of several settings LAYERS-setting
PARQUET_NEEDS = "results.parquet is not written, as pyarrow is not installed: pip install 'prunelab[sweep]'"


def write_results(
    folder: Path,
    title: str,
    cells: Sequence[FinishedCell],
    axes: Sequence[str],
    expected: Sequence[Mapping[str, Any]] = (),
    *,
    plots: bool = True,
) -> str:
    """Write everything that is known of `cells` into `folder`; returns what to print, which ends with where it is.

    Files: results.csv and .parquet (tidy: one row a level of a run; parquet if pyarrow is installed), layers.csv (one
    row a layer), summary.csv (mean, std, n), results.md and results.tex (the tables); with `plots` accuracy.png and
    layer_densities.png, both also as PDF, and the same in tensorboard/.

    cells: all that belong together, those without records too (`FinishedCell.missing`): what is not given cannot be
    told as missing. axes: what they differ in. expected: see `expectations`. plots: whether to draw, which takes
    seconds, and to remove pictures of settings that are no more; without, those of before stay.
    Raises: what `groups` and `expectations` raise; nothing is written then.
    """
    results = Results.of(cells, axes)
    found = groups(results)
    sections = _sections(found, expected)
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder)
    parquet = write_parquet(folder, results)
    write_text(folder / "summary.csv", csv_text(summary_rows(found)))
    if plots:
        _draw(folder, title, results, found)
    missing = _missing(cells)
    pictures = [f"![{path.stem}]({path.name})" for path in _pictures(folder) if path.suffix == ".png"]
    write_text(folder / "results.md", "\n\n".join([f"# {title}", *_markdown(sections), *missing, *pictures]) + "\n")
    write_text(folder / "results.tex", "\n\n".join([LATEX_NEEDS, *_latex(sections), *map(latex_text, missing)]) + "\n")
    said = [*missing, *([] if parquet else [PARQUET_NEEDS]), f"tables and pictures in {folder}"]
    return "\n\n".join([title, *_plain(sections), "\n".join(said)])


@dataclass(frozen=True)
class _Section:
    heading: str
    lines: Lines
    below: str = ""


def _draw(folder: Path, title: str, results: Results, found: Sequence[Group]) -> None:
    pictures = {}
    if any(group.rows for group in found):
        pictures[ACCURACY] = accuracy_figure(found, title=title)
    for setting in dict.fromkeys(group.setting for group in found if group.rows and not group.is_dense):
        name = "-".join([LAYERS, *re.findall(r"[\w.]+", setting)])
        of_setting = [group for group in found if group.setting == setting]
        pictures[name] = layer_profiles_figure(of_setting, results.layers, title=setting or title)
    for name, figure in pictures.items():
        save_figure(figure, folder / name)
    for path in _pictures(folder):
        if path.stem not in pictures:
            path.unlink()
    write_board(folder / "tensorboard", found, pictures)


def _pictures(folder: Path) -> list[Path]:
    """Those that `_draw` has written, now or before; others may lie beside them."""
    found = sorted(path for suffix in (".png", ".pdf") for path in folder.glob(f"*{suffix}"))
    return [path for path in found if path.stem in (ACCURACY, LAYERS) or path.stem.startswith(f"{LAYERS}-")]


def _sections(found: Sequence[Group], expected: Sequence[Mapping[str, Any]]) -> list[_Section]:
    sections = [_Section("", results_lines(found), f"{COLUMNS_SAY} {MARKS_SAY}")]
    if curves := curves_lines(found):
        sections.append(_Section("Test accuracy (%) of the last epoch, over compression", curves))
    if any(group.collapsed or group.lacks_runs for group in found):
        sections.append(_Section("Collapse", collapse_lines(found), COLLAPSE_SAYS))
    if compared := expectations(found, expected):
        sections.append(_Section("Expected", expected_lines(compared)))
    return sections


def _missing(cells: Sequence[FinishedCell]) -> list[str]:
    """How many runs are, and the most common reasons; the file results.csv has all."""
    reasons = Counter(cell.missing for cell in cells if not cell.is_finished).most_common()
    lines = [f"missing: {count} of {len(cells)} runs, {reason}" for reason, count in reasons[:MOST_REASONS]]
    more = sum(count for _, count in reasons[MOST_REASONS:])
    return [*lines, *([f"missing: {more} of {len(cells)} runs, for other reasons (results.csv)"] if more else [])]


def _plain(sections: Sequence[_Section]) -> list[str]:
    texts = [(s.heading, plain(s.lines), textwrap.fill(s.below.format(best="*", near="†"), WIDTH)) for s in sections]
    return [part for text in texts for part in text if part]


def _markdown(sections: Sequence[_Section]) -> list[str]:
    texts = [
        (f"## {s.heading}" if s.heading else "", markdown(s.lines), s.below.format(best="bold", near="†"))
        for s in sections
    ]
    return [part for text in texts for part in text if part]


def _latex(sections: Sequence[_Section]) -> list[str]:
    return [latex(s.lines, s.heading, s.below.format(best="bold", near="underlined")) for s in sections]
