from __future__ import annotations

import hashlib
from pathlib import Path

from prunelab.data.readers.downloads import checksum, fetch, one_line


def test_fetches_a_file_into_a_new_folder(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(b"x" * 3_000_000)
    fetch("a file", source.as_uri(), target, hashlib.md5(source.read_bytes()).hexdigest())
    assert target.read_bytes() == source.read_bytes()
    assert list(target.parent.iterdir()) == [target]


def test_checksum_is_the_md5_sum(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert checksum(tmp_path / "empty") == "d41d8cd98f00b204e9800998ecf8427e"


def test_reasons_fit_on_one_line() -> None:
    assert one_line(OSError("two\n lines")) == "two lines"
    assert one_line(EOFError()) == "EOFError"
