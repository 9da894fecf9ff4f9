"""Tiny ImageNet: 200 classes of 64 x 64 pictures, downloaded, unpacked and decoded once."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import track

from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.readers.downloads import checksum, fetch, unavailable
from prunelab.data.readers.picture_files import Picture, PictureFiles, pictures_in, read_pictures

NAME = "Tiny ImageNet"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"


def read_tiny_imagenet(
    data_dir: str | Path = "data", download: bool = True, url: str = URL, md5: str = MD5
) -> ImageArrays:
    """100,000 training and 10,000 test colour pictures (3, 64, 64) of 200 classes, named by WordNet number.

    Reads `data_dir/tiny-imagenet-200`; where there is none, unpacks the zip file of that name, downloaded
    first where that is missing too. The labels of the original test folder are not public: the validation
    folder, labelled by `val_annotations.txt`, is the test set here. Reference: Stanford CS231N, 2015.
    """
    root = Path(data_dir).expanduser() / FOLDER
    if not root.is_dir():
        _unpack(_archive(root.with_suffix(".zip"), download, url, md5), root)
    return read_pictures(_list_files(root))


def _archive(archive: Path, download: bool, url: str, md5: str) -> Path:
    if not archive.exists():
        if not download:
            raise unavailable(NAME, "no download, as download is false", archive, "no file")
        fetch(NAME, url, archive, md5)
    elif (found := checksum(archive)) != md5:
        raise DataError(f"{archive} is damaged (MD5 {found} instead of {md5}): delete it to have it downloaded")
    return archive


def _unpack(archive: Path, root: Path) -> None:
    """Into a temporary folder first, so that a folder `root` is always complete."""
    part = root.with_name(f"{root.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(archive) as content:
            for member in track(content.infolist(), f"unpacking {archive.name}", console=Console(stderr=True)):
                content.extract(member, part)
        os.replace(part / FOLDER, root)
    except OSError as error:
        raise DataError(f"cannot unpack {archive} beside it ({error}): make room or fix the permissions") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _list_files(root: Path) -> PictureFiles:
    train_folder, annotations = root / "train", root / "val" / "val_annotations.txt"
    if not train_folder.is_dir() or not annotations.is_file():
        raise DataError(f"{root.absolute()} needs train/ and val/val_annotations.txt: delete it to have it made anew")
    class_names = tuple(sorted(path.name for path in train_folder.iterdir() if path.is_dir()))
    train: list[Picture] = []
    for label, name in enumerate(class_names):
        train += pictures_in(root, f"train/{name}/images", label)
    return PictureFiles(root, train, _list_test_files(root, annotations, class_names), class_names)


def _list_test_files(root: Path, annotations: Path, class_names: tuple[str, ...]) -> list[Picture]:
    """Lines of `annotations` are tab-separated: file name, class, and a box that is not needed."""
    labels = {name: label for label, name in enumerate(class_names)}
    test = []
    for line in annotations.read_text().splitlines():
        file_name, class_name = line.split("\t")[:2]
        path = root / "val" / "images" / file_name
        if class_name not in labels or not path.is_file():
            raise DataError(f"{annotations}: {file_name} of class {class_name} has no picture or no training class")
        stat = path.stat()
        test.append(Picture(f"val/images/{file_name}", labels[class_name], stat.st_size, stat.st_mtime_ns))
    return test
