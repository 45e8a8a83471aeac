"""Read detection rows from COCO JSON, label files, or data sets with the usual columns of the Hub."""

import difflib
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, List, Value
from filelock import FileLock

from ..model.image_files import upright_size
from .coco import CocoAnnotations, id_array, parse_image_id, parse_whole_number, read_categories, standard_objects
from .findings import Findings
from .image_paths import annotation_names, find_images, first_existing, matching_split
from .label_files import LabelFiles
from .yolo import YAML_NAMES

SIZES = {"width": Value("int64"), "height": Value("int64")}
OBJECTS = {
    "bbox": List(List(Value("float64"), length=4)),
    "category": List(Value("int64")),
    "area": List(Value("float64")),
    "iscrowd": List(Value("int8")),
}
# Part of the cache keys: raise it when the rows made of the same data, or what is found wrong in it, change.
INDEX_VERSION = 5
ROWS_AT_ONCE = 1000
CATEGORY_COLUMNS = ("category", "category_id", "categories", "label", "labels")


def read_rows(labels: LabelFiles, cache_dir: str | Path | None) -> tuple[datasets.Dataset, dict[int, str], Findings]:
    """Memory-mapped rows of a COCO JSON or label files, the categories (id -> name), and the faults of the files.

    The rows are written once, into the cache, under a name made of the files' content. Several processes may ask at
    once: one writes, the others wait. The images' files are looked for anew each time. Rows of label files also have
    `label_file` and the `lines` of their boxes there.
    """
    root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sap_detr_hf"
    index = root / _fingerprint(labels)
    if not index.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{index}.lock"):
            if not index.is_dir():
                _write_index(labels.read(), index)
    notes = json.loads((index / "notes.json").read_text())
    categories = {int(category_id): name for category_id, name in notes["categories"].items()}
    findings = Findings(Counter(notes["counts"]), notes["examples"])
    rows = datasets.load_from_disk(str(index))
    found = find_images(rows["file_name"][:], labels.image_folder, labels.source)
    for name, path in found.renamed.items():
        findings.add("file under another name", f"{name}: {path}")
    for path, meaning in found.ambiguous.items():
        findings.add("ambiguous file name", f"{path} may mean {meaning}")
    return rows.remove_columns("file_name").add_column("image_path", found.paths), categories, findings


def read_columns(
    data: str, split: str, box_format: str, cache_dir: str | Path | None, streaming: bool
) -> tuple[Any, dict[int, str], Findings]:
    """Rows and categories (id -> name) of a saved data set, a folder of parquet files or a data set on the Hub.

    The images' bytes stay where they are; only the columns beside them are rewritten where they differ. The third
    result holds the faults of rows; a streamed row raises a ValueError when it is read.
    """
    source = f'{data}, split "{split}"'
    dataset = _open_dataset(data, split, cache_dir, streaming)
    features = dataset.features
    if features is None or "image" not in features or "objects" not in features:
        columns = sorted(features) if features is not None else "unknown columns"
        raise ValueError(f"{data} needs the columns image and objects, it has {columns}.")
    if not streaming and len(dataset) == 0:
        raise ValueError(f"{source} has no rows.")
    if not _holds_images(features["image"]):
        raise ValueError(f"{source}: the column image holds {features['image']}, no images.")
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    category_column, class_label = _category_feature(data, dataset.features["objects"])
    options = {"category_column": category_column, "box_format": box_format, "version": INDEX_VERSION}
    findings = Findings()
    if streaming:
        options |= {"source": source}
        text_ids = getattr(features.get("image_id"), "dtype", "") in ("string", "large_string")
        rows = dataset.map(_streamed_row, with_indices=True, fn_kwargs=options, features=_features("image", text_ids))
        rows = rows.select_columns(["image", "image_id", "width", "height", "objects"])
    else:
        rows = _standardize(dataset, options, source, findings, cache_dir)
    if class_label is not None:
        entries = [{"id": number, "name": name} for number, name in enumerate(class_label.names)]
        return rows, read_categories(entries, findings), findings
    if streaming:
        raise ValueError(f"{data}: objects.{category_column} has no class names; they are needed for streaming.")
    found = {category for objects in rows.select_columns("objects") for category in objects["objects"]["category"]}
    # -1 marks a box without a class
    return rows, {category: str(category) for category in sorted(found) if category >= 0}, findings


def _fingerprint(labels: LabelFiles) -> str:
    """A name made of the content of files and of what else the rows depend on."""
    digest = hashlib.blake2b(digest_size=16)
    for path in labels.files:
        with open(path, "rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    facts = f"{labels.facts()}\0{INDEX_VERSION}\0{datasets.__version__}"
    digest.update(facts.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write_index(coco: CocoAnnotations, index: Path) -> None:
    """Write the rows aside and rename: a killed process leaves no half index under the final name."""
    with tempfile.TemporaryDirectory(dir=index.parent, prefix="incomplete-") as scratch:
        aside = Path(scratch) / "index"
        _coco_rows(coco).save_to_disk(str(aside))
        findings = coco.findings
        notes = {"categories": coco.categories, "counts": findings.counts, "examples": findings.examples}
        (aside / "notes.json").write_text(json.dumps(notes))
        os.rename(aside, index)


def _coco_rows(coco: CocoAnnotations) -> datasets.Dataset:
    """One row an image, made of arrays: a list of 860 000 dictionaries would take minutes and gigabytes."""
    boxes, order = coco.boxes, np.argsort(coco.boxes.image, kind="stable")
    ends = np.cumsum(np.bincount(boxes.image, minlength=len(coco.image_ids)), dtype=np.int32)
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    features = _features("file_name", text_ids=coco.image_ids.dtype.kind == "U")
    columns = {
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes.boxes[order].ravel()), 4),
        "category": pa.array(boxes.category[order]),
        "area": pa.array(boxes.areas[order], from_pandas=False),
        "iscrowd": pa.array(boxes.crowd[order].astype(np.int8)),
    }
    objects = pa.StructArray.from_arrays(
        [pa.ListArray.from_arrays(offsets, column) for column in columns.values()], names=list(columns)
    )
    names = [name.encode("utf-8", "replace").decode() for name in coco.file_names]
    arrays = [pa.array(names), pa.array(coco.image_ids.tolist()), *map(pa.array, coco.sizes.T.copy()), objects]
    if coco.label_files is not None:
        assert boxes.origins is not None
        lines = pa.array([boxes.origins[box][1] for box in order.tolist()], pa.int64())
        features |= {"label_file": Value("string"), "lines": List(Value("int64"))}
        files = [name.encode("utf-8", "replace").decode() for name in coco.label_files]
        arrays += [pa.array(files, pa.string()), pa.ListArray.from_arrays(offsets, lines)]
    table = pa.Table.from_arrays(arrays, names=list(features)).cast(Features(features).arrow_schema)
    return datasets.Dataset(table, datasets.DatasetInfo(features=Features(features)))


def _open_dataset(data: str, split: str, cache_dir: str | Path | None, streaming: bool) -> Any:
    folder = Path(data)
    if not folder.exists() and (folder.is_absolute() or data.startswith((".", "~"))):  # no Hub id
        near = difflib.get_close_matches(folder.name, [path.name for path in folder.parent.glob("*")], n=1)
        raise FileNotFoundError(f"{data} does not exist" + (f": {folder.parent / near[0]}?" if near else "."))
    if folder.is_dir() and any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return _readable(data, lambda: _open_saved(data, split, streaming))
    if folder.is_dir() and not any(folder.rglob("*.parquet")):
        looked_for = ", ".join(annotation_names(split))
        others = [str(path) for path in sorted(folder.glob("*.json"))[:3]]
        advice = f" To use {' or '.join(others)}, name the file itself." if others else ""
        if first_existing(folder.parent, YAML_NAMES):
            advice = f" Its parent folder is a YOLO data set: name {folder.parent}."
        raise FileNotFoundError(
            f'{data} has no split "{split}": in it is no {looked_for}, no data.yaml (YOLO), no XML file (Pascal VOC) '
            f"and no parquet file.{advice}"
        )

    def load() -> Any:
        name = matching_split(data, split, datasets.get_dataset_split_names(data))
        return datasets.load_dataset(data, split=name, streaming=streaming, cache_dir=cache_dir and str(cache_dir))

    if folder.is_dir():
        return _readable(data, load)
    try:
        return load()
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise FileNotFoundError(f"{data} is not a local folder and cannot be loaded from the Hub: {error}") from error


def _readable(data: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except FileNotFoundError:
        raise
    except Exception as error:  # broken files raise whatever the library that reads them raises
        raise ValueError(f"{data} cannot be read as a data set: {' '.join(str(error).split())}") from error


def _open_saved(data: str, split: str, streaming: bool) -> Any:
    folder = Path(data)
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        folder /= matching_split(data, split, splits)
    if not json.loads((folder / "state.json").read_text()).get("_data_files", True):
        raise FileNotFoundError(f'{data}, split "{split}" has no rows.')  # load_from_disk fails on it
    saved = datasets.load_from_disk(str(folder))
    return saved.to_iterable_dataset() if streaming else saved


def _features(image_column: str, text_ids: bool) -> Features:
    image = Value("string") if image_column == "file_name" else datasets.Image(decode=False)
    image_id = Value("string" if text_ids else "int64")
    return Features({image_column: image, "image_id": image_id, **SIZES, "objects": OBJECTS})


def _holds_images(feature: Any) -> bool:
    stored = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or stored or getattr(feature, "dtype", "") in ("string", "binary")


def _category_feature(data: str, objects: Any) -> tuple[str, ClassLabel | None]:
    """Name of the category column within `objects`, and its class names where it has them."""
    # Stored either as one dictionary of lists or as a list of dictionaries.
    columns = objects.feature if isinstance(objects, List) else objects
    if not isinstance(columns, dict):
        raise ValueError(f"{data}: objects needs bbox and category, it holds {objects}.")
    column = next((name for name in CATEGORY_COLUMNS if name in columns), None)
    if column is None or "bbox" not in columns:
        raise ValueError(f"{data}: objects needs bbox and category, it has {sorted(columns)}.")
    feature = columns[column].feature if isinstance(columns[column], List) else columns[column]
    return column, feature if isinstance(feature, ClassLabel) else None


def _standardize(
    dataset: datasets.Dataset,
    options: dict[str, Any],
    source: str,
    findings: Findings,
    cache_dir: str | Path | None,
) -> datasets.Dataset:
    """Rewrite all columns but the images', which are joined again from the original, memory-mapped table."""
    beside = dataset
    if {"width", "height"} <= set(dataset.column_names):
        beside = dataset.remove_columns("image")
    features = Features({**SIZES, "objects": OBJECTS, "fault": Value("string")})
    names = beside.column_names
    arguments = {"fn_kwargs": options, "features": features, "remove_columns": names}
    arguments["cache_file_name"] = _cache_file(dataset, options, cache_dir)
    standard = beside.map(_standard_row, **arguments)
    if any(fault is not None for fault in standard["fault"]):  # of an earlier time: an image's file may be back
        standard = beside.map(_standard_row, load_from_cache_file=False, **arguments)
    absent = _rows_without_image(dataset)
    for row, fault in enumerate(standard["fault"]):
        if fault is not None or row in absent:
            findings.add("malformed row", f"{source}, row {row}: {fault or 'image is null'}")
    ids: list[int | str] = []
    for row, value in enumerate(dataset["image_id"] if "image_id" in names else ()):
        try:
            ids.append(parse_image_id(value))
        except ValueError as error:
            findings.add("malformed row", f"{source}, row {row}: image_id {error}")
            ids.append(-1 - row)  # its own, so that it is not reported as one that occurs twice
    numbers = id_array(ids or range(len(dataset))).tolist()
    standard = standard.remove_columns("fault").add_column("image_id", numbers)
    return datasets.concatenate_datasets([dataset.select_columns("image"), standard], axis=1)


def _cache_file(dataset: datasets.Dataset, options: dict[str, Any], cache_dir: str | Path | None) -> str | None:
    """Where the rewritten columns are kept: beside the data (`None`), or in the cache if that disk is read-only."""
    if all(os.access(os.path.dirname(file["filename"]), os.W_OK) for file in dataset.cache_files):
        return None
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sap_detr_hf" / "columns"
    folder.mkdir(parents=True, exist_ok=True)
    facts = f"{dataset._fingerprint}\0{sorted(options.items())}\0{datasets.__version__}"
    return str(folder / f"{hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()}.arrow")


def _rows_without_image(dataset: datasets.Dataset) -> set[int]:
    rows: set[int] = set()
    for start, table in enumerate(dataset.select_columns("image").with_format("arrow").iter(ROWS_AT_ONCE)):
        content, path = (pc.struct_field(table["image"], name) for name in ("bytes", "path"))  # null of a null image
        absent = pc.and_(pc.is_null(content), pc.is_null(path)).to_numpy()
        rows |= {*(np.flatnonzero(absent) + start * ROWS_AT_ONCE).tolist()}
    return rows


def _standard_row(row: dict[str, Any], category_column: str, box_format: str, version: int) -> dict[str, Any]:
    """Size and objects of a row, or its `fault` in words, with no objects and the size 0."""
    try:
        width, height = _size(row)
        return {
            "width": width,
            "height": height,
            "objects": standard_objects(row["objects"], category_column, box_format),
            "fault": None,
        }
    except (OSError, ValueError) as error:
        return {"width": 0, "height": 0, "objects": {name: [] for name in OBJECTS}, "fault": str(error)}


def _streamed_row(row: dict[str, Any], index: int, source: str, **options: Any) -> dict[str, Any]:
    standard = _standard_row(row, **options)
    fault = standard.pop("fault") or ("image is null" if row["image"] is None else None)
    if fault is None:
        try:
            return {**standard, "image_id": parse_image_id(row.get("image_id", index))}
        except ValueError as error:
            fault = f"image_id {error}"
    raise ValueError(f"{source}, row {index}: {fault}")


def _size(row: dict[str, Any]) -> tuple[int, int]:
    sides = [row.get(side) for side in ("width", "height")]
    if None not in sides:
        width, height = (parse_whole_number(side) for side in sides)
        if min(width, height) < 0:
            raise ValueError(f"its size is {width} x {height}")
        if min(width, height) > 0:
            return width, height
    if "image" not in row:
        raise ValueError("width or height is missing")
    source = image_source(row) if row["image"] else None
    if source is None:
        raise ValueError("image is null")
    return upright_size(source)[:2]


def image_source(row: dict[str, Any]) -> str | bytes:
    """What `open_image` takes to open this row's image."""
    if "image_path" in row:
        return row["image_path"]
    return row["image"]["bytes"] if row["image"]["bytes"] is not None else row["image"]["path"]
