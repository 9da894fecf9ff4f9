from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.readers import picture_files
from prunelab.data.readers.image_folder import read_image_folder

WritePicture = Callable[..., Path]


@pytest.fixture
def num_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one entry for every time that a whole data set was decoded."""
    calls: list[int] = []
    decode = picture_files._decode

    def counting(files: picture_files.PictureFiles, image_size: int | None) -> ImageArrays:
        calls.append(1)
        return decode(files, image_size)

    monkeypatch.setattr(picture_files, "_decode", counting)
    return calls


def test_decodes_once_and_then_reads_the_cache(folder: Path, num_decoded: list[int]) -> None:
    first, second = read_image_folder(folder), read_image_folder(folder)
    assert len(num_decoded) == 1
    assert (folder.parent / "pets.decoded.pt").is_file()
    assert second.class_names == first.class_names
    assert torch.equal(second.train_images, first.train_images)
    assert torch.equal(second.test_labels, first.test_labels)
    assert sorted(os.listdir(folder.parent)) == ["pets", "pets.decoded.pt"]  # nothing half-written left


def test_a_changed_picture_is_decoded_anew(folder: Path, num_decoded: list[int], write_picture: WritePicture) -> None:
    read_image_folder(folder)
    picture = write_picture(folder / "train" / "cat" / "0.png", red=77)
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))  # clocks may be coarser than the test is quick
    assert read_image_folder(folder).train_images[0, 0, 0, 0] == 77
    assert len(num_decoded) == 2


def test_an_added_and_a_deleted_picture_are_noticed(folder: Path, write_picture: WritePicture) -> None:
    read_image_folder(folder)
    write_picture(folder / "train" / "cat" / "9.png")
    assert len(read_image_folder(folder).train_images) == 13
    (folder / "test" / "dog" / "1.png").unlink()
    assert len(read_image_folder(folder).test_images) == 3


def test_another_image_size_is_decoded_anew(folder: Path) -> None:
    assert read_image_folder(folder).train_images.shape[2:] == (4, 6)
    assert read_image_folder(folder, image_size=2).train_images.shape[2:] == (2, 2)


def test_a_damaged_cache_is_decoded_anew(folder: Path) -> None:
    expected = read_image_folder(folder)
    cache = folder.parent / "pets.decoded.pt"
    for damage in (cache.read_bytes()[:1000], b"", b"not a cache"):
        cache.write_bytes(damage)
        assert torch.equal(read_image_folder(folder).train_images, expected.train_images)


def test_a_cache_that_cannot_be_written_is_a_warning(folder: Path) -> None:
    (folder.parent / "pets.decoded.pt" / "in the way").mkdir(parents=True)
    with pytest.warns(UserWarning, match="the decoded pictures cannot be kept in .*: they will be decoded again"):
        arrays = read_image_folder(folder)
    assert len(arrays.train_images) == 12
    assert sorted(os.listdir(folder.parent)) == ["pets", "pets.decoded.pt"]


def test_scales_and_crops_to_a_square(tmp_path: Path, write_picture: WritePicture) -> None:
    for name, size in (("a.png", (16, 8)), ("b.png", (5, 9)), ("c.png", (8, 8))):
        for part in ("train", "test"):
            write_picture(tmp_path / "pets" / part / "cat" / name, red=90, size=size)
    images = read_image_folder(tmp_path / "pets", image_size=8).train_images
    assert images.shape == (3, 3, 8, 8)
    assert (images[:, 0] == 90).all()


def test_pictures_of_different_sizes(folder: Path, write_picture: WritePicture) -> None:
    write_picture(folder / "train" / "dog" / "9.png", size=(7, 4))
    with pytest.raises(DataError, match=r"6x4 of .*cat/0.png and 7x4 of .*dog/9.png: give image_size"):
        read_image_folder(folder)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken", None])
def test_a_corrupt_picture_is_named(folder: Path, content: bytes | None) -> None:
    picture = folder / "train" / "dog" / "3.png"
    picture.write_bytes(picture.read_bytes()[:-30] if content is None else content)
    with pytest.raises(DataError, match=r"cannot read the picture .*train/dog/3.png \(.*\): replace or delete") as info:
        read_image_folder(folder)
    assert "\n" not in str(info.value)
    assert not (folder.parent / "pets.decoded.pt").exists()


@pytest.mark.parametrize(("ending", "mode"), [("jpg", "L"), ("png", "P"), ("png", "RGBA"), ("bmp", "RGB")])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, write_picture: WritePicture, ending: str, mode: str) -> None:
    for part in ("train", "test"):
        write_picture(tmp_path / "pets" / part / "cat" / f"a.{ending.upper()}", red=200, mode=mode)
    images = read_image_folder(tmp_path / "pets").train_images
    assert images.shape == (1, 3, 4, 6)
    assert images.dtype == torch.uint8


def test_is_quiet_about_a_cache_that_works(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image_folder(folder)
        read_image_folder(folder)


@pytest.fixture
def on_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_files, "num_cores", lambda: 2)
    monkeypatch.setattr(picture_files, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(picture_files, "CHUNK", 3)


def test_two_processes_decode_what_one_does(folder: Path, request: pytest.FixtureRequest) -> None:
    alone = read_image_folder(folder)
    (folder.parent / "pets.decoded.pt").unlink()
    request.getfixturevalue("on_two_processes")
    together = read_image_folder(folder)
    assert torch.equal(together.train_images, alone.train_images)
    assert torch.equal(together.test_images, alone.test_images)


@pytest.mark.usefixtures("on_two_processes")
def test_a_corrupt_picture_is_named_by_two_processes(folder: Path) -> None:
    (folder / "train" / "dog" / "3.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"cannot read the picture .*train/dog/3.png \(.*\): replace or delete") as info:
        read_image_folder(folder)
    assert "\n" not in str(info.value)
    assert os.listdir(folder.parent) == ["pets"]


def test_where_there_is_no_terminal_decoding_leaves_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_image_folder(folder)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("decoding pets ")
    assert "100%" in line
    read_image_folder(folder)
    assert capfd.readouterr().err == ""
