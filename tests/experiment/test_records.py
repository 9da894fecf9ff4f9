from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunelab
from prunelab.experiment.errors import RunError
from prunelab.experiment.records import read_record, versions, write_record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = {
        "name": "tiny",
        "density": 0.1,
        "collapsed_layers": [],
        "layer_densities": {"a": 1 / 3},
        "val_accuracy": None,
    }
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record
    assert json.loads((tmp_path / "record.json").read_text()) == record


def test_no_record_yet(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_record(tmp_path / "record.json") is None
    assert read_record(tmp_path / "file" / "record.json") is None


@pytest.mark.parametrize("content", [b"", b'{"name": "ti', b"[1, 2]", b"null", b"\xff\xfe"])
def test_a_damaged_record_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(RunError, match=r"record\.json .*: delete it to finish the run from its checkpoint"):
        read_record(tmp_path / "record.json")


def test_versions_of_what_computes_the_result() -> None:
    found = versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["prunelab"] == prunelab.__version__
    assert all(isinstance(value, str) for value in found.values())
