"""Write a data set in a format of annotation tools, image by image: COCO, YOLO or Pascal VOC."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

import yaml
from PIL import Image

from .image_paths import has_image_suffix


@dataclass
class AnnotatedImage:
    """An image and its boxes.

    Args:
        name: Its file name with folders, as the data set is to have it.
        picture: Its file, the content of its file, or the image itself.
        image_id: Its id.
        size: Width and height in pixels, upright.
        boxes: x, y, width, height in pixels.
        categories: Category id of each box.
        areas: Of each box, in square pixels; width x height where not given.
        crowd: Whether each box is a crowd region; none where not given.
        scores: Of each box, where they were predicted.
    """

    name: str
    picture: str | bytes | Image.Image
    image_id: int | str
    size: tuple[int, int]
    boxes: list[list[float]]
    categories: list[int]
    areas: list[float] = field(default_factory=list)
    crowd: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


class AnnotationWriter:
    """Writes a data set; a context manager, whose files are whole also after an error or an interruption.

    Args:
        target: Its folder.
        categories: Category id -> name.
        link: Link to images that are files instead of copying them.

    Attributes:
        left_out: Number of boxes that the format cannot hold: crowd regions, and what lies outside the image.
    """

    images = "images/{split}"

    def __init__(self, target: Path, categories: Mapping[int, str], link: bool = False):
        self.target, self.categories, self.link = target, dict(sorted(categories.items())), link
        self.left_out = 0
        self.splits: dict[str, list[Any]] = {}
        self._taken: dict[str, int] = {}  # and how many images wanted that name

    def __enter__(self) -> "AnnotationWriter":
        self.target.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._finish()

    def add(self, split: str, image: AnnotatedImage) -> None:
        """Write one image, under another name where its own is taken."""
        split = "val" if split in ("valid", "validation") else split
        folder = self.images.format(split=split)
        name = self._file_name(image)
        stem, suffix = os.path.splitext(name)
        first = f"{folder}/{self._label_name(name)}".casefold()
        while (key := f"{folder}/{self._label_name(name)}".casefold()) in self._taken:
            self._taken[first] += 1
            name = f"{stem}_{self._taken[first]}{suffix}"
        self._taken[key] = 1
        path = self.target / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image.picture, bytes):
            path.write_bytes(image.picture)
        elif isinstance(image.picture, Image.Image):
            image.picture.save(path, quality=95)
        elif self.link:
            path.symlink_to(Path(image.picture).resolve())
        else:
            shutil.copyfile(image.picture, path)
        self.splits.setdefault(split, [])
        self._write_labels(split, name, image)

    def _file_name(self, image: AnnotatedImage) -> str:
        """The image's name as the format can have it."""
        return image.name

    def _label_name(self, name: str) -> str:
        """What two images of a folder must not share."""
        return os.path.splitext(name)[0]

    def _write_labels(self, split: str, name: str, image: AnnotatedImage) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _corners(self, image: AnnotatedImage) -> list[tuple[int, list[float]]]:
        """Category and x1, y1, x2, y2 within the image of each box that formats without crowd regions can hold."""
        found = []
        width, height = image.size
        for place, (x, y, w, h) in enumerate(image.boxes):
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if (image.crowd and image.crowd[place]) or right <= left or bottom <= top:
                self.left_out += 1
            else:
                found.append((image.categories[place], [left, top, right, bottom]))
        return found


class CocoWriter(AnnotationWriter):
    """`annotations/instances_SPLIT.json` and `images/SPLIT`. Ids that are text become numbers, as tools expect them."""

    def _label_name(self, name: str) -> str:
        return name

    def _write_labels(self, split: str, name: str, image: AnnotatedImage) -> None:
        entry = {"id": image.image_id, "file_name": name, "width": image.size[0], "height": image.size[1]}
        annotations = []
        for place, (box, category) in enumerate(zip(image.boxes, image.categories, strict=True)):
            area = image.areas[place] if image.areas else box[2] * box[3]
            annotation = {"category_id": category, "bbox": box, "area": area, "segmentation": []}
            annotation["iscrowd"] = int(image.crowd[place]) if image.crowd else 0
            annotations.append(annotation | ({"score": image.scores[place]} if image.scores else {}))
        self.splits[split].append((entry, json.dumps(annotations)))  # as text: a tenth of the memory

    def _finish(self) -> None:
        (self.target / "annotations").mkdir(exist_ok=True)
        for split, written in self.splits.items():
            text_ids = any(isinstance(entry["id"], str) for entry, _ in written)
            ids = {entry["id"]: place if text_ids else entry["id"] for place, (entry, _) in enumerate(written, 1)}
            categories = [{"id": number, "name": name} for number, name in self.categories.items()]
            images = (entry | {"id": ids[entry["id"]]} for entry, _ in written)
            own = ((ids[entry["id"]], each) for entry, text in written for each in json.loads(text))
            annotations = ({"id": n, "image_id": image_id} | each for n, (image_id, each) in enumerate(own, 1))
            lists = {"categories": categories, "images": images, "annotations": annotations}
            with (self.target / "annotations" / f"instances_{split}.json").open("w", encoding="utf-8") as file:
                file.write('{"info": {}, "licenses": []')
                for name, entries in lists.items():
                    file.write(f', "{name}": ')
                    write_json_list(file, entries)
                file.write("}\n")


class YoloWriter(AnnotationWriter):
    """`data.yaml`, `images/SPLIT` and `labels/SPLIT`; classes are numbered from 0 in the order of category ids."""

    def _file_name(self, image: AnnotatedImage) -> str:
        """The name with an image's suffix, by which readers find images, and without folders called `images`.

        Readers seek labels by the last of these in a path.
        """
        *folders, name = Path(image.name).parts
        if not has_image_suffix(name):
            name += image_suffix(image.picture)
        return os.path.join(*(f"{each}_" if each.casefold() == "images" else each for each in folders), name)

    def _write_labels(self, split: str, name: str, image: AnnotatedImage) -> None:
        numbers = {category: number for number, category in enumerate(self.categories)}
        width, height = image.size
        lines = []
        for category, (x1, y1, x2, y2) in self._corners(image):
            shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(" ".join([str(numbers[category]), *(f"{share:.6f}" for share in shares)]) + "\n")
        path = (self.target / "labels" / split / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))

    def _finish(self) -> None:
        # No `path`: a relative one is sought from the working directory by ultralytics; without it, beside the file.
        content: dict[str, Any] = {split: self.images.format(split=split) for split in self.splits}
        content["names"] = dict(enumerate(self.categories.values()))
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        (self.target / "data.yaml").write_text(text, encoding="utf-8")


class VocWriter(AnnotationWriter):
    """`Annotations`, `JPEGImages`, `ImageSets/Main/SPLIT.txt`, and the classes as CVAT has them in `labelmap.txt`.

    Coordinates count from 1, see `voc.py`, with decimals where a side lies within a pixel.

    Raises:
        ValueError: The format, which has no category ids, cannot tell two names apart.
    """

    images = "JPEGImages"

    def __init__(self, target: Path, categories: Mapping[int, str], link: bool = False):
        super().__init__(target, categories, link)
        seen: set[str] = set()
        for name in self.categories.values():
            if name in seen or ":" in name or name[0] == "#" or name == "background":
                why = "two categories have it" if name in seen else "its list of classes gives it another meaning"
                raise ValueError(f'Pascal VOC cannot hold the category name "{name}": {why}.')
            seen.add(name)

    def _write_labels(self, split: str, name: str, image: AnnotatedImage) -> None:
        root = ElementTree.Element("annotation")
        _element(root, filename=name)
        _element(ElementTree.SubElement(root, "size"), width=image.size[0], height=image.size[1], depth=3)
        for category, (x1, y1, x2, y2) in self._corners(image):
            entry = ElementTree.SubElement(root, "object")
            _element(entry, name=self.categories[category], truncated=0, difficult=0)
            corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            pixels = {side: f"{value:.2f}".rstrip("0").rstrip(".") for side, value in corners.items()}
            _element(ElementTree.SubElement(entry, "bndbox"), **pixels)
        ElementTree.indent(root)
        stem = self._label_name(name)
        path = self.target / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(root).write(path, encoding="utf-8")
        self.splits[split].append(stem)

    def _finish(self) -> None:
        lists = self.target / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        for split, written in self.splits.items():
            (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in written), encoding="utf-8")
        lines = ["# label:color_rgb:parts:actions", *(f"{name}:::" for name in self.categories.values())]
        (self.target / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS = {"coco": CocoWriter, "yolo": YoloWriter, "voc": VocWriter}


def image_suffix(picture: str | bytes | Image.Image) -> str:
    """The suffix of an image's format."""
    if isinstance(picture, Image.Image):
        return ".jpg"
    with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        suffix = (image.format or "").lower()
    return {"jpeg": ".jpg", "jpeg2000": ".jp2"}.get(suffix, f".{suffix}")


def write_json_list(file: TextIO, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list, one entry a line, without ever holding all of it."""
    file.write("[")
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry))
    file.write("\n]")


def _element(parent: ElementTree.Element, **texts: object) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)
