from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.readers.tiny_imagenet import read_tiny_imagenet


@pytest.fixture
def public(tmp_path: Path, write_picture: Callable[..., Path]) -> Path:
    """A folder with an archive like the published one: 2 classes of 3 training and 1 validation picture."""
    root = tmp_path / "public" / "tiny-imagenet-200"
    lines = []
    for label, name in enumerate(("n01", "n02")):
        for index in range(3):
            write_picture(root / "train" / name / "images" / f"{name}_{index}.JPEG", 100 * label)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
        write_picture(root / "val" / "images" / f"val_{label}.JPEG", 100 * label + 50)
        lines.append(f"val_{label}.JPEG\t{name}\t0\t32\t44\t62\n")
    write_picture(root / "test" / "images" / "test_0.JPEG", 255)
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    shutil.make_archive(str(root), "zip", root.parent, root.name)
    shutil.rmtree(root)
    return root.parent


def read(data_dir: Path, public: Path, md5: str | None = None) -> ImageArrays:
    archive = public / "tiny-imagenet-200.zip"
    md5 = md5 or hashlib.md5(archive.read_bytes()).hexdigest()
    return read_tiny_imagenet(data_dir, url=archive.as_uri(), md5=md5)


def check(arrays: ImageArrays) -> None:
    assert arrays.class_names == ("n01", "n02")
    assert arrays.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays.test_labels.tolist() == [1, 0]  # the validation folder, in the order of its annotations
    assert arrays.train_images.shape == (6, 3, 4, 6)
    assert [round(red / 50) for red in arrays.test_images[:, 0, 0, 0].tolist()] == [3, 1]


def test_downloads_unpacks_and_reads(tmp_path: Path, public: Path) -> None:
    check(read(tmp_path / "data", public))
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names == ["tiny-imagenet-200", "tiny-imagenet-200.decoded.pt", "tiny-imagenet-200.zip"]


def test_a_folder_that_is_there_needs_no_download(tmp_path: Path, public: Path) -> None:
    read(tmp_path / "data", public)
    (tmp_path / "data" / "tiny-imagenet-200.zip").unlink()
    check(read_tiny_imagenet(tmp_path / "data", url="file:///nowhere", md5=""))


def test_an_archive_that_is_there_needs_no_download(tmp_path: Path, public: Path) -> None:
    archive = public / "tiny-imagenet-200.zip"
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    check(read_tiny_imagenet(public, download=False, url="file:///nowhere", md5=md5))


def test_failed_download_says_what_was_tried_and_what_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError) as info:
        read_tiny_imagenet(tmp_path / "data", url="file:///nowhere/tiny.zip")
    message = str(info.value)
    assert "tried file:///nowhere/tiny.zip" in message
    assert str(tmp_path / "data" / "tiny-imagenet-200.zip") in message
    assert "configs/quickstart.yaml" in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()


def test_without_download_says_where_the_file_belongs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"download is false; expected at .*tiny-imagenet-200.zip"):
        read_tiny_imagenet(tmp_path, download=False)


def test_download_with_a_bad_checksum_leaves_nothing(tmp_path: Path, public: Path) -> None:
    with pytest.raises(DataError, match=r"what came has MD5 .* instead of 0123"):
        read(tmp_path / "data", public, md5="0123")
    assert not (tmp_path / "data").exists()


def test_damaged_archive_is_named(public: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-imagenet-200.zip is damaged .*: delete it"):
        read(public, public, md5="0123")


def test_annotation_of_a_missing_picture(tmp_path: Path, public: Path) -> None:
    read(tmp_path / "data", public)
    (tmp_path / "data" / "tiny-imagenet-200" / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_annotations.txt: val_1.JPEG of class n02 has no picture"):
        read_tiny_imagenet(tmp_path / "data")


def test_incomplete_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").mkdir()
    with pytest.raises(DataError, match=r"needs train/ and val/val_annotations.txt"):
        read_tiny_imagenet(tmp_path)
