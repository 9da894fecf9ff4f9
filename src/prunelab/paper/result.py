"""What an experiment hands over, and the files that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prunelab.report.figure_style import save_figure
from prunelab.report.tidy import csv_text, write_text

Say = Callable[[str], None]


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
