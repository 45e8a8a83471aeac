"""Where detection rows come from: COCO JSON files with image folders, and data sets with the Hub's usual columns."""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, List, Value
from filelock import FileLock

from ..model.image_files import upright_size

SIZES = {"image_id": Value("int64"), "width": Value("int64"), "height": Value("int64")}
OBJECTS = {
    "bbox": List(List(Value("float64"), length=4)),
    "category": List(Value("int64")),
    "area": List(Value("float64")),
    "iscrowd": List(Value("int8")),
}
# Part of the cache key: raise it when the rows made of the same file change.
INDEX_VERSION = 1
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "validation": ("validation", "val")}
CATEGORY_COLUMNS = ("category", "category_id", "categories", "label", "labels")


def find_coco_files(
    data: Path, split: str, annotations: str | Path | None, images: str | Path | None
) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a split, None where `data` is not COCO JSON.

    Raises:
        FileNotFoundError: A named file or folder does not exist, or no image folder fits the annotation file.
    """
    if data.suffix == ".json":
        data, annotations = data.parent, annotations or data
    if annotations is None:
        annotations = _first_existing(data, _annotation_names(split))
        if annotations is None:
            return None
    if not Path(annotations).is_file():
        raise FileNotFoundError(f"There is no annotation file {annotations}.")
    # data/annotations/instances_train.json: the pictures lie beside the folder `annotations`.
    root = data.parent if data.name == "annotations" else data
    folder = Path(images) if images is not None else _first_existing(root, _image_folders(split, Path(annotations)))
    if folder is None or not folder.is_dir():
        looked_for = images or ", ".join(str(root / name) for name in _image_folders(split, Path(annotations)))
        raise FileNotFoundError(f"No image folder for {annotations}: looked for {looked_for}. Name it with `images`.")
    return Path(annotations), folder


def read_coco(
    annotation_file: Path, image_folder: Path, cache_dir: str | Path | None
) -> tuple[datasets.Dataset, dict[int, str], int]:
    """Memory-mapped rows of a COCO JSON, its categories (id -> name), and how many annotations have no listed image.

    The rows are written once, into the cache, under a name made of the file's content and the image folder. Several
    processes may ask at once: one writes, the others wait.
    """
    root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sap_detr_hf"
    index = root / _fingerprint(annotation_file, image_folder)
    if not index.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{index}.lock"):
            if not index.is_dir():
                _write_index(annotation_file, image_folder, index)
    notes = json.loads((index / "categories.json").read_text())
    categories = {int(category_id): name for category_id, name in notes["categories"].items()}
    return datasets.load_from_disk(str(index)), categories, notes["unplaced_annotations"]


def read_columns(
    data: str, split: str, box_format: str, cache_dir: str | Path | None, streaming: bool
) -> tuple[Any, dict[int, str]]:
    """Rows and categories (id -> name) of a saved data set, a folder of parquet files or a data set on the Hub.

    The images' bytes stay where they are; only the columns beside them are rewritten where they differ.
    """
    dataset = _open_dataset(data, split, cache_dir, streaming)
    features = dataset.features
    if features is None or "image" not in features or "objects" not in features:
        columns = sorted(features) if features is not None else "unknown columns"
        raise ValueError(f"{data} needs the columns image and objects, it has {columns}.")
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    category_column, class_label = _category_feature(data, dataset.features["objects"])
    options = {"category_column": category_column, "box_format": box_format}
    if streaming:
        rows = dataset.map(_standard_row, with_indices=True, fn_kwargs=options, features=_features("image"))
        rows = rows.select_columns(["image", "image_id", "width", "height", "objects"])
    else:
        rows = _standardise(dataset, options)
    if class_label is not None:
        return rows, dict(enumerate(class_label.names))
    if streaming:
        raise ValueError(f"{data}: objects.{category_column} has no class names; they are needed for streaming.")
    found = sorted(
        {category for objects in rows.select_columns("objects") for category in objects["objects"]["category"]}
    )
    return rows, {category: str(category) for category in found}


def _annotation_names(split: str) -> list[str]:
    names = []
    for name in SPLIT_NAMES.get(split, (split,)):
        names += [f"annotations/instances_{name}2017.json", f"annotations/instances_{name}.json"]
        names += [f"annotations/{name}.json", f"{name}.json", f"{name}/_annotations.coco.json"]
    return names


def _image_folders(split: str, annotation_file: Path) -> list[str]:
    names = [annotation_file.stem.removeprefix("instances_")]
    for name in SPLIT_NAMES.get(split, (split,)):
        names += [f"{name}2017", name]
    return [f"images/{name}" for name in names] + names + ["images", "."]


def _first_existing(root: Path, names: list[str]) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _fingerprint(annotation_file: Path, image_folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with annotation_file.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    digest.update(f"{image_folder.resolve()}\0{INDEX_VERSION}\0{datasets.__version__}".encode())
    return digest.hexdigest()


def _write_index(annotation_file: Path, image_folder: Path, index: Path) -> None:
    """Write the rows aside and rename: a killed process leaves no half index under the final name."""
    rows, categories, unplaced = _coco_rows(annotation_file, image_folder.resolve())
    with tempfile.TemporaryDirectory(dir=index.parent, prefix="incomplete-") as scratch:
        aside = Path(scratch) / "index"
        datasets.Dataset.from_list(rows, features=_features("image_path")).save_to_disk(str(aside))
        notes = {"categories": categories, "unplaced_annotations": unplaced, "annotation_file": str(annotation_file)}
        (aside / "categories.json").write_text(json.dumps(notes))
        os.rename(aside, index)


def _coco_rows(annotation_file: Path, image_folder: Path) -> tuple[list[dict[str, Any]], dict[int, str], int]:
    content = _coco_json(annotation_file)
    objects_of: dict[int, dict[str, list]] = defaultdict(lambda: {name: [] for name in OBJECTS})
    for annotation in content.pop("annotations"):
        try:
            _append(objects_of[annotation["image_id"]], annotation)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{annotation_file}: annotation {_short(annotation)} is malformed: {error!r}.") from error
    rows = []
    for image in content["images"]:
        try:
            row = {"image_path": str(image_folder / image["file_name"]), "image_id": int(image["id"])}
            row |= {"width": int(image["width"]), "height": int(image["height"])}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{annotation_file}: image {_short(image)} is malformed: {error!r}.") from error
        rows.append({**row, "objects": objects_of.get(image["id"]) or {name: [] for name in OBJECTS}})
    unlisted = objects_of.keys() - {image["id"] for image in content["images"]}
    unplaced = sum(len(objects_of[image_id]["bbox"]) for image_id in unlisted)
    categories = {}
    for category in content["categories"]:
        try:
            categories[int(category["id"])] = str(category["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{annotation_file}: category {_short(category)} is malformed: {error!r}.") from error
    return rows, categories, unplaced


def _coco_json(annotation_file: Path) -> dict[str, Any]:
    try:
        content = json.loads(annotation_file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{annotation_file} is not JSON: {error}.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f'{annotation_file} is not COCO JSON of objects: it has no list "{key}".')
    if not content["images"]:
        raise ValueError(f"{annotation_file} lists no images.")
    return content


def _append(objects: dict[str, list], annotation: dict[str, Any]) -> None:
    x, y, width, height = map(float, annotation["bbox"])
    objects["category"].append(int(annotation["category_id"]))
    objects["area"].append(float(annotation.get("area", width * height)))
    objects["iscrowd"].append(int(annotation.get("iscrowd", 0)))
    objects["bbox"].append([x, y, width, height])


def _short(entry: Any) -> str:
    text = json.dumps(entry, default=str)
    return text if len(text) <= 200 else text[:200] + "..."


def _open_dataset(data: str, split: str, cache_dir: str | Path | None, streaming: bool) -> Any:
    folder = Path(data)
    if folder.is_dir() and any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return _open_saved(data, split, streaming)
    if folder.is_dir() and not any(folder.rglob("*.parquet")):
        looked_for = ", ".join(_annotation_names(split))
        raise FileNotFoundError(f'{data} has no split "{split}": there is no {looked_for} and no parquet file in it.')
    try:
        name = _matching_split(data, split, datasets.get_dataset_split_names(data))
        return datasets.load_dataset(data, split=name, streaming=streaming, cache_dir=_text(cache_dir))
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        if folder.is_dir():
            raise
        raise FileNotFoundError(f"{data} is no folder here, and cannot be loaded from the Hub: {error}") from error


def _open_saved(data: str, split: str, streaming: bool) -> Any:
    saved = datasets.load_from_disk(data)
    if isinstance(saved, datasets.DatasetDict):
        saved = saved[_matching_split(data, split, list(saved))]
    return saved.to_iterable_dataset() if streaming else saved


def _matching_split(data: str, split: str, available: list[str]) -> str:
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in available:
            return name
    raise FileNotFoundError(f'{data} has no split "{split}", it has {available}.')


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _features(image_column: str) -> Features:
    image = Value("string") if image_column == "image_path" else datasets.Image(decode=False)
    return Features({image_column: image, **SIZES, "objects": OBJECTS})


def _category_feature(data: str, objects: Any) -> tuple[str, ClassLabel | None]:
    """Name of the category column within `objects`, and its class names where it has them."""
    # Stored either as one dictionary of lists or as a list of dictionaries.
    columns = objects.feature if isinstance(objects, List) else objects
    column = next((name for name in CATEGORY_COLUMNS if name in columns), None)
    if column is None or "bbox" not in columns:
        raise ValueError(f"{data}: objects needs bbox and category, it has {sorted(columns)}.")
    feature = columns[column].feature if isinstance(columns[column], List) else columns[column]
    if not isinstance(feature, ClassLabel) and not str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
        raise ValueError(f"{data}: objects.{column} must hold class numbers, it holds {feature}.")
    return column, feature if isinstance(feature, ClassLabel) else None


def _standardise(dataset: datasets.Dataset, options: dict[str, str]) -> datasets.Dataset:
    """Rewrite all columns but the images', which are joined again from the original, memory-mapped table."""
    beside = dataset
    if {"width", "height"} <= set(dataset.column_names):
        beside = dataset.remove_columns("image")
    features = Features({**SIZES, "objects": OBJECTS})
    beside = beside.map(
        _standard_row, with_indices=True, fn_kwargs=options, features=features, remove_columns=beside.column_names
    )
    return datasets.concatenate_datasets([dataset.select_columns("image"), beside], axis=1)


def _standard_row(row: dict[str, Any], index: int, category_column: str, box_format: str) -> dict[str, Any]:
    objects = row["objects"]
    if isinstance(objects, list):
        objects = {name: [entry[name] for entry in objects] for name in (objects[0] if objects else ())}
    boxes = [[float(value) for value in box] for box in objects.get("bbox", [])]
    if box_format == "xyxy":
        boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
    standard = {
        "bbox": boxes,
        "category": list(objects.get(category_column, [])),
        "area": objects.get("area") or [width * height for _, _, width, height in boxes],
        "iscrowd": [int(crowd) for crowd in objects.get("iscrowd") or [0] * len(boxes)],
    }
    image_id = row.get("image_id", index)
    width, height = _size(row)
    return {
        "image_id": image_id if isinstance(image_id, int) else index,
        "width": width,
        "height": height,
        "objects": standard,
    }


def _size(row: dict[str, Any]) -> tuple[int, int]:
    if row.get("width") and row.get("height"):
        return row["width"], row["height"]
    image = row["image"]
    return upright_size(image["bytes"] if image["bytes"] is not None else image["path"])[:2]
