"""Shared code of both image processors: image modes, released sizes, COCO annotations, best detections."""

import math
import operator
import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import center_to_corners_format
from transformers.image_utils import (
    AnnotationFormat,
    ChannelDimension,
    SizeDict,
    get_image_size_for_max_height_width,
    load_image,
)
from transformers.processing_utils import ImagesKwargs

from .image_files import open_image, to_rgb


class SapDetrImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    format (`str`, *optional*, defaults to `AnnotationFormat.COCO_DETECTION`):
        Data format of the annotations. One of "coco_detection" or "coco_panoptic".
    do_convert_annotations (`bool`, *optional*, defaults to `True`):
        Whether to turn the boxes into `(center_x, center_y, width, height)` in [0, 1] of the valid image.
    """

    format: str | AnnotationFormat
    do_convert_annotations: bool


class SapDetrDetectionProcessing(BaseImageProcessor):
    """Mixed in before a Deformable DETR image processor, whose steps it narrows to what SAP-DETR was trained with.

    Every box stays relative to the valid image, also where a batch is padded: Deformable DETR's processor divides by
    the padded size instead. (`super()` is that processor, which a type checker cannot know from here.)
    """

    valid_kwargs = SapDetrImageProcessorKwargs
    format: Any
    do_convert_rgb = True
    do_convert_annotations = True  # stated, or Deformable DETR leaves boxes in pixels where do_normalize is off

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open files as [`open_image`] does, URLs and base64 strings as pipelines do; the same for both backends."""
        images = image_url_or_urls
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, os.PathLike) or (isinstance(images, str) and os.path.isfile(images)):
            return open_image(images)
        return load_image(images) if isinstance(images, str) else super().fetch_images(images)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> Any:
        """Turn one image into the backend's array, (channels, height, width); a PIL image upright, of any mode."""
        if isinstance(image, Image.Image):
            image = to_rgb(image) if do_convert_rgb else ImageOps.exif_transpose(image)
            image = np.array(image)
            image = image[..., None] if image.ndim == 2 else image
            input_data_format = ChannelDimension.LAST
        elif kwargs.get("do_rescale") and kwargs.get("rescale_factor", 0) >= 1 / 256:  # meant for values up to 255
            image = eight_bit_scale(image)
        if isinstance(image, np.ndarray) and min(image.strides) < 0:
            image = np.ascontiguousarray(image)  # PyTorch knows no negative strides
        image = super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )
        return image[[0, 0, 0]] if do_convert_rgb and image.shape[0] == 1 else image  # (3, height, width)

    def preprocess(
        self,
        images: Any,
        annotations: dict | list[dict] | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | os.PathLike | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Turn images, and COCO annotations if given, into the model's input.

        Args:
            images: one or several of PIL image, array or tensor (see the base class), path, URL. Arrays and tensors may
                be gray (height, width). Where `do_rescale` is on they hold values of [0, 255], floats of [0, 1],
                booleans or 16-bit unsigned integers; the last three are scaled to 8 bits.
            annotations: per image `{"image_id": int, "annotations": [{"bbox": [x, y, width, height] in pixels of the
                upright image, "category_id": int, "area": float, "iscrowd": 0 or 1}, ...]}`. Boxes are clipped to the
                image. Crowd regions and boxes without width or height are dropped. An absent area is the box's.
            return_segmentation_masks, masks_path: as in `DeformableDetrImageProcessor`.
            kwargs: any of [`SapDetrImageProcessorKwargs`] for this call.

        Returns:
            `pixel_values` (batch, 3, height, width), `pixel_mask` (batch, height, width; 1 = valid), and with
            annotations `labels`, a list of one dict per image: `class_labels` (n,), `boxes` (n, 4) as center_x,
            center_y, width, height in [0, 1] of the valid image, `image_id` (1,), `orig_size` and `size` (height,
            width) before and after resizing, without padding, `area` (n,) in pixels of `size`, `iscrowd` (n,), all 0.

        Raises:
            ValueError: there are no images, an array's values are in none of these ranges, or an annotation lacks a key
                or has unusable numbers (names image_id and annotation).
            ImageFileError: a file is broken, too large, or no image.
        """
        annotation_format = AnnotationFormat(kwargs.get("format") or self.format)
        if annotations is not None and annotation_format == AnnotationFormat.COCO_DETECTION:
            targets = [annotations] if isinstance(annotations, dict) else annotations
            annotations = [checked_coco_target(target) for target in targets]
        last = kwargs.get("input_data_format") in (ChannelDimension.LAST, ChannelDimension.LAST.value)
        images = with_channel_axis(images, -1 if last else 0)
        return super().preprocess(images, annotations, return_segmentation_masks, masks_path, **kwargs)

    def prepare_annotation(self, *args, **kwargs) -> dict:
        """Deformable DETR's, with `size` in the labels also where the image is neither resized nor padded."""
        target = super().prepare_annotation(*args, **kwargs)  # type: ignore[misc]
        return {"size": target["orig_size"], **target}

    def resize(self, image: Any, size: SizeDict, *args, **kwargs) -> Any:
        """Resize to the size the released code gives, at least one pixel a side.

        Args:
            image: (..., height, width).
            size: with `shortest_edge` and `longest_edge`, `max_height` and `max_width`, or `height` and `width`.
        """
        height, width = image.shape[-2:]
        if size.shortest_edge and size.longest_edge:
            height, width = released_image_size(height, width, size.shortest_edge, size.longest_edge)
            size = SizeDict(height=height, width=width)
        elif size.max_height and size.max_width:
            height, width = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
            size = SizeDict(height=max(1, height), width=max(1, width))
        return super().resize(image, size, *args, **kwargs)  # type: ignore[misc]

    def _update_annotation_for_padded_image(
        self,
        annotation: dict,
        input_image_size: tuple[int, int],
        output_image_size: tuple[int, int],
        padding: Any,
        update_bboxes: bool,
    ) -> dict:
        # Masks grow with the image; boxes, and the size that they refer to, stay those of the valid image.
        padded = super()._update_annotation_for_padded_image(  # type: ignore[misc]
            annotation, input_image_size, output_image_size, padding, update_bboxes=False
        )
        return {**padded, "size": annotation["size"]}

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
        top_k: int = 300,
    ) -> list[dict[str, torch.Tensor]]:
        """Pick each image's best detections: the `top_k` best of sigmoid(class logit) over queries x classes.

        The objectness is not used, as in the released evaluation. Results are float32, whatever the model's precision.

        Args:
            outputs: with `logits` (batch, queries, classes) and `pred_boxes` (batch, queries, 4) as center_x, center_y,
                width, height in [0, 1].
            threshold: only detections of a higher score are returned.
            target_sizes: (height, width) of each upright image, in pixels; without it boxes stay in [0, 1].
            top_k: detections kept at most, before the threshold.

        Returns:
            Per image `scores` (n,) in falling order, `labels` (n,), `boxes` (n, 4) as x1, y1, x2, y2, `queries` (n,),
            the query of each detection, and where the outputs have `pred_points`, `points` (n, 2) as x, y.

        Raises:
            ValueError: the number of target sizes is not the batch size.
        """
        batch, _, classes = outputs.logits.shape
        if target_sizes is not None and len(target_sizes) != batch:
            raise ValueError(
                f"There are {batch} images but {len(target_sizes)} target sizes: give one (height, width) each."
            )
        scores, index = outputs.logits.float().sigmoid().flatten(1).topk(min(top_k, outputs.logits[0].numel()), dim=1)
        positions: dict[str, Any] = {"boxes": center_to_corners_format(outputs.pred_boxes.float())}
        if getattr(outputs, "pred_points", None) is not None:
            positions["points"] = outputs.pred_points.float()
        found = []
        for image in range(batch):
            above = scores[image] > threshold
            queries, labels = index[image][above] // classes, index[image][above] % classes
            result = {"scores": scores[image][above], "labels": labels, "queries": queries}
            for name, values in positions.items():
                values = values[image, queries]
                if target_sizes is not None:
                    height, width = target_sizes[image]
                    values = values * values.new_tensor([width, height] * (values.shape[-1] // 2))
                result[name] = values
            found.append(result)
        return found


def with_channel_axis(images: Any, axis: int) -> Any:
    """Images, of which gray arrays and tensors (height, width) get an axis for their one channel.

    Raises:
        ValueError: a list is empty.
    """
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("There are no images: the list is empty.")
        return [with_channel_axis(image, axis) for image in images]
    if isinstance(images, torch.Tensor):
        return images.unsqueeze(axis) if images.ndim == 2 else images
    return np.expand_dims(images, axis) if isinstance(images, np.ndarray) and images.ndim == 2 else images


def eight_bit_scale(image: Any) -> Any:
    """An array or tensor whose white is 255: booleans, 16-bit unsigned integers and floats in [0, 1] become uint8.

    Raises:
        ValueError: it has no pixels, or values outside [0, 255] that do not say what white is.
    """
    if 0 in image.shape:
        raise ValueError(f"An image of the shape {tuple(image.shape)} has no pixels.")
    kind = str(image.dtype).removeprefix("torch.")
    if kind == "uint8":
        return image
    if kind.startswith("complex"):
        raise ValueError(f"An image of {kind} numbers cannot be read.")
    values: Any = image.float() if isinstance(image, torch.Tensor) else image.astype(np.float32)
    lowest, highest = float(values.min()), float(values.max())
    white = {"bool": 1, "uint16": 65535}.get(kind, 255)
    if "float" in kind and lowest >= 0 and highest <= 1:
        white = 1
    if not (lowest >= 0 and highest <= white):  # also where they are NaN
        raise ValueError(
            f"An image of the type {kind} has values from {lowest:g} to {highest:g}: scale it to [0, 255] or, as "
            "floats, to [0, 1]; or set do_rescale=False where it is scaled as the model wants it."
        )
    if white == 255:
        return values if kind == "bfloat16" else image  # NumPy has no bfloat16
    scaled = (values * (255 / white)).round()
    return scaled.byte() if isinstance(image, torch.Tensor) else scaled.astype(np.uint8)


def released_image_size(height: int, width: int, shortest_edge: int, longest_edge: int) -> tuple[int, int]:
    """Height and width after resizing, by the rule the released checkpoints were trained and evaluated with.

    The shorter side becomes `shortest_edge`, less where the longer side would exceed `longest_edge`. In that case the
    shorter side is rounded first and the longer side follows from it, so that it may pass `longest_edge` by a few
    pixels (transformers' own rule differs there by up to 2 pixels). For an image over `2 * longest_edge` times as long
    as wide the released rule gives 0 pixels; here it becomes 1 pixel by `longest_edge`.

    Source: `get_size_with_aspect_ratio` in the `datasets/transforms.py` of DETR and its followers.
    """
    shorter, longer = min(height, width), max(height, width)
    if shorter < 1:
        raise ValueError(f"An image of {height} x {width} (height x width) pixels has nothing to detect.")
    new_shorter = shortest_edge
    if longer / shorter * shortest_edge > longest_edge:
        new_shorter = round(longest_edge * shorter / longer)
    new_longer = int(new_shorter * longer / shorter) if new_shorter else longest_edge
    new_shorter = max(1, new_shorter)
    return (new_longer, new_shorter) if height > width else (new_shorter, new_longer)


def checked_coco_target(target: dict) -> dict:
    """One image's COCO annotations reduced to what detection needs: no crowd regions, plain and finite numbers.

    Raises:
        ValueError: naming the image_id and the annotation's place in the list (and its id).
    """
    if not isinstance(target, dict) or not isinstance(target.get("annotations"), (list, tuple)):
        raise ValueError(
            'The annotations of an image must be a dict {"image_id": int, "annotations": [COCO annotation, ...]}, '
            f"got {shortened(repr(target))}."
        )
    image_id = _integer(target.get("image_id"), "image_id", "The annotations of an image")
    annotations = []
    for index, annotation in enumerate(target["annotations"]):
        place = f"image_id {image_id}, annotation {index}"
        if not isinstance(annotation, dict):
            raise ValueError(f"{place}: must be a dict with bbox and category_id, got {shortened(repr(annotation))}.")
        if not annotation.get("iscrowd"):
            place = f"{place} (id {annotation['id']})" if "id" in annotation else place
            annotations.append(_checked_annotation(annotation, place))
    return {"image_id": image_id, "annotations": annotations}


def _checked_annotation(annotation: dict, place: str) -> dict:
    missing = [key for key in ("bbox", "category_id") if annotation.get(key) is None]
    if missing:
        raise ValueError(f"{place}: {' and '.join(missing)} missing.")
    bbox = _finite_numbers(annotation["bbox"], 4, "bbox must be 4 finite numbers [x, y, width, height]", place)
    area = annotation.get("area")
    if area is None:
        area = bbox[2] * bbox[3]
    checked = {
        "bbox": bbox,
        "category_id": _integer(annotation["category_id"], "category_id", place),
        "area": _finite_numbers([area], 1, "area must be a finite number", place)[0],
        "iscrowd": 0,
    }
    if "segmentation" in annotation:
        checked["segmentation"] = annotation["segmentation"]
    return checked


def _finite_numbers(values: Any, count: int, rule: str, place: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{place}: {rule}, got {shortened(repr(values))}.")
    return numbers


def _integer(value: Any, name: str, place: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{place}: {name} must be an integer, got {shortened(repr(value))}.") from None


def shortened(text: str, limit: int = 100) -> str:
    """The first `limit` characters of a text, followed by dots where it is longer."""
    return text if len(text) <= limit else f"{text[:limit]}..."
