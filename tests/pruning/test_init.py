from __future__ import annotations

import subprocess
import sys

import prunelab.pruning
from prunelab.pruning import Masks, Scoring, keep_highest, prunable_names, prune, score


def test_names_that_others_rely_on() -> None:
    assert {Masks, Scoring, keep_highest, prunable_names, prune, score} <= {
        getattr(prunelab.pruning, name) for name in prunelab.pruning.__all__
    }


def test_needs_torch_only() -> None:
    """Pruning works where Lightning is not installed."""
    program = (
        "import sys; import prunelab.pruning.criteria, prunelab.pruning.preflight;"
        "sys.exit(any(name.split('.')[0] in ('pytorch_lightning', 'lightning', 'torchvision') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
