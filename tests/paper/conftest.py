from __future__ import annotations

from pathlib import Path

import pytest

from prunelab.paper.measured import Measured
from prunelab.paper.subject import Subject


@pytest.fixture
def subject() -> Subject:
    """A small fully connected network on digits: layers of 19,200, 10,000 and 1,000 weights."""
    return Subject(network="mlp", num_classes=10, image_size=8, samples_per_class=2)


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    return Measured(tmp_path / "measured")
