"""Write what the model will see in training as pictures: after augmentation, with the boxes it is taught."""

import argparse
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Read the command line, write the pictures and say where they are; 2 for what cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="COCO folder or JSON file, saved data set, parquet folder, or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--split", default="train")
    parser.add_argument("--annotations", help="COCO JSON, where it is not found by itself")
    parser.add_argument("--images", help="image folder, where it is not found by itself")
    parser.add_argument("--box-format", "--box_format", choices=["xywh", "xyxy"], default="xywh", help="of Hub data")
    parser.add_argument("--count", type=int, default=16, help="number of images (default %(default)s)")
    parser.add_argument("--augmentation", default="released", help='"none", "flip", "released" or "module:function"')
    parser.add_argument("--shortest-edge", "--shortest_edge", type=int, help="pixels; the model's, or 800")
    parser.add_argument("--longest-edge", "--longest_edge", type=int, help="pixels; the model's, or 1333")
    parser.add_argument("--model", help="take the image processor of this model folder or Hub id")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--epoch", type=int, default=0, help="every epoch augments anew")
    parser.add_argument("--overwrite", action="store_true", help="replace the pictures of an earlier run")
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        parser.error("--count must be at least 1")
    try:
        count = _draw(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{count} pictures and all.png are in {arguments.output}")
    return 0


def _draw(arguments: argparse.Namespace) -> int:
    # After the arguments, so that --help answers at once
    from sap_detr_hf.drawing import contact_sheet, draw_sample
    from sap_detr_hf.files import prepare_folder

    rows, data, image_processor = _samples(arguments)
    earlier = [path.name for path in arguments.output.glob("[0-9]*_image_id_*.png")]
    prepare_folder(arguments.output, arguments.overwrite, results=(*earlier, "all.png"))
    pictures = []
    for index in range(min(arguments.count, len(rows))):
        sample = rows[index]
        picture = draw_sample(sample, data.id2label, image_processor)
        picture.save(arguments.output / f"{index:04d}_image_id_{sample['labels']['image_id'].item()}.png")
        pictures.append(picture)
    contact_sheet(pictures, cell=(400, 400)).save(arguments.output / "all.png")
    return len(pictures)


def _samples(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Rows, data and image processor as in training: at the size of the model's own where none is given."""
    from transformers import AutoImageProcessor

    from sap_detr_hf import SapDetrImageProcessorPil
    from sap_detr_hf.data.augmentation import make_augmentation
    from sap_detr_hf.data.dataset import DetectionRows, load_detection_data
    from sap_detr_hf.weights.pretrained import at_size, readable_model

    image_processor: Any = SapDetrImageProcessorPil()
    if arguments.model:
        with readable_model(arguments.model):
            image_processor = AutoImageProcessor.from_pretrained(arguments.model)
    image_processor = at_size(image_processor, arguments.shortest_edge, arguments.longest_edge)
    size = {name: image_processor.size[name] for name in ("shortest_edge", "longest_edge")}
    options = {name: getattr(arguments, name) for name in ("annotations", "images", "box_format")}
    data = load_detection_data(arguments.data, arguments.split, **options)
    augmentation = make_augmentation(arguments.augmentation, **size)
    rows = DetectionRows(data, image_processor, augmentation, seed=arguments.seed)
    rows.set_epoch(arguments.epoch)
    return rows, data, image_processor


if __name__ == "__main__":
    sys.exit(main())
