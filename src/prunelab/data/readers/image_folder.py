"""Any folder of pictures: root/train/<class>/* and root/test/<class>/*."""

from __future__ import annotations

from pathlib import Path

from prunelab.data.arrays import ImageArrays
from prunelab.data.errors import DataError
from prunelab.data.readers.picture_files import Picture, PictureFiles, pictures_in, read_pictures


def read_image_folder(root: str | Path, image_size: int | None = None) -> ImageArrays:
    """The pictures of `root/train/<class>/*` and `root/test/<class>/*` as RGB; classes are sorted by name.

    image_size and the cache beside `root`: see `read_pictures`. Hidden folders and files, and files whose
    name does not end like a picture's, are left out.
    Raises DataError for a missing folder, a class without pictures, or train and test classes that differ.
    """
    root = Path(root).expanduser()
    class_names, test_names = (_class_names(root / part) for part in ("train", "test"))
    if class_names != test_names:
        differ = ", ".join(sorted(set(class_names) ^ set(test_names)))
        raise DataError(f"{root}: train and test need the same class folders, but only one of them has {differ}")
    train, test = (_pictures(root, part, class_names) for part in ("train", "test"))
    return read_pictures(PictureFiles(root, train, test, class_names), image_size)


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"no folder {folder.absolute()}: an image folder holds train/<class>/* and test/<class>/*")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder} is empty: it needs one folder of pictures per class")
    return tuple(names)


def _pictures(root: Path, part: str, class_names: tuple[str, ...]) -> list[Picture]:
    pictures: list[Picture] = []
    for label, name in enumerate(class_names):
        found = pictures_in(root, f"{part}/{name}", label)
        if not found:
            raise DataError(f"class folder {root / part / name} has no pictures: add some or delete it")
        pictures += found
    return pictures
