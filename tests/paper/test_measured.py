from __future__ import annotations

import json

import pytest

from prunelab.experiment.errors import RunError


def test_a_measurement_is_made_once_for_its_key(measured, tmp_path):
    calls = []

    def measure() -> list[int]:
        calls.append(1)
        return [1, 2]

    assert measured.get({"a": 1}, measure) == measured.get({"a": 1}, measure) == [1, 2]
    assert len(calls) == 1
    assert measured.get({"a": 2}, measure) == [1, 2]
    assert len(calls) == 2
    files = sorted((tmp_path / "measured").iterdir())
    assert len(files) == 2
    assert {json.loads(file.read_text())["key"]["a"] for file in files} == {1, 2}


def test_an_interrupted_measurement_leaves_nothing(measured, tmp_path):
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured.get({}, fail)
    assert not (tmp_path / "measured").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"'])
def test_a_damaged_file_is_named(measured, tmp_path, content):
    measured.get({}, lambda: 1)
    (file,) = (tmp_path / "measured").iterdir()
    file.write_text(content)
    with pytest.raises(RunError, match=f"{file.name} is damaged"):
        measured.get({}, lambda: 1)
