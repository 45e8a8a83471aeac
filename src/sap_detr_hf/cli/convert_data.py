"""Write the splits of a data set in another format."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sap_detr_cli.settings.convert_data import DataConversionSettings

from ..data.annotation_writer import WRITERS, AnnotatedImage, image_suffix
from ..data.checks import category_conflicts, header_checks
from ..data.dataset import DetectionData, load_detection_data
from ..data.findings import ERRORS
from ..data.samples import image_source
from ..files import require_new_folder


def run(settings: DataConversionSettings) -> int:
    """Read and check all splits, then write them aside and rename: there is no half data set."""
    target = Path(settings.target)
    require_new_folder(target)
    splits = settings.split
    if settings.source.endswith(".json") and len(splits) > 1:  # one split, called after the file
        splits = [Path(settings.source).stem.removeprefix("instances_")]
    options = {name: getattr(settings, name) for name in ("annotations", "images", "box_format")}
    data = {split: load_detection_data(settings.source, split, **options) for split in splits}
    categories: dict[int, str] = {}
    for split in data.values():
        report = header_checks(split)
        report.refuse_errors(report.source, ERRORS.keys() - {"no boxes"}, "converted")
        if conflicts := category_conflicts(next(iter(data.values())), split):
            raise ValueError(f"{conflicts[0]}: all splits must use the same category ids.")
        if problems := report.problems():
            print(report.source, *problems, sep="\n")
        categories |= split.categories
    if settings.val_share:
        (whole,) = data.values()
        parts = whole.dataset.train_test_split(settings.val_share, seed=0)
        data = {name: replace(whole, dataset=parts[part]) for name, part in (("train", "train"), ("val", "test"))}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.", suffix=".partial") as scratch:
        writer = WRITERS[settings.to](Path(scratch) / "data", categories, settings.link)
        with writer:
            for name, split in data.items():
                _write(writer, name, split)
        os.replace(writer.target, target)
    print(f"{', '.join(f'{name}: {len(split.dataset)} images' for name, split in data.items())}: {target}")
    if writer.left_out:
        print(f"{writer.left_out} boxes skipped: {settings.to} has no crowd regions and no boxes outside the image.")
    return 0


def _write(writer: Any, split: str, data: DetectionData) -> None:
    files = "image_path" in data.dataset.column_names
    root = os.path.commonpath(list(map(os.path.dirname, data.dataset["image_path"][:]))) if files else ""
    for row in tqdm(data.dataset, desc=split, unit="image", leave=False):
        picture, objects = image_source(row), row["objects"]
        name = os.path.relpath(row["image_path"], root) if files else os.path.basename(row["image"]["path"] or "")
        if not name:
            assert isinstance(picture, bytes)
            name = f"{row['image_id']}{image_suffix(picture)}"
        size = row["width"], row["height"]
        image = AnnotatedImage(name, picture, row["image_id"], size, objects["bbox"], objects["category"])
        image.areas, image.crowd = objects["area"], objects["iscrowd"]
        writer.add(split, image)
