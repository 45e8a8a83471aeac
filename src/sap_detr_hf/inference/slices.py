"""Detect small objects in large images in overlapping slices, with SAHI."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .detector import Detector, SalientDetections, prepare_batch

try:
    from sahi.models.base import DetectionModel
    from sahi.postprocess.backends import set_postprocess_backend
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction
    from sahi.slicing import get_slice_bboxes
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
except ModuleNotFoundError as error:
    raise ImportError(f"Slices need SAHI ({error}): pip install 'sap-detr-hf[sliced]'.") from error
except ImportError as error:
    raise ImportError(
        f"OpenCV, which slices need, cannot be imported ({error}). On a machine without a display: `pip uninstall "
        "opencv-python`, then `pip install opencv-python-headless`."
    ) from error

# On a machine with a GPU SAHI would suppress on its first one and set CUDA_VISIBLE_DEVICES for all child processes.
set_postprocess_backend("numpy")

TOP_K = 1000  # detections per image: a large one shows more than 300 objects; COCO AP counts 100 of each class
OVERLAP = 0.2
CUT_MARGIN = 0.01  # of a slice: what ends closer to its border is taken to be cut there


class SlicedDetector:
    """A detector run on overlapping slices of each image, on request also on the whole image.

    Parts of objects that the next slice shows better are dropped, see [`seen_better_next_door`]. Then duplicates are
    suppressed class by class, never merged, so that box, score and salient point of a detection come from one
    prediction. An image that is no larger than a slice is detected as without slices.

    Args:
        detector: its threshold and `top_k` hold for each slice.
        size: width and height of a slice in pixels of the image.
        overlap: share of a slice that the next one repeats, at least 0 and below 1: best as wide as an object.
        whole_image: detect in the whole image as well, for objects larger than a slice.
        batch_size: slices that run together.
        nms: IoU above which the lower score of two detections of a class is dropped.
        top_k: largest number of detections per image, over all classes.
    """

    def __init__(
        self,
        detector: Detector,
        size: int,
        overlap: float = OVERLAP,
        whole_image: bool = True,
        batch_size: int = 1,
        nms: float = 0.5,
        top_k: int = TOP_K,
    ):
        self.detector, self.size, self.overlap, self.top_k = detector, size, overlap, top_k
        self.options: dict[str, Any] = {
            "slice_height": size,
            "slice_width": size,
            "overlap_height_ratio": overlap,
            "overlap_width_ratio": overlap,
            "perform_standard_pred": whole_image,
            "batch_size": batch_size,
            "postprocess_type": "NMS",
            "postprocess_match_metric": "IOU",
            "postprocess_match_threshold": nms,
            "verbose": 0,
        }

    @classmethod
    def of_settings(cls, detector: Detector, settings: Any, top_k: int = TOP_K) -> "SlicedDetector":
        """Make one by a verb's settings: `slice`, `overlap`, `whole_image` and `batch_size`."""
        overlap = OVERLAP if settings.overlap is None else settings.overlap
        return cls(
            detector, settings.slice, overlap, settings.whole_image is not False, settings.batch_size, top_k=top_k
        )

    def count(self, size: tuple[int, int]) -> int:
        """Count the slices of a picture of this width and height in pixels."""
        return len(get_slice_bboxes(size[1], size[0], self.size, self.size, False, self.overlap, self.overlap))

    def __call__(self, image: Image.Image, name: str) -> SalientDetections | ValueError:
        """The image's detections, or why there are none, see [`detect`]."""
        try:
            return self.detect(image, name)
        except ValueError as error:
            return error

    def detect(self, image: Image.Image, name: str = "the image") -> SalientDetections:
        """Detect objects in one upright RGB image, called `name` in messages.

        Returns:
            Detections in pixels of the image; `queries` is -1 of those that come from a slice.

        Raises:
            ValueError: the model's output is not finite.
        """
        if max(image.size) <= self.size:
            return self.detector.detect(image, name)
        model = SahiDetectionModel(self.detector, name, int(self.overlap * self.size))
        most_pixels = Image.MAX_IMAGE_PIXELS
        try:
            kept = get_sliced_prediction(image, model, **self.options).object_prediction_list
        finally:
            Image.MAX_IMAGE_PIXELS = most_pixels  # SAHI lifts Pillow's limit
        places = torch.tensor([vars(prediction)["place"] for prediction in kept], dtype=torch.int64)
        return SalientDetections.join(model.found).select(places[: self.top_k])


class SahiDetectionModel(DetectionModel):
    """A [`Detector`] as SAHI's functions take it.

    Args:
        detector: its threshold is SAHI's `confidence_threshold`.
        name: name of the image in messages.
        overlap: pixels that neighboring slices share.

    Attributes:
        found: detections of all slices so far, in pixels of the image.
    """

    def __init__(self, detector: Detector, name: str = "the image", overlap: int = 0):
        self.detector, self.name, self.overlap = detector, name, overlap
        self.found: list[SalientDetections] = []
        super().__init__(model=detector.model, confidence_threshold=detector.threshold)

    @property
    def confidence_threshold(self) -> float:
        """The detector's threshold, which SAHI's functions may change for one call."""
        return self.detector.threshold

    @confidence_threshold.setter
    def confidence_threshold(self, threshold: float) -> None:
        self.detector.threshold = threshold

    def set_device(self, device: str | None = None) -> None:
        """Leave the model where it is; the base class would set CUDA_VISIBLE_DEVICES."""
        self.device = self.detector.device

    def set_model(self, model: Any, **kwargs: Any) -> None:
        """Take the model and its class names."""
        self.model = model
        id2label = getattr(model.config, "id2label", None) or {}
        self.category_mapping = {str(index): name for index, name in id2label.items()}

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect in the whole image (height, width, 3), RGB."""
        self._original_predictions = self._detect([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        """Detect in slices of one size, each (height, width, 3), RGB."""
        slices = self._detect(images)
        self._original_predictions = [replace(each, queries=torch.full_like(each.queries, -1)) for each in slices]

    def _detect(self, images: list[np.ndarray]) -> list[SalientDetections]:
        pictures = [Image.fromarray(image) for image in images]
        self._sizes = [picture.size for picture in pictures]
        inputs = prepare_batch(self.detector.image_processor, *pictures)
        detections = []
        for found in self.detector(inputs, self._sizes, [self.name] * len(pictures)):
            if isinstance(found, ValueError):
                raise found
            detections.append(found)
        return detections

    def _create_object_prediction_list_from_original_predictions(
        self,
        shift_amount_list: list[list[int | float]] | None = None,
        full_shape_list: list[list[int | float]] | None = None,
    ) -> None:
        shifts = fix_shift_amount_list(shift_amount_list)
        shapes = fix_full_shape_list(full_shape_list) or [[height, width] for width, height in self._sizes]
        slices = zip(self._original_predictions, self._sizes, shifts, shapes, strict=True)
        self._object_prediction_list_per_image = [self._predictions(*each) for each in slices]

    def _predictions(
        self, found: SalientDetections, size: Sequence[float], shift: list[int | float], shape: Sequence[float]
    ) -> list[ObjectPrediction]:
        worse = seen_better_next_door(found.boxes, size, shift, (shape[1], shape[0]), self.overlap)
        found = found.select((~worse).nonzero()[:, 0])
        first = sum(map(len, self.found))
        self.found.append(found.shifted(*shift))
        boxes = found.boxes.clamp(min=0)  # SAHI refuses negative corners
        columns = zip(boxes.tolist(), found.scores.tolist(), found.classes.tolist(), found.labels, strict=True)
        return [
            SlicePrediction(place, box, score=score, category_id=index, category_name=label, shift_amount=shift)
            for place, (box, score, index, label) in enumerate(columns, start=first)
        ]


class SlicePrediction(ObjectPrediction):
    """SAHI's form of a detection.

    Args:
        place: position among all detections of the image.
        bbox: x1, y1, x2, y2 in pixels.
        fields: see SAHI.
    """

    def __init__(self, place: int, bbox: list[float], **fields: Any):
        super().__init__(bbox, **fields)
        self.place = place

    def get_shifted_object_prediction(self) -> "SlicePrediction":
        """The prediction in pixels of the image; SAHI's own would lose its place."""
        box = self.bbox.get_shifted_box().to_xyxy()
        category = {"category_id": self.category.id, "category_name": self.category.name}
        return SlicePrediction(self.place, box, score=self.score.value, **category)


def seen_better_next_door(
    boxes: torch.Tensor, size: Sequence[float], shift: Sequence[float], picture: Sequence[float], overlap: float
) -> torch.Tensor:
    """Find boxes that end at an inner border of their slice and lie in the overlap: the next slice shows all and more.

    Args:
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the slice.
        size: width and height of the slice.
        shift: x and y of its left top corner in the image.
        picture: width and height of the image.
        overlap: pixels that neighboring slices share.

    Returns:
        (n,) bool.
    """
    low, high = boxes[:, :2], boxes[:, 2:]  # left and top, right and bottom
    end, start, whole = (torch.tensor(pair, dtype=boxes.dtype) for pair in (size, shift, picture))
    margin = CUT_MARGIN * end
    # What ends so near to both borders of the overlap would be dropped by both slices: both keep it.
    cut_low = (start > 0) & (low < margin) & (high < overlap - margin)
    cut_high = (start + end < whole) & (high > end - margin) & (low > end - overlap + margin)
    return (cut_low | cut_high).any(1)
