"""Find the files of a data set: annotation file, image folder, and the image file of each `file_name`."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from PIL import Image

from ..model.image_files import IMAGE_FORMATS

SPLIT_NAMES = {
    "val": ("val", "validation", "valid"),
    "valid": ("valid", "val", "validation"),
    "validation": ("validation", "val", "valid"),
}


def find_coco_files(
    data: Path, split: str, annotations: str | Path | None, images: str | Path | None
) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a split, None where `data` is not COCO JSON.

    Raises:
        FileNotFoundError: A named file or folder does not exist, or no image folder fits the annotation file.
    """
    if data.suffix.lower() == ".json":
        data, annotations = data.parent, annotations or data
    named = annotations is not None
    if annotations is None:
        annotations = first_existing(data, annotation_names(split))
        if annotations is None:
            return None
    if not Path(annotations).is_file():
        raise FileNotFoundError(f"There is no annotation file {annotations}.")
    # data/annotations/instances_train.json: the pictures lie beside the folder `annotations`.
    root = data.parent if data.name == "annotations" else data
    names = _image_folders(split, Path(annotations), named)
    folder = Path(images) if images is not None else first_existing(root, names)
    if folder is None or not folder.is_dir():
        looked_for = images or ", ".join(str(root / name) for name in names)
        raise FileNotFoundError(f"No image folder for {annotations}: looked for {looked_for}. Give it with `images`.")
    return Path(annotations), folder


def annotation_names(split: str) -> list[str]:
    """Where the COCO JSON of a split may lie within the data folder."""
    names = []
    for name in SPLIT_NAMES.get(split, (split,)):
        names += [f"annotations/instances_{name}2017.json", f"annotations/instances_{name}.json"]
        names += [f"annotations/{name}.json", f"{name}.json", f"{name}/_annotations.coco.json", f"{name}/labels.json"]
    return names


def matching_split(data: str, split: str, available: Sequence[str]) -> str:
    """The name of a split among those of a data set.

    Raises:
        FileNotFoundError: There is none of a usual name of this split.
    """
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in available:
            return name
    advice = "Name splits with --train_split and --val_split"
    if len(available) == 1:
        advice = "`sap-detr convert-data` with --val-share makes two splits of one"
    raise FileNotFoundError(f'{data} has no split "{split}", it has {[*available]}. {advice}.')


@dataclass
class ImagePaths:
    """The files of a data set's images.

    Attributes:
        paths: Of each image, in the order of the names; where no file fits, the folder and the name as written.
        renamed: Name -> path of files under another name (upper and lower case, suffix, folder) that alone fit.
        ambiguous: Path as written -> what else fits, in words.
    """

    paths: list[str]
    renamed: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, str] = field(default_factory=dict)


def find_images(names: Sequence[str], folder: Path, annotation_file: Path) -> ImagePaths:
    """The file of each `file_name`.

    A name is first read as it stands, below the image folder. Where there is no such file, exporters may have meant it
    from the folder above or from the annotation file's folder, with backslashes, with folders of another machine, in
    other letters (case, accents), or without its suffix: taken where exactly one file fits, and fits no other name.
    """
    folder = folder.resolve()
    result = ImagePaths([os.path.join(folder, name) for name in names])
    listing = cache(_Listing)
    exist = [os.path.basename(path) in listing(os.path.dirname(path)).names for path in result.paths]
    if all(exist):
        return result
    search = _Search(folder, annotation_file.resolve().parent)
    found = {name: search.files(name) for name, there in zip(names, exist, strict=True) if not there}
    wanted_by: dict[str, set[str]] = defaultdict(set)
    for name, path, there in zip(names, result.paths, exist, strict=True):
        for candidate in [path] if there else [candidate for candidate, _ in found[name]]:
            wanted_by[candidate].add(name)
    for place, name in enumerate(names):
        if exist[place] or not found[name]:
            continue
        candidates = found[name]
        if len(candidates) > 1:
            result.ambiguous[result.paths[place]] = " or ".join(path for path, _ in candidates)
        elif len(wanted_by[candidates[0][0]]) > 1:
            shared = ", ".join(sorted(wanted_by[candidates[0][0]])[:3])
            result.ambiguous[result.paths[place]] = f"{candidates[0][0]}, which several names lead to: {shared}"
        else:
            path, as_written = candidates[0]
            result.paths[place] = path
            if not as_written:
                result.renamed[name] = path
    return result


def walk_images(folder: str | Path) -> Iterator[str]:
    """Image files in a folder and its subfolders, also linked ones, sorted, without hidden ones."""
    root, followed = Path(folder).resolve(), set()

    def met_elsewhere(path: str) -> bool:
        """Whether a folder is a link to what the walk meets without it, such as the folder above: it would not end."""
        if not os.path.islink(path):
            return False
        real = Path(path).resolve()
        if real in followed or real.is_relative_to(root) or root.is_relative_to(real):
            return True
        followed.add(real)
        return False

    for parent, folders, files in os.walk(str(folder), followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if not met_elsewhere(os.path.join(parent, name))]
        for name in sorted(files):
            if has_image_suffix(name) and not name.startswith("."):
                yield os.path.join(parent, name)


def has_image_suffix(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(_image_suffixes())


def file_names(folder: str) -> frozenset[str]:
    """Names of the files in a folder, empty where there is none; a link counts where it leads to a file."""
    try:
        with os.scandir(folder) as entries:
            files = (each.name for each in entries if each.is_file(follow_symlinks=False) or os.path.isfile(each))
            return frozenset(files)
    except (OSError, ValueError):  # no folder, or a name that none can have
        return frozenset()


@cache
def _image_suffixes() -> tuple[str, ...]:
    registered = Image.registered_extensions().items()
    return tuple(suffix for suffix, image_format in registered if image_format in IMAGE_FORMATS)


class _Listing:
    """A folder's entries. One look at a folder is far quicker over a network than one at each of its files."""

    def __init__(self, folder: str):
        try:
            self.names = frozenset(os.listdir(folder))
        except (OSError, ValueError):  # no folder, or a name that none can have
            self.names = frozenset()

    @cached_property
    def folded(self) -> dict[str, list[str]]:
        """Entries by their name in any letters."""
        return self._by(lambda name: name)

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        """Image files by their name in any letters, without suffix."""
        suffixes = tuple(Image.registered_extensions())
        return self._by(lambda name: os.path.splitext(name)[0] if name.lower().endswith(suffixes) else "")

    def _by(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        entries = defaultdict(list)
        for name in sorted(self.names):
            entries[_folded(key(name))].append(name)
        return dict(entries)


class _Search:
    """Looks for files whose names are not as written."""

    def __init__(self, folder: Path, annotations: Path):
        self.folder, self.annotations = folder, annotations
        self.roots = list(dict.fromkeys([folder, folder.parent, annotations, annotations.parent]))
        # Beside the annotation file only, where another split's folder of the same content is not met.
        self.roots += [root for name in ("images", "data") if (root := annotations / name) not in self.roots]
        self.listing = cache(_Listing)
        self.folders = cache(self._folders)

    def files(self, name: str) -> list[tuple[str, bool]]:
        """Paths that may be meant, and whether each is only the name as written below another folder."""
        *parts, last = re.split(r"[\\/]+", name)
        if not last:
            return []
        named, shortened = self.folders(tuple(part for part in parts if part not in ("", ".", "..")))
        found = self._matches(named, last) or self._matches(shortened, last)
        paths: dict[str, tuple[str, bool]] = {}
        for folder, each, plain in found:
            path = os.path.join(folder, each)
            if os.path.isfile(path):
                paths.setdefault(os.path.realpath(path) if len(found) > 1 else path, (path, plain))
        return list(paths.values())

    def _matches(self, folders: dict[str, bool], name: str) -> list[tuple[str, str, bool]]:
        """Folder and name of the entries of this name: exactly, else in other letters, else without its suffix."""
        listings = {folder: self.listing(folder) for folder in folders}
        exact = [(folder, name, plain) for folder, plain in folders.items() if name in listings[folder].names]
        key = _folded(name)
        letters = exact or [(at, each, False) for at, listed in listings.items() for each in listed.folded.get(key, ())]
        return letters or [(at, each, False) for at, listed in listings.items() for each in listed.stems.get(key, ())]

    def _folders(self, parts: tuple[str, ...]) -> tuple[dict[str, bool], dict[str, bool]]:
        """Folders that those of a name may mean -> whether each is as written; others, without its first folders."""
        named: dict[str, bool] = {}
        for root in self.roots:
            if not parts and root in (self.folder.parent, self.annotations.parent):
                continue  # a bare name is not looked for above the data set's own folders
            for folder in self._below(str(root), parts):
                as_written = folder == os.path.join(root, *parts) and (bool(parts) or root == self.folder)
                named.setdefault(folder, as_written)
        cuts = range(1, len(parts) + 1)
        shortened = {folder: False for cut in cuts for folder in self._below(str(self.folder), parts[cut:])}
        return named, shortened

    def _below(self, folder: str, parts: Iterable[str]) -> list[str]:
        folders = [folder]
        for part in parts:
            listings = [(each, self.listing(each)) for each in folders]
            folders = [
                os.path.join(each, name)
                for each, listed in listings
                for name in ([part] if part in listed.names else listed.folded.get(_folded(part), ()))
            ]
        return [each for each in folders if os.path.isdir(each)]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _image_folders(split: str, annotation_file: Path, named: bool) -> list[str]:
    """Where images may lie. A file that the user named has a split's folder only if it is called after the split."""
    stem = annotation_file.stem.removeprefix("instances_")
    splits: tuple[str, ...] = SPLIT_NAMES.get(split, (split,))
    if named and not set(splits) & {annotation_file.parent.name, stem, *re.split(r"[\W_]|2017$", stem)}:
        splits = ()
    names = [stem]
    for name in splits:
        names += [f"{name}2017", name]
    beside = [f"{annotation_file.parent.name}/data", "data"] if stem == "labels" else []
    return beside + [f"images/{name}" for name in names] + names + ["images", "data", "."]


def first_existing(root: Path, names: list[str]) -> Path | None:
    """The first of these that exists, in any letters where none is as written."""
    exact = next((root / name for name in names if (root / name).exists()), None)
    if exact is not None and exact != root:
        return exact
    for name in names:
        place = root
        for part in Path(name).parts:
            matches = _Listing(str(place)).folded.get(_folded(part), [])
            if len(matches) != 1:
                break
            place /= matches[0]
        else:
            if place != root:
                return place
    return exact
