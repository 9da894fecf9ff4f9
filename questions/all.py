"""All questions, one after the other: prints the tables; with --page also writes them into the page of answers.

    OMP_NUM_THREADS=1 python questions/all.py [--seeds 3] [--only NAME ...] [--page docs/questions.md]

In the page a table stands between `<!-- NAME -->` and `<!-- /NAME -->`, machine and seconds, once all were asked, at
`<!-- machine -->`; pictures go to `images/question_NAME.png` beside it. What is written around the tables is a
person's, and is to be read again when they change.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time
from pathlib import Path

import asking
import torch

NAMES = (
    *("floors", "mean_image", "gradient_only", "scope", "activations"),
    *("depth", "odd_weights", "layer_ratios", "log_flow", "max_flow"),
)


def fill(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of `name`. Raises: ValueError if they are not there once each."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs {begin} and, after it, {end}, once each")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    load = f"load at the start {os.getloadavg()[0]:.1f}"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{model or platform.machine()}, one thread; {versions}; {load}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=asking.at_least_one, default=3, help="how many, from 0 (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--page", type=Path, help="the page to fill in")
    options = parser.parse_args()
    if options.page is not None:  # before the first minute is spent
        try:
            for name in (*NAMES, "machine"):
                fill(options.page.read_text(), name, "")
        except (OSError, ValueError) as error:
            parser.error(str(error))
    torch.set_num_threads(1)
    where = machine()
    print(where, flush=True)
    seconds = 0.0
    questions = {name: importlib.import_module(name) for name in options.only}
    for name, question in questions.items():
        started = time.process_time()
        answer = question.ask(options.seeds)
        seconds += time.process_time() - started
        circumstances = f"{options.seeds} seeds, {time.process_time() - started:.0f} s of CPU time"
        if len(questions) < len(NAMES):
            circumstances = f"{where}; {circumstances}"
        print(f"\n# {name}\n\n{answer.table}\n\n{circumstances}", flush=True)
        if options.page is not None:
            text = f"\n{answer.table}\n\n*{circumstances}*\n"
            options.page.write_text(fill(options.page.read_text(), name, text))
            images = options.page.parent / "images"
            images.mkdir(exist_ok=True)
            asking.save_figure(answer, images / f"question_{name}.png")
    if options.page is not None and len(questions) == len(NAMES):
        text = f"\n{where}. {options.seeds} seeds, {seconds:.0f} s of CPU time for all.\n"
        options.page.write_text(fill(options.page.read_text(), "machine", text))


if __name__ == "__main__":
    main()
