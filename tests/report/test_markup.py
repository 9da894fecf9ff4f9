from __future__ import annotations

import re

from prunelab.report.markup import latex, latex_text, markdown, plain

LINES = [
    [("criterion", ""), ("n", ""), ("test accuracy (%)", "")],
    [("grasp, a_b|c", ""), ("2 of 3", ""), ("88.00 ± 2.00", "best")],
    [("snip & co", ""), ("3", ""), ("87.5", "near")],
    [("x%", ""), ("0 of 3", ""), ("missing", "")],
]


def test_for_a_terminal():
    assert [line.rstrip() for line in plain(LINES).splitlines()] == [
        "                                test",
        "                            accuracy",
        "   criterion       n             (%)",
        "grasp, a_b|c  2 of 3  88.00 ± 2.00 *",
        "   snip & co       3          87.5 †",
        "          x%  0 of 3       missing",
    ]


def test_markdown():
    lines = markdown(LINES).splitlines()
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[2])[1:-1]] == [
        "grasp, a_b\\|c",
        "2 of 3",
        "**88.00 ± 2.00**",
    ]
    assert "| 87.5 † " in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_latex():
    assert latex(LINES, "5 & 6", "Below: 5 % of a_b.") == "\n".join(
        [
            r"\begingroup\footnotesize\setlength{\tabcolsep}{4pt}",
            r"\setlength{\LTpre}{\smallskipamount}\setlength{\LTpost}{\smallskipamount}",
            r"\noindent\textbf{5 \& 6}\par\nopagebreak",
            r"\begin{longtable}[l]{lrr}",
            r"\toprule",
            r"criterion & n & \shortstack{test\\accuracy (\%)} \\",
            r"\midrule",
            r"\endhead",
            r"grasp, a\_b\textbar{}c & 2 of 3 & \textbf{88.00 $\pm$ 2.00} \\",
            r"snip \& co & 3 & \underline{87.5} \\",
            r"x\% & 0 of 3 & missing \\",
            r"\bottomrule",
            r"\end{longtable}",
            r"\addtocounter{table}{-1}",
            r"\noindent Below: 5 \% of a\_b.\par\smallskip",
            r"\endgroup",
        ]
    )


def test_everything_that_latex_would_take_for_a_command_is_escaped():
    assert latex_text(r"\a_b^c~d {50%} $1 #2 & <x>") == (
        r"\textbackslash{}a\_b\textasciicircum{}c\textasciitilde{}d \{50\%\} \$1 \#2 \& \textless{}x\textgreater{}"
    )
    assert latex_text("plain, 1e-07 (x)") == "plain, 1e-07 (x)"
