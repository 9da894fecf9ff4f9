from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from prunelab.data.errors import DataError
from prunelab.data.readers.image_folder import read_image_folder


def test_reads_pictures_labels_and_class_names(folder: Path) -> None:
    arrays = read_image_folder(folder)
    assert arrays.class_names == ("cat", "dog")
    assert arrays.train_images.shape == (12, 3, 4, 6)
    assert arrays.train_images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 100, 110, 120, 130, 140, 150]
    assert arrays.train_labels.tolist() == [0] * 6 + [1] * 6
    assert arrays.test_images[:, 0, 0, 0].tolist() == [5, 15, 105, 115]
    assert arrays.test_labels.tolist() == [0, 0, 1, 1]


def test_leaves_out_hidden_files_and_other_files(folder: Path) -> None:
    (folder / "train" / ".checkpoints").mkdir()
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"no picture")
    (folder / "train" / "cat" / "notes.txt").write_text("no picture")
    (folder / "train" / "README.md").write_text("no class")
    assert len(read_image_folder(folder).train_images) == 12


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere/train: an image folder holds"):
        read_image_folder(tmp_path / "nowhere")


def test_missing_test_folder(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match=r"no folder .*pets/test"):
        read_image_folder(folder)


def test_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"train is empty: it needs one folder of pictures per class"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_class_without_pictures(folder: Path, part: str) -> None:
    for picture in (folder / part / "dog").iterdir():
        picture.unlink()
    with pytest.raises(DataError, match=rf"{part}/dog has no pictures"):
        read_image_folder(folder)


def test_classes_that_differ(folder: Path) -> None:
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    with pytest.raises(DataError, match="same class folders, but only one of them has dog, fox"):
        read_image_folder(folder)
