"""Draw training samples."""

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from sap_detr_cli.settings.show_data import ShowDataSettings

from ..data.augmentation import make_augmentation
from ..data.dataset import load_detection_data
from ..data.samples import DetectionRows
from ..drawing import contact_sheet, draw_sample
from ..files import prepare_folder
from ..model.image_processing_pil_sap_detr import SapDetrImageProcessorPil
from ..weights.pretrained import at_size, readable_model


def run(settings: ShowDataSettings) -> int:
    """Write one image per sample, and all.png."""
    output = Path(settings.output)
    rows, data, image_processor = _samples(settings)
    earlier = [path.name for path in output.glob("[0-9]*_image_id_*.png")]
    prepare_folder(output, settings.overwrite, results=(*earlier, "all.png"))
    pictures = []
    for index in range(min(settings.count, len(rows))):
        sample = rows[index]
        picture = draw_sample(sample, data.id2label, image_processor)
        picture.save(output / f"{index:04d}_image_id_{sample['labels']['image_id'].item()}.png")
        pictures.append(picture)
    contact_sheet(pictures, cell=(400, 400)).save(output / "all.png")
    print(f"{len(pictures)} images and all.png are in {output}")
    return 0


def _samples(settings: ShowDataSettings) -> tuple[Any, Any, Any]:
    """Rows, data and image processor as in training: at the size of the model's own where none is given."""
    image_processor: Any = SapDetrImageProcessorPil()
    if settings.model:
        with readable_model(settings.model):
            image_processor = AutoImageProcessor.from_pretrained(settings.model)
    image_processor = at_size(image_processor, settings.shortest_edge, settings.longest_edge)
    size = {name: image_processor.size[name] for name in ("shortest_edge", "longest_edge")}
    options = {name: getattr(settings, name) for name in ("annotations", "images", "box_format")}
    data = load_detection_data(settings.data, settings.split, **options)
    augmentation = make_augmentation(settings.augmentation, **size)
    rows = DetectionRows(data, image_processor, augmentation, seed=settings.seed)
    rows.set_epoch(settings.epoch)
    return rows, data, image_processor
