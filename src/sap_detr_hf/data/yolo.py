"""Reader of YOLO data sets: `data.yaml` (or Label Studio's `classes.txt`), images, and one label file per image.

As in ultralytics, the labels of `images/a.jpg` are `labels/a.txt`, and an image without that file has no objects. A
polygon becomes the box around it. Keypoints are ignored.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from math import prod
from pathlib import Path

import yaml

from ..model.image_files import upright_size
from .coco import CocoAnnotations, Origins, coco_annotations, parse_number
from .findings import Findings, line_name
from .image_paths import find_images, first_existing, matching_split, walk_images
from .label_files import LabelFiles, image_ids, read_bytes, read_lines

YAML_NAMES = ["data.yaml", "data.yml", "dataset.yaml", "dataset.yml"]
SPLITS = ("train", "val", "valid", "validation", "test")
TOLERANCE = 0.01  # of an image's side, as in ultralytics: annotation tools round
Entry = tuple[str | int | None, str | None, int]  # key, text and line of a value in `data.yaml`


def find_yolo_files(data: Path, split: str) -> LabelFiles | None:
    """The files of a split, None where `data`, a folder or `data.yaml`, is no YOLO data set.

    Raises:
        FileNotFoundError: There is no such split, or a folder or list of images is missing.
        ValueError: `data.yaml` cannot be read, or the names of the classes are missing.
    """
    source = data if data.suffix.lower() in (".yaml", ".yml") else first_existing(data, YAML_NAMES)
    if source is None and any((first_existing(data, ["labels"]) or data / "labels").rglob("*.txt")):
        source = first_existing(data, ["classes.txt"])
        if source is None:
            raise ValueError(f"{data} has labels/*.txt, but no data.yaml or classes.txt with the classes' names.")
    if source is None:
        return None
    fields = _classes_txt(source) if source.suffix == ".txt" else _data_yaml(source)
    texts = {name: [text for _, text, _ in entries if text] for name, entries in fields.items()}
    if not texts.get("names"):
        raise ValueError(f'{source} has no "names" of the classes.')
    for count in texts.get("nc", ()):
        if count != str(len(fields["names"])):
            raise ValueError(f'{source}: "nc" is {count}, but "names" has {len(fields["names"])} classes.')
    name = matching_split(str(source), split, [name for name in dict.fromkeys((*SPLITS, split)) if texts.get(name)])
    roots = [root for text in texts.get("path", ()) if (root := source.parent / text).is_dir()] + [source.parent]
    places = [_place(f'{source}, "{name}"', roots, text) for text in texts[name]]
    names: list[str] = []
    for place in places:
        listed = read_lines(place) if place.is_file() else ()
        names += [os.path.abspath(place.parent / line) for _, line in listed] or walk_images(place.absolute())
    if not names:
        raise ValueError(f"{source}: there are no images in {places[0]}.")
    folder = places[0] if places[0].is_dir() else places[0].parent
    images = find_images(names, folder, source).paths
    labels_name = cache(_labels_name)  # one look at a folder, not one for each image
    labels = [_label_file(image, [root.absolute() for root in roots], labels_name) for image in images]
    files = [str(source), *(str(place) for place in places if place.is_file()), *filter(os.path.isfile, labels)]
    unused: set[str] = set()
    if all(place.is_dir() for place in places):  # of a list, the others may be those of other lists
        found = {str(path) for each in set(map(os.path.dirname, labels)) for path in Path(each).glob("*.[tT][xX][tT]")}
        unused = {path for path in found - set(labels) if os.path.basename(path) != "classes.txt"}
    keypoints = prod(int(text) if text.isdecimal() else 0 for text in texts.get("kpt_shape") or ["0"])
    read = partial(_read, source, names, images, labels, sorted(unused), fields["names"], keypoints)
    return LabelFiles(source, folder, [*files, *sorted(unused)], images, read)


def _data_yaml(source: Path) -> dict[str, list[Entry]]:
    """The fields of a `data.yaml`, read as nodes: these know their lines, and no objects are built."""
    try:
        root = yaml.compose(read_bytes(source).decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}.") from error
    fields: dict[str, list[Entry]] = {}
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        pairs: list[tuple[str | int | None, yaml.Node]] = [(None, value)]
        if isinstance(value, yaml.SequenceNode):
            pairs = list(enumerate(value.value))
        elif isinstance(value, yaml.MappingNode):
            pairs = [(_scalar(number), node) for number, node in value.value]
        fields[str(_scalar(key))] = [(number, _scalar(node), node.start_mark.line + 1) for number, node in pairs]
    return fields


def _scalar(node: yaml.Node) -> str | None:
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _classes_txt(source: Path) -> dict[str, list[Entry]]:
    """The same of Label Studio's export, which has one set of images, or a folder of each split."""
    folders = {"train": "images"} | {
        name: f"images/{name}" for name in SPLITS if (source.parent / "images" / name).is_dir()
    }
    names: list[Entry] = [(number - 1, name, number) for number, name in read_lines(source)]
    return {"names": names} | {name: [(None, folder, 0)] for name, folder in folders.items()}


def _place(where: str, roots: Sequence[Path], text: str) -> Path:
    """A folder or list of images. Roboflow writes `../train/images` for a folder beside `data.yaml`.

    A full path, also of Windows, that does not exist here is of another machine: its last two parts or more must.
    """
    text = text.replace("\\", "/")
    parts, tails = [part for part in text.split("/") if part], []
    if text.startswith("/") or text[1:2] == ":":
        tails = ["/".join(parts[start:]) for start in range(1, len(parts) - 1)]
    places = [root / each for root in roots for each in (text, text.removeprefix("../"), *tails)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{where}: there is no {places[0]}.")
    return found


def _label_file(image: str, roots: Sequence[Path], labels_name: Callable[[Path], str]) -> str:
    """In the last folder called `images` below the data set, that name becomes `labels`; else beside the image.

    Both names may be written in any letters.
    """
    root = next((root for root in roots if Path(image).is_relative_to(root)), Path("/"))
    *folders, name = Path(image).relative_to(root).parts
    folded = [folder.casefold() for folder in folders]
    if "images" in folded:
        place = len(folded) - 1 - folded[::-1].index("images")
        folders[place] = labels_name(root.joinpath(*folders[:place]))
    return str(root.joinpath(*folders, Path(name).stem + ".txt"))


def _labels_name(folder: Path) -> str:
    return (first_existing(folder, ["labels"]) or folder / "labels").name


def _read(
    source: Path,
    names: list[str],
    images: list[str],
    labels: list[str],
    unused: list[str],
    classes: list[Entry],
    keypoints: int,
) -> CocoAnnotations:
    """Read labels and sizes of images; `keypoints` are the numbers of an object's keypoints."""
    findings = Findings()
    for label in unused:
        findings.add("annotation without image", label)
    origins = Origins(categories=[(str(source), line) for *_, line in classes])
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name, _ in classes]
    folders = Counter(map(os.path.dirname, labels))
    missing = {folder: count for folder, count in sorted(folders.items()) if not os.path.isdir(folder)}
    for folder, count in missing.items():
        kind = "no annotations" if missing.keys() == folders.keys() else "no folder of labels"
        findings.add(kind, f"{source}: there is no folder {folder}, for {count} images")
    root = os.path.commonpath(list(map(os.path.dirname, images)))
    ids = image_ids([Path(image).relative_to(root).as_posix() for image in images])
    with ThreadPoolExecutor() as pool:
        for image_id, name, label, size in zip(ids, names, labels, pool.map(_size, images), strict=True):
            if isinstance(size, str):
                findings.add("broken image", size)
                continue
            content["images"].append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
            origins.images.append(label)
            for line, text in _lines(label, findings):
                words = text.split()
                try:
                    box = [share * side for share, side in zip(_box(words, keypoints), (*size, *size), strict=True)]
                except ValueError as error:
                    findings.add("malformed annotation", f"{line_name((label, line))}: {error}")
                    continue
                content["annotations"].append({"image_id": image_id, "category_id": words[0], "bbox": box})
                origins.annotations.append((label, line))
    return coco_annotations(source, content, findings, origins)


def _size(image: str) -> tuple[int, int] | str:
    """Width and height of the upright image, or why they are not known."""
    try:
        return upright_size(image)[:2]
    except (OSError, ValueError) as error:
        return str(error) if image in str(error) else f"{image}: {error}"


def _lines(label: str, findings: Findings) -> list[tuple[int, str]]:
    try:
        return list(read_lines(label, errors="strict")) if os.path.isfile(label) else []
    except ValueError as error:
        findings.add("malformed annotation", f"{label}: {error}")
        return []


def _box(words: Sequence[str], keypoints: int) -> list[float]:
    """x, y, width, height as shares of the image."""
    if len(words) != 5 + keypoints and (keypoints or len(words) < 7 or len(words) % 2 == 0):
        form = f"{5 + keypoints} with keypoints" if keypoints else "a polygon 7 or more (class, x, y, x, y, x, y)"
        raise ValueError(f"it has {len(words)} numbers; a box has 5 (class, center x, center y, width, height), {form}")
    numbers = []
    for place, word in enumerate(words[1:5] if keypoints else words[1:], 2):
        try:
            numbers.append(parse_number(word))
        except ValueError as error:
            raise ValueError(f"number {place} {error}") from error
        if not -TOLERANCE <= numbers[-1] <= 1 + TOLERANCE:
            raise ValueError(f"number {place} is {word}, not a share of the image's width or height (0 to 1)")
    if len(numbers) > 4:
        xs, ys = numbers[::2], numbers[1::2]
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    x, y, width, height = numbers
    return [x - width / 2, y - height / 2, width, height]
