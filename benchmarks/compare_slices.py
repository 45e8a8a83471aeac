"""COCO AP of a model on pictures one by one, and in slices of large pictures put together from them."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from sap_detr_cli.main import fail
from sap_detr_hf.data.dataset import DetectionData, load_detection_data
from sap_detr_hf.data.samples import open_row_image
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.evaluate import evaluate_detections, ground_truth
from sap_detr_hf.evaluation.report import write_results
from sap_detr_hf.inference.slices import SlicedDetector
from sap_detr_hf.weights.pretrained import load_detector

RESULT = "slices_cpu.json"
METRICS = ("AP", "AP50", "AR100")


def write_mosaics(data: DetectionData, folder: Path, side: int) -> int:
    """Write mosaics of `side` x `side` pictures of one size as a COCO data set; returns how many pictures they hold.

    Raises:
        ValueError: there are too few pictures for one mosaic, or they differ in size.
    """
    count = len(data.dataset) // side**2 * side**2
    sizes = set(zip(data.dataset["width"][:count], data.dataset["height"][:count], strict=True))
    if len(sizes) != 1:
        raise ValueError(f"A mosaic needs {side**2} pictures of one size: {len(data.dataset)}, {len(sizes)} sizes.")
    ((width, height),) = sizes
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count // side**2):
        canvas = Image.new("RGB", (width * side, height * side))
        for place in range(side**2):
            row = data.dataset[number * side**2 + place]
            left, top = width * (place % side), height * (place // side)
            canvas.paste(open_row_image(row), (left, top))
            objects = row["objects"]
            for (x, y, w, h), category in zip(objects["bbox"], objects["category"], strict=True):
                box = {"bbox": [x + left, y + top, w, h], "area": w * h, "iscrowd": 0, "category_id": category}
                annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **box})
        name = f"{number + 1}.png"
        canvas.save(folder / "images" / name)
        images.append({"id": number + 1, "file_name": name, "width": canvas.width, "height": canvas.height})
    categories = [{"id": category_id, "name": name} for category_id, name in data.categories.items()]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(coco), encoding="utf-8")
    return count


def compare(model_name: str, data_name: str, split: str, side: int, size: int, overlaps: list[float]) -> dict[str, Any]:
    """Measure AP of single pictures, of whole mosaics, and of mosaics in slices with each overlap.

    Raises:
        OSError, ValueError: a model or data set that cannot be used.
    """
    model, image_processor = load_detector(model_name, "cpu")
    single = load_detection_data(data_name, split)
    with TemporaryDirectory() as name:
        count = write_mosaics(single, Path(name) / "mosaics", side)
        mosaics = load_detection_data(Path(name) / "mosaics", "val", cache_dir=Path(name) / "cache")
        single.dataset = single.dataset.select(range(count))
        runs: list[dict[str, Any]] = [{"pictures": "one by one"}, {"pictures": "mosaics, whole"}]
        for overlap in overlaps:
            for whole_image in (False, True):
                runs.append({"pictures": "mosaics, slices", "overlap": overlap, "whole_image": whole_image})
        for run in runs:
            data = single if run["pictures"] == "one by one" else mosaics
            options = {key: run[key] for key in ("overlap", "whole_image") if key in run}
            sliced = partial(SlicedDetector, size=size, batch_size=8, **options) if options else None
            evaluation = evaluate_detections(
                model, data.dataset, image_processor, ground_truth(data), num_workers=0, sliced=sliced
            )
            run |= {key: evaluation.metrics[key] for key in METRICS}
            run |= {"images": evaluation.images, "seconds": round(evaluation.seconds, 1)}
            print(run, file=sys.stderr, flush=True)
    return {
        "setting": {"side": side, "slice": size, "pictures": count},
        "runs": runs,
        "hardware": hardware_name(torch.device("cpu")),
        "versions": software_versions(),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; 2 for a model or data set that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="model directory or Hub id")
    parser.add_argument("data", help="COCO directory whose pictures are all of one size")
    parser.add_argument("--split", default="val", help="split of the data")
    parser.add_argument("--side", type=int, default=4, help="pictures in a row and in a column of a mosaic")
    parser.add_argument("--slice", type=int, default=128, help="side of a slice in pixels")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.0, 0.2, 0.5], help="overlaps of the slices")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help=f"folder that gets {RESULT}")
    args = parser.parse_args(argv)
    try:
        results = compare(args.model, args.data, args.split, args.side, args.slice, args.overlaps)
        write_results(args.output / RESULT, results)
    except (ImportError, OSError, ValueError) as error:
        return fail(error, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
