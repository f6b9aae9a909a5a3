"""Find the images and the splits of a dataset's folder, without hidden files."""

import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from posixpath import isabs, normpath

from dp4tl_ffcv.utils import open_file, printable

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_LARGEST_MEMBER = 1 << 30
_SET = re.compile(r"[-_ ]?(set|data|images)$")


def split_of(name: str) -> str | None:
    """Return the split that a name stands for, or None: `Training_set` stands for train."""
    return _SPLIT_NAMES.get(_SET.sub("", name.lower()))


def find(root: Path, *names: str, layout: str) -> Path:
    """Return the first `root/name` that exists, else raise ValueError.

    `layout` says what `root`, the folder of the dataset, must hold.
    """
    for name in names:
        if (root / name).is_dir() or (root / name).is_file():  # no FIFO, which would wait
            return root / name
    where = f"No {' or '.join(map(repr, names))} in" if root.is_dir() else "There is no folder"
    raise ValueError(f"{where} {str(root)!r}. --root must hold {layout}.")


def folders_of(root: Path) -> list[str]:
    """Return the sorted names of the folders in `root`, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(each.name for each in entries if each.name[0] != "." and each.is_dir())


def images_below(folder: str | Path, others: list[str] | None = None) -> list[str]:
    """Return the sorted paths of all image files below `folder`. See `files_below`."""
    return files_below(folder, IMAGE_SUFFIXES, others)


def files_below(
    folder: str | Path, suffixes: tuple[str, ...], others: list[str] | None = None
) -> list[str]:
    """Return the sorted paths of all files below `folder` with `suffixes`, without hidden ones.

    Paths are strings, because a dataset may have a million files. Links to files are followed, and
    broken links are listed, so that they are missed. `others` receives the paths of ignored
    entries: other files, devices, and links to folders.
    """
    found: list[str] = []
    open_folders = [_visible(os.fspath(folder))]
    while open_folders:
        each = next(open_folders[-1], None)
        if each is None:
            open_folders.pop()
        elif each.is_dir(follow_symlinks=False):
            open_folders.append(_visible(each.path))
        elif each.name.lower().endswith(suffixes) and _is_file_or_broken(each):
            found.append(each.path)
        elif others is not None:  # includes links to folders, which may lead back up
            others.append(each.path)
    return found


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name))


def _is_file_or_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


def images_by_class(root: Path, others: list[str] | None = None) -> tuple[list[str], list[str]]:
    """Return the paths of the images in the class folders of `root`, and the class of each."""
    found = {name: images_below(root / name, others) for name in folders_of(root)}
    paths = [path for each in found.values() for path in each]
    return paths, [name for name, each in found.items() for _ in each]


def tell_ignored(paths: Sequence[str]) -> None:
    """Print how many entries were ignored, of which kinds. Print nothing if there are none."""
    if paths:
        kinds = Counter(map(_kind_of, paths)).most_common()
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds[:5])
        more = f", {len(kinds) - 5} other kinds" if len(kinds) > 5 else ""
        print(printable(f"ignored {shown}{more}, such as {paths[0]}"))


def _kind_of(path: str) -> str:
    name = Path(path)
    if name.is_dir():
        return "links to folders"
    if name.suffix.lower() in IMAGE_SUFFIXES:
        return "images outside of class folders" if name.is_file() else "devices"
    return f"*{name.suffix.lower()}" if name.suffix else "files without a suffix"


def read_members(
    archive: Path, names: Collection[str], largest: int = _LARGEST_MEMBER
) -> dict[str, bytes]:
    """Return the content of the files `names` of a tar archive, which may be compressed.

    The archive is read once from front to back, because its headers may lead back for ever.

    Raises:
        ValueError: the archive is damaged, or one of the files has more than `largest` bytes.
    """
    files = {}
    try:
        with open_file(archive) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.name in names else None
                if stream is not None:
                    if not 0 <= member.size <= largest:
                        raise ValueError(f"{archive} has {member.size} bytes of {member.name}")
                    files[member.name] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{archive} is damaged: {error}") from error
    return files


class PathsInside:
    """Paths of files that data name relative to `folder`, which lies in the user's folder `root`.

    Data that someone else made must not choose files elsewhere. So a name may neither be absolute
    nor lead out of `root` by `..` or by a link. Links inside `root` are followed, as in a copy that
    git-annex made. `folder` itself may be a link, which the user made.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._folder = folder
        places = {os.path.realpath(root), os.path.realpath(folder)}
        self._allowed = tuple(os.path.join(place, "") for place in places)  # noqa: PTH118

    def path(self, name: str) -> Path:
        """Return the path of the file `name`.

        Raises:
            ValueError: the name leads out of `root`. The message continues "the name ... ".
        """
        if "\0" in name:
            raise ValueError("is no path")
        path = self._folder / normpath(name)
        if isabs(name) or not os.path.realpath(path).startswith(self._allowed):
            raise ValueError(
                "leads out of --root. Only files below --root are read: put the file itself there "
                "instead of a link, and correct absolute paths and paths with '..'"
            )
        return path


def is_hidden(name: str) -> bool:
    """Return whether a part of a path is hidden, as AppleDouble files `._NAME` are."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
