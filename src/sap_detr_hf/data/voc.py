"""Reader of Pascal VOC data sets: one XML file per image.

Coordinates are read as the VOC devkit, detectron2 and supervision do: coordinates start at 1 and include the last
pixel, so that (1, 1, width, height) is the whole image. Some tools (CVAT, Label Studio) start at 0; their boxes become
one pixel larger at the left and top, of which a box at 0 gives a warning. Objects marked `difficult` are used like all
others; a `part` is ignored.
"""

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from .coco import CocoAnnotations, Origins, coco_annotations, parse_number
from .findings import Findings, line_name
from .image_paths import first_existing, matching_split, walk_images
from .label_files import LabelFiles, image_ids, read_bytes, read_lines

XML = "*.[xX][mM][lL]"


class VocImage(NamedTuple):
    """An XML file: the image, and line, class and box (x, y, width, height) of each object."""

    file_name: str
    width: str | None
    height: str | None
    objects: list[tuple[int, str, list[float]]]


def find_voc_files(data: Path, split: str) -> LabelFiles | None:
    """The files of a split, None where `data` is no folder of Pascal VOC.

    It has a folder `Annotations` with the images in `JPEGImages` or `images` and lists in `ImageSets/Main`, or the XML
    files lie beside the images, in a folder of each split. A set without lists or such folders is the split "train".

    Raises:
        FileNotFoundError: There is no such split.
    """
    labels = first_existing(data, ["Annotations"])
    xml = [] if labels is None else sorted(map(str, labels.rglob(XML)))
    if labels is not None and xml:
        images = first_existing(data, ["JPEGImages", "images"]) or data
        lists = {path.stem: path for path in sorted((data / "ImageSets" / "Main").glob("*.txt"))}
        source = lists.get(matching_split(str(data), split, [*lists] or ["train"]), labels)
        chosen = dict.fromkeys(xml, 0)
        if lists:  # names without suffix; CVAT puts those with spaces in quotation marks
            chosen = {os.path.join(labels, line.strip('"') + ".xml"): number for number, line in read_lines(source)}
    else:
        folders = {folder.name: folder for folder in sorted(data.glob("*")) if any(folder.glob(XML))}
        folders = folders or ({"train": data} if any(data.glob(XML)) else {})
        if not folders:
            return None
        source = labels = images = folders[matching_split(str(data), split, [*folders])]
        xml = sorted(str(path) for folder in folders.values() for path in folder.glob(XML))
        chosen = {path: 0 for path in xml if Path(path).parent == source}
    lists_read = [str(path) for path in (source, data / "labelmap.txt") if path.is_file()]
    read = partial(_read, source, labels, images, chosen, xml, data / "labelmap.txt")
    return LabelFiles(source, images, [*xml, *lists_read], list(walk_images(images)), read)


def parse_xml(path: str) -> ElementTree.Element:
    """The root of an XML file; each element has its `line` as its only attribute.

    Entities cannot be declared, so that none is expanded.

    Raises:
        ValueError: The file is no XML, too large, or declares a document type; says in which line.
    """
    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()

    def refuse(*_: object) -> None:
        raise ValueError(f"{path}, line {parser.CurrentLineNumber}: it has a DOCTYPE, which is not read")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, _: builder.start(name, {"line": str(parser.CurrentLineNumber)})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # no XML, or an encoding that expat does not know
        if str(error).startswith(path):
            raise
        raise ValueError(f"{path} is not XML: {error}") from error
    return builder.close()


def _read(
    source: Path, labels: Path, image_folder: Path, split: dict[str, int], all_splits: list[str], label_map: Path
) -> CocoAnnotations:
    """Read the XML files of `split`, and the classes of those of all splits, so that each has the same id in all."""
    findings, origins = Findings(), Origins()
    read = {path: image for path in all_splits if (image := _read_image(path, findings)) is not None}
    found = {name: (path, line) for path, image in read.items() for line, name, _ in image.objects}
    classes = _label_map(label_map)
    classes |= {name: found[name] for name in sorted(found.keys() - classes.keys())}
    number_of = {name: number for number, name in enumerate(classes, 1)}
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for name, number in number_of.items()]
    origins.categories = list(classes.values())
    stems = [os.path.splitext(os.path.relpath(path, labels))[0] for path in split]
    pictures = _by_stem(image_folder)
    for stem in sorted(pictures.keys() - set(stems)) if source.is_dir() else ():
        findings.add("image without label file", os.path.join(image_folder, pictures[stem][0]))
    for path, stem, image_id in zip(split, stems, image_ids([f"{stem}.xml" for stem in stems]), strict=True):
        if path not in read:
            if not os.path.isfile(path):
                findings.add("malformed image", f"{line_name((str(source), split[path]))}: there is no {path}")
            continue
        image, own = read[path], pictures.get(stem, [])
        # The image of the same name, as in VOC; where there is none, or several, the one that the file names.
        name = own[0] if len(own) == 1 else image.file_name or stem
        content["images"].append({"id": image_id, "file_name": name, "width": image.width, "height": image.height})
        origins.images.append(path)
        for line, name, box in image.objects:
            content["annotations"].append({"image_id": image_id, "category_id": number_of[name], "bbox": box})
            origins.annotations.append((path, line))
    return coco_annotations(source, content, findings, origins)


def _label_map(path: Path) -> dict[str, tuple[str, int]]:
    """Classes of CVAT's `labelmap.txt` (`name:color:parts:actions`) and where they stand."""
    lines = read_lines(path) if path.is_file() else ()
    named = {" ".join(line.partition(":")[0].split()): (str(path), number) for number, line in lines if line[0] != "#"}
    return {name: place for name, place in named.items() if name not in ("", "background")}


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Name without suffix -> names of images below a folder."""
    images: dict[str, list[str]] = {}
    for path in walk_images(folder):
        name = os.path.relpath(path, folder)
        images.setdefault(os.path.splitext(name)[0], []).append(name)
    return images


def _read_image(path: str, findings: Findings) -> VocImage | None:
    try:
        root = parse_xml(path)
        if root.tag != "annotation":
            raise ValueError(f"{path}, line 1: it is <{root.tag}>, not Pascal VOC's <annotation>")
    except ValueError as error:
        findings.add("malformed image", str(error))
        return None
    objects = []
    for element in root.findall("object"):
        line = int(element.attrib["line"])
        try:
            name, box = _text(element, "name"), _box(element)
            if not name:
                raise ValueError("name is missing")
        except ValueError as error:
            findings.add("malformed annotation", f"{line_name((path, line))}: {error}")
        else:
            if -1 in box[:2]:
                findings.add("Pascal VOC box from 0", line_name((path, line)))
            objects.append((line, name, box))
    width, height = (_text(root, f"size/{side}") or None for side in ("width", "height"))
    return VocImage(_text(root, "filename"), width, height, objects)


def _box(element: ElementTree.Element) -> list[float]:
    """x, y, width, height from the numbers of the corner pixels."""
    corners = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        try:
            corners.append(parse_number(_text(element, f"bndbox/{name}") or None))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
    left, top, right, bottom = corners
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _text(element: ElementTree.Element, path: str) -> str:
    return " ".join((element.findtext(path) or "").split())
