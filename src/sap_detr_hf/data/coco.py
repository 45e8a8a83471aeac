"""Reader of COCO JSON, and the rules for ids, numbers and names that all readers share.

Whole numbers may be written as `1`, `1.0` or `"1"`. Image ids may also be text, and results keep them; if one id of a
file is text, all are. `null` means missing: `area` is then width x height, `iscrowd` 0. An entry that cannot be read is
skipped and reported as an error, see `findings.py`.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .findings import Boxes, Findings, line_name

_WHOLE = re.compile(r"\s*[+-]?\d{1,19}(\.0*)?\s*", re.ASCII)
_DECIMAL = re.compile(r"\s*[+-]?\d{1,19}(\.\d*)?\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
_BREAKS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, half a character, line and paragraph separators


@dataclass
class CocoAnnotations:
    """A COCO JSON.

    Attributes:
        image_ids: (images,) int64 or text, in the order of the file.
        file_names: Of each image.
        sizes: (images, 2) int64 width, height; 0 where the file does not say.
        boxes: Of the listed images.
        categories: Id -> name.
        findings: Entries that cannot be read, and what is missing.
        label_files: Of each image, where each has its own; None for a COCO JSON.
    """

    image_ids: np.ndarray
    file_names: list[str]
    sizes: np.ndarray
    boxes: Boxes
    categories: dict[int, str]
    findings: Findings = field(default_factory=Findings)
    label_files: list[str] | None = None


@dataclass
class Origins:
    """Where the entries of a COCO-like dictionary stand in label files of another format, for messages.

    Attributes:
        images: The label file of each image.
        annotations: Label file and line of each annotation.
        categories: Label file and line of each category.
    """

    images: list[str] = field(default_factory=list)
    annotations: list[tuple[str, int]] = field(default_factory=list)
    categories: list[tuple[str, int]] = field(default_factory=list)


def read_coco(path: str | Path, images_only: bool = False) -> CocoAnnotations:
    """Read a COCO JSON in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    With `images_only`, annotations and categories are left out, for prediction.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not JSON (says in which line), or has no list of images.
    """
    path = Path(path)
    return coco_annotations(path, _content(path), Findings(), images_only=images_only)


def coco_annotations(
    path: Path, content: dict[str, Any], findings: Findings, origins: Origins | None = None, images_only: bool = False
) -> CocoAnnotations:
    """Read the dictionary of a COCO JSON, or one made of another format's label files (then with `origins`).

    Raises:
        ValueError: No image can be read.
    """
    of_images = None if origins is None else origins.images
    ids, names, sizes, readable = _images(content["images"], findings, of_images)
    if not ids:
        findings.refuse_errors(path, use="predicted" if images_only else "trained on or evaluated")
    if not images_only:
        for kind in ("annotations", "categories"):
            if not isinstance(content.get(kind), list):
                findings.add(f"no {kind}", f'{path} has no list "{kind}"')
                content[kind] = []
    place_of: dict[Hashable, int] = {}
    for place, image_id in enumerate(ids):
        place_of.setdefault(image_id, place)
    of_boxes, of_categories = (None, None) if origins is None else (origins.annotations, origins.categories)
    boxes = read_boxes([] if images_only else content["annotations"], place_of, findings, str(path), of_boxes)
    categories = {} if images_only else read_categories(content["categories"], findings, of_categories)
    label_files = None if of_images is None else [of_images[place] for place in readable]
    return CocoAnnotations(id_array(ids), names, sizes, boxes, categories, findings, label_files)


def parse_whole_number(value: Any) -> int:
    """The number that a value stands for.

    Raises:
        ValueError: The value is not a whole number of 64 bits; the message shows it.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _unlike(value, "a whole number")
    if not -(2**63) <= value < 2**63:
        raise _unlike(value, "a whole number of 64 bits")
    return value


def parse_number(value: Any) -> float:
    """The number that a value stands for; infinity where it is too large.

    Raises:
        ValueError: The value is not a number; the message shows it.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _unlike(value, "a number")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def parse_image_id(value: Any) -> int | str:
    """Return an image id: a whole number, or text that is not a number.

    Raises:
        ValueError: The value is neither; the message shows it.
    """
    if isinstance(value, str) and value.strip() and not _DECIMAL.fullmatch(value) and not _half_characters(value):
        return str(value)
    return parse_whole_number(value)


def parse_box(value: Any) -> list[float]:
    """The four numbers x, y, width, height.

    Raises:
        ValueError: They are not four, or no numbers.
    """
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise _unlike(value, "four numbers")
    if len(value) != 4:
        raise ValueError(f"has {len(value)} numbers, not 4")
    return [parse_number(each) for each in value]


def parse_crowd(value: Any) -> bool:
    """Whether a box is a crowd region: 0 or 1, 0 where it is missing.

    Raises:
        ValueError: It is another value.
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return bool(value)
    try:
        return bool((0, 1).index(parse_whole_number(value)))
    except ValueError:
        raise _unlike(value, "0 or 1") from None


def parse_name(value: Any) -> str:
    """A category's name in one line.

    Raises:
        ValueError: It is missing or empty.
    """
    if isinstance(value, (list, dict, bool)) or value is None or not str(value).strip():
        raise _unlike(value, "a name")
    name = str(value)
    if any(unicodedata.category(letter) in _BREAKS for letter in name):
        name = " ".join("".join(" " if unicodedata.category(c) in _BREAKS else c for c in name).split())
    return name or parse_name(None)


def id_array(ids: Sequence[int | str]) -> np.ndarray:
    """Image ids as an array: int64, or text where one of them is text."""
    if any(isinstance(each, str) for each in ids):
        return np.array([str(each) for each in ids])
    return np.array(ids, dtype=np.int64)


def read_boxes(
    entries: Sequence[Any],
    place_of: Mapping[Hashable, int],
    findings: Findings,
    source: str = "annotations",
    origins: Sequence[tuple[str, int]] | None = None,
) -> Boxes:
    """COCO annotations (`image_id`, `category_id`, `bbox`, optional `area` and `iscrowd`) as arrays.

    Args:
        entries: The annotations.
        place_of: Image id -> place in the list of images.
        findings: Gets the entries that cannot be read, and the number of those whose image is not listed.
        source: Of the annotations, for messages.
        origins: Label file and line of each, where they are not of a COCO JSON.
    """
    rows, kept, unlisted = [], [], []
    for place, entry in enumerate(entries):
        try:
            image_id = _field(entry, "image_id", parse_image_id)
            category_id, box = _field(entry, "category_id", parse_whole_number), _field(entry, "bbox", parse_box)
            area, crowd = _field(entry, "area", _area), _field(entry, "iscrowd", parse_crowd)
        except ValueError as error:
            where = f"annotation {_short(entry)}" if origins is None else line_name(origins[place])
            findings.add("malformed annotation", f"{where}: {error}")
            continue
        if image_id in place_of:
            area = max(box[2], 0.0) * max(box[3], 0.0) if area is None else area
            rows.append((place_of[image_id], category_id, box, area, crowd))
            kept.append(place)
        else:
            unlisted.append(image_id)
    if unlisted:
        findings.add("annotation without image", f"{source}: image id {unlisted[0]!r}", len(unlisted))
    image, category, boxes, areas, crowds = zip(*rows, strict=True) if rows else [()] * 5
    return Boxes(
        np.array(image, dtype=np.int64),
        np.array(category, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(areas, dtype=np.float64),
        np.array(crowds, dtype=bool),
        None if origins is None else [origins[place] for place in kept],
    )


def standard_objects(objects: Any, category_column: str = "category", box_format: str = "xywh") -> dict[str, list]:
    """A row's `objects` as lists: `bbox` x, y, width, height in pixels, `category`, `area`, `iscrowd`.

    Args:
        objects: A dictionary of lists, where `area` and `iscrowd` may be missing, or a list of dictionaries.
        category_column: Its column of category ids.
        box_format: "xywh", or "xyxy" for boxes x1, y1, x2, y2.

    Raises:
        ValueError: Something is missing, of unequal length, or cannot be read; says what.
    """
    if isinstance(objects, (list, tuple)):
        if any(each is None for each in objects):
            raise ValueError("one of its objects is null")
        objects = {name: [entry[name] for entry in objects] for name in (objects[0] if objects else ())}
        objects = objects or {"bbox": [], category_column: []}
    if objects is None:
        raise ValueError("objects is null; an image without boxes has empty lists")
    rules = {"bbox": ("bbox", parse_box), "category": (category_column, parse_whole_number)}
    rules |= {"area": ("area", _area), "iscrowd": ("iscrowd", parse_crowd)}
    standard: dict[str, list] = {}
    for name, (column, rule) in rules.items():
        values = objects.get(column)
        if values is None:
            if name in ("bbox", "category"):
                raise ValueError(f"objects.{column} is null; an image without boxes has an empty list")
            values = [None] * len(standard["bbox"])
        if len(values) != len(standard.get("bbox", values)):
            raise ValueError(f"it has {len(standard['bbox'])} boxes, but objects.{column} has {len(values)} entries")
        try:
            standard[name] = [rule(value) for value in values]
        except ValueError as error:
            raise ValueError(f"an entry of objects.{column} {error}") from error
        if name == "bbox" and box_format == "xyxy":
            standard[name] = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in standard[name]]
    for place, (_, _, width, height) in enumerate(standard["bbox"]):
        if standard["area"][place] is None:
            standard["area"][place] = max(width, 0.0) * max(height, 0.0)
    return standard


def read_categories(
    entries: Sequence[Any], findings: Findings, origins: Sequence[tuple[str, int]] | None = None
) -> dict[int, str]:
    """COCO categories as id -> name; those that cannot be read are noted, with their `origins` where given."""
    categories: dict[int, str] = {}
    for place, entry in enumerate(entries):
        try:
            number, name = _field(entry, "id", parse_whole_number), _field(entry, "name", parse_name)
        except ValueError as error:
            where = "" if origins is None else f"{line_name(origins[place])}: "
            findings.add("malformed category", f"{where}category {_short(entry)}: {error}")
            continue
        if name != str(entry["name"]):
            findings.add("line break in a category name", f'category {number} is called "{name}"')
        if number not in categories:
            categories[number] = name
        elif categories[number] == name:
            findings.add("category listed twice", f'category {number} ("{name}")')
        else:
            findings.add("category id twice", f'category {number} is "{categories[number]}" and "{name}"')
    return categories


def _content(path: Path) -> dict[str, Any]:
    encoded = path.read_bytes()
    try:
        content = json.loads(encoded.decode(json.detect_encoding(encoded)), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        line = encoded[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not JSON in UTF-8: {error.reason} in line {line}; save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f'{path} is not COCO JSON of objects: it has no list "images".')
    if not content["images"]:
        raise ValueError(f"{path} lists no images.")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, of which Python would silently keep the last of several values."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'an object gives "{twice}" {keys.count(twice)} times; keep one')
    return entry


def _images(
    entries: list[Any], findings: Findings, origins: Sequence[str] | None = None
) -> tuple[list[int | str], list[str], np.ndarray, list[int]]:
    """Ids, file names and sizes of the images that can be read, and their places."""
    ids, names, sizes, places = [], [], [], []
    for place, entry in enumerate(entries):
        where = "" if origins is None else f"{origins[place]}: "
        try:
            identity = _field(entry, "id", parse_image_id)
            size = [_field(entry, side, _side) for side in ("width", "height")]
        except ValueError as error:
            findings.add("malformed image", f"{where}image {_short(entry)}: {error}")
            continue
        name = entry.get("file_name")
        if not isinstance(name, str) or not name.strip():
            findings.add(
                "image without file name", f"{where}image {_short(entry)}: file_name {_unlike(name, 'a file name')}"
            )
            name = ""
        elif _half_characters(name):
            findings.add("file name that is not text", f"{where}image {_short(entry)}")
        if 0 in size:
            missing = "width" if size[0] == 0 else "height"
            findings.add("image without size", f"{where}image {_short(entry)}: {missing} is missing")
        ids.append(identity)
        names.append(name)
        sizes.append(size)
        places.append(place)
    return ids, names, np.array(sizes, dtype=np.int64).reshape(-1, 2), places


def _side(value: Any) -> int:
    """Width or height in pixels, 0 where it is missing."""
    side = 0 if value is None else parse_whole_number(value)
    if side <= 0 and value is not None:
        raise _unlike(value, "a number of pixels")
    return side


def _field(entry: Any, name: str, rule: Callable[[Any], Any]) -> Any:
    if not isinstance(entry, (dict, Mapping)):  # a dictionary first: it is seen at once
        raise ValueError("it is no object")
    try:
        return rule(entry.get(name))
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def _area(value: Any) -> float | None:
    return None if value is None else parse_number(value)


def _half_characters(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _unlike(value: Any, wanted: str) -> ValueError:
    return ValueError("is missing" if value is None else f"is {_short(value)}, not {wanted}")


def _short(entry: Any) -> str:
    text = json.dumps(entry, default=str)
    return text if len(text) <= 200 else text[:200] + "..."
