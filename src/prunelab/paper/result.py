"""What an experiment hands over, and the files that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prunelab.report.figure_style import save_figure
from prunelab.report.tidy import csv_text, write_text

Say = Callable[[str], None]
SUFFIXES = (".csv", ".png", ".pdf", ".md")  # the text last: it tells whose they are


@dataclass(frozen=True)
class Result:
    """rows: one a line of the CSV. text: markdown, with the numbers that matter."""

    rows: Sequence[dict[str, Any]]
    text: str
    figure: Figure

    def write(self, path: Path) -> None:
        """Write `path` with the suffixes .csv, .md, .png and .pdf: the same bytes for the same result."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path.with_name(f"{path.name}.csv"), csv_text(self.rows))
        write_text(path.with_name(f"{path.name}.md"), f"{self.text}\n")
        save_figure(self.figure, path)


def set_another_aside(path: Path, title: str) -> Path | None:
    """Rename the four files of `path` if their text does not begin with `title`, so if another command made them:
    `path`_1, or the next number that is free. Returns what they are called now."""
    text = path.with_name(f"{path.name}.md")
    if not text.exists() or text.read_text(encoding="utf-8").startswith(title):
        return None
    names = (f"{path.name}_{number}" for number in count(1))
    kept = path.with_name(next(name for name in names if not path.with_name(f"{name}.md").exists()))
    for suffix in SUFFIXES:
        file = path.with_name(f"{path.name}{suffix}")
        if file.exists():
            file.rename(kept.with_name(f"{kept.name}{suffix}"))
    return kept
