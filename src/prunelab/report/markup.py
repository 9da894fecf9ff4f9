"""How a table is written: markdown, which a terminal shows too, and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from prunelab.report.repeats import aligned_table
from prunelab.report.table import aligned_columns

Mark = Literal["best", "near", ""]
Cell = tuple[str, Mark]
Lines = Sequence[Sequence[Cell]]  # the first is the header

PLAIN = {"best": "{} *", "near": "{} †"}
MARKDOWN = {"best": "**{}**", "near": "{} †", "": "{}"}
LATEX = {"best": r"\textbf{{{}}}", "near": r"\underline{{{}}}", "": "{}"}

_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "²": r"\textsuperscript{2}",
}
_NUMBER = re.compile(r"-|missing|[-+\d.,e]+( ± [\d.]+| of \d+)?")


def plain(lines: Lines) -> str:
    """For a terminal: aligned to the right, and narrow, as headers take a line for each word."""
    columns = {}
    for (name, _), *cells in zip(*lines, strict=True):
        unmarked = "{}  " if any(mark for _, mark in cells) else "{}"
        texts = [(PLAIN[mark] if mark else unmarked).format(text) for text, mark in cells]
        columns[name.replace(" ", "\n")] = texts
    return "\n".join(aligned_columns(columns))


def markdown(lines: Lines) -> str:
    return aligned_table([[MARKDOWN[mark].format(text.replace("|", r"\|")) for text, mark in line] for line in lines])


def latex(lines: Lines, heading: str = "", below: str = "") -> str:
    """A longtable, which goes on over pages, with the rules of booktabs; in small letters, so that it is not too wide;
    numbers to the right."""
    sides = [
        "r" if all(_NUMBER.fullmatch(text) for text, _ in column[1:]) else "l" for column in zip(*lines, strict=True)
    ]
    body = [" & ".join(LATEX[mark].format(latex_text(text)) for text, mark in line) + r" \\" for line in lines[1:]]
    parts = [
        r"\begingroup\footnotesize\setlength{\tabcolsep}{4pt}",
        r"\setlength{\LTpre}{\smallskipamount}\setlength{\LTpost}{\smallskipamount}",
        *([rf"\noindent\textbf{{{latex_text(heading)}}}\par\nopagebreak"] if heading else []),
        rf"\begin{{longtable}}[l]{{{''.join(sides)}}}",
        r"\toprule",
        " & ".join(_stacked(text) for text, _ in lines[0]) + r" \\",
        *(r"\midrule", r"\endhead", *body, r"\bottomrule", r"\end{longtable}"),
        r"\addtocounter{table}{-1}",  # it counts, though it has no caption
        *([rf"\noindent {latex_text(below)}\par\smallskip"] if below else []),
        r"\endgroup",
    ]
    return "\n".join(parts)


def _stacked(header: str) -> str:
    """In two lines if it has several words."""
    first, _, last = header.replace(" (", "\0(").rpartition(" ")
    text = latex_text(last.replace("\0", " "))
    return rf"\shortstack{{{latex_text(first)}\\{text}}}" if first else text


def latex_text(text: str) -> str:
    """The text with what LaTeX takes for commands escaped."""
    return "".join(_SPECIAL.get(character, character) for character in text)
