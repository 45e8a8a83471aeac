"""Boxes through the image processors of both backends: COCO annotations to labels, model outputs to detections."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processor_cases import SMALL, both_backends, photograph, target

from sap_detr_hf.model.image_processing_pil_sap_detr import SapDetrImageProcessorPil

# --- annotations ---


@both_backends
def test_boxes_stay_relative_to_the_valid_image(processor_class):
    images = [photograph(64, 48), photograph(48, 64), photograph(60, 60)]
    annotations = [target(7, [0, 0, 64, 48]), target(8, [0, 0, 48, 64], [12, 16, 24, 32]), target(9)]

    encoded = processor_class(size=SMALL)(images, annotations=annotations, return_tensors="pt")

    assert encoded.pixel_values.shape == (3, 3, 64, 64)
    assert encoded.labels[0]["boxes"].tolist() == [[0.5, 0.5, 1.0, 1.0]]
    assert encoded.labels[1]["boxes"].tolist() == [[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]
    assert encoded.labels[2]["boxes"].shape == (0, 4)
    assert [labels["size"].tolist() for labels in encoded.labels] == [[48, 64], [64, 48], [48, 48]]
    # 1 = valid, and nothing but zeros outside
    assert encoded.pixel_mask.sum((1, 2)).tolist() == [48 * 64, 64 * 48, 48 * 48]
    assert encoded.pixel_mask[0, 47].all()
    assert not encoded.pixel_mask[0, 48].any()
    assert not (encoded.pixel_values * (1 - encoded.pixel_mask[:, None])).any()


@both_backends
def test_padding_to_a_given_size_and_no_resizing(processor_class):
    annotations = target(1, [10, 12, 20, 24])
    expected = pytest.approx([20 / 64, 24 / 48, 20 / 64, 24 / 48])
    for kwargs in ({}, {"pad_size": {"height": 100, "width": 90}}):
        encoded = processor_class(do_resize=False)(
            photograph(64, 48), annotations=annotations, return_tensors="pt", **kwargs
        )
        (labels,) = encoded.labels
        assert labels["boxes"][0].tolist() == expected
        assert labels["size"].tolist() == [48, 64]
    assert encoded.pixel_values.shape == (1, 3, 100, 90)


@both_backends
def test_labels(processor_class):
    annotations = {
        "image_id": 139,
        "annotations": [
            {"id": 1, "bbox": [8, 6, 16, 12], "category_id": 90, "area": 100.0, "iscrowd": 0},
            {"id": 2, "bbox": [0, 0, 64, 48], "category_id": 2, "area": 9.0, "iscrowd": 1},  # crowd
            {"id": 3, "bbox": [-10, -10, 26, 22], "category_id": 3, "area": 50.0},  # clipped to 16 x 12
            {"id": 4, "bbox": [5, 5, 0, 10], "category_id": 4, "area": 0.0, "iscrowd": 0},  # no width
            {"id": 5, "bbox": [5, 5, 10, -3], "category_id": 5, "area": 0.0, "iscrowd": 0},  # negative height
            {"id": 6, "bbox": [70, 5, 10, 10], "category_id": 6, "area": 100.0, "iscrowd": 0},  # outside
            {"id": 7, "bbox": np.array([32, 24, 8, 6]), "category_id": np.int64(7)},  # without area
        ],
    }
    before = json.dumps(annotations, default=lambda value: value.tolist())

    (labels,) = processor_class(size={"height": 96, "width": 64})(
        photograph(64, 48), annotations=annotations, return_tensors="pt"
    ).labels

    assert set(labels) == {"size", "orig_size", "image_id", "class_labels", "boxes", "area", "iscrowd"}
    assert labels["class_labels"].tolist() == [90, 3, 7]
    assert labels["boxes"].tolist() == [
        [0.25, 0.25, 0.25, 0.25],
        [0.125, 0.125, 0.25, 0.25],
        [0.5625] * 2 + [0.125] * 2,
    ]
    assert labels["area"].tolist() == [200.0, 100.0, 96.0]  # in the resized image, which is twice as high
    assert labels["iscrowd"].tolist() == [0, 0, 0]
    assert labels["image_id"].tolist() == [139]
    assert labels["orig_size"].tolist() == [48, 64]
    assert labels["size"].tolist() == [96, 64]
    for name in ("class_labels", "image_id", "orig_size", "size", "iscrowd"):
        assert labels[name].dtype == torch.int64, name
    assert labels["boxes"].dtype == labels["area"].dtype == torch.float32
    assert json.dumps(annotations, default=lambda value: value.tolist()) == before


@both_backends
def test_unconverted_boxes_are_corners_in_pixels(processor_class):
    images = [photograph(64, 48), photograph(48, 64)]
    encoded = processor_class(size=SMALL, do_convert_annotations=False)(
        images, annotations=[target(1, [8, 6, 16, 12]), target(2)], return_tensors="pt"
    )
    assert encoded.labels[0]["boxes"].tolist() == [[8.0, 6.0, 24.0, 18.0]]


@both_backends
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, float("nan"), 4]}, r"image_id 42, annotation 1 \(id 77\): bbox must be 4 finite numbers"),
        ({"bbox": [1, 2, math.inf, 4]}, "image_id 42, annotation 1 .*finite.*inf"),
        ({"bbox": [1, 2, 3]}, r"image_id 42, annotation 1 .*4 finite numbers.*\[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, "four"]}, "image_id 42, annotation 1 .*'four'"),
        ({"bbox": 7}, "image_id 42, annotation 1 .*got 7"),
        ({"bbox": None}, "image_id 42, annotation 1 .*bbox missing"),
        ({"bbox": None, "category_id": None}, "image_id 42, annotation 1 .*bbox and category_id missing"),
        ({"category_id": "cat"}, "image_id 42, annotation 1 .*category_id must be an integer, got 'cat'"),
        ({"category_id": 1.5}, "image_id 42, annotation 1 .*category_id"),
        ({"area": float("nan")}, "image_id 42, annotation 1 .*area must be a finite number"),
    ],
)
def test_bad_annotation_is_named(processor_class, change, message):
    annotations = target(42, [0, 0, 5, 5], [1, 1, 4, 4])
    annotations["annotations"][1].update({"id": 77, **change})
    with pytest.raises(ValueError, match=message):
        processor_class()([photograph(9, 9)], annotations=[annotations])


@both_backends
@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([{"image_id": 3}], r"must be a dict .*\{'image_id': 3\}"),
        ([{"image_id": 3, "annotations": {"bbox": []}}], "must be a dict"),
        ([{"annotations": []}], "image_id must be an integer, got None"),
        ([{"image_id": "003.jpg", "annotations": []}], "image_id must be an integer, got '003.jpg'"),
        ([{"image_id": 3, "annotations": [[1, 2, 3, 4]]}], "image_id 3, annotation 0: must be a dict"),
        ([target(1), target(2)], r"images \(1\) and annotations \(2\)"),
    ],
)
def test_bad_target(processor_class, annotations, message):
    with pytest.raises(ValueError, match=message):
        processor_class()([photograph(9, 9)], annotations=annotations)


@both_backends
def test_a_crowd_region_is_not_read(processor_class):
    annotations = target(1, [0, 0, 5, 5], iscrowd=1, segmentation={"counts": [3], "size": [9, 9]})
    annotations["annotations"][0]["bbox"] = None
    (labels,) = processor_class(size=SMALL)(photograph(9, 9), annotations=annotations, return_tensors="pt").labels
    assert len(labels["boxes"]) == 0


@both_backends
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_masks_grow_with_the_padding_and_boxes_do_not(processor_class):
    pytest.importorskip("pycocotools", reason="masks of polygons need pycocotools")
    polygon = [[0, 0, 32, 0, 32, 24, 0, 24]]
    annotations = [target(1, [0, 0, 32, 24], segmentation=polygon), target(2, [0, 0, 8, 8], segmentation=polygon)]
    annotations[0]["annotations"].append(
        {"bbox": [0, 0, 64, 48], "category_id": 1, "iscrowd": 1, "segmentation": polygon}
    )
    images = [photograph(64, 48), photograph(64, 60)]
    labels = processor_class(do_resize=False)(
        images,
        annotations=annotations,
        return_segmentation_masks=True,
        return_tensors="pt",
    ).labels
    assert labels[0]["masks"].shape == (1, 60, 64)
    assert labels[0]["masks"].sum() == 32 * 24
    assert labels[0]["boxes"].tolist() == [[0.25, 0.25, 0.5, 0.5]]


def test_annotation_problem_is_found_before_images_are_opened(tmp_path):
    with pytest.raises(ValueError, match=re.escape("image_id 5, annotation 0")):
        SapDetrImageProcessorPil()(tmp_path / "gone.jpg", annotations=target(5, [0, 0, math.nan, 1]))


# --- detections ---


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def two_images(dtype=torch.float32) -> SimpleNamespace:
    """Two images, three queries, two classes."""
    scores = [[[0.9, 0.2], [0.3, 0.8], [0.1, 0.05]], [[0.4, 0.45], [0.1, 0.2], [0.7, 0.3]]]
    boxes = [[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.5], [0.75, 0.25, 0.25, 0.5]]
    logits = torch.tensor([[[logit(score) for score in query] for query in image] for image in scores])
    objectness = torch.full((2, 3, 1), -9.0)  # is not used
    return SimpleNamespace(
        logits=logits.to(dtype), pred_boxes=torch.tensor([boxes, boxes]).to(dtype), pred_objectness=objectness
    )


@both_backends
def test_post_process_by_hand(processor_class):
    results = processor_class().post_process_object_detection(two_images(), 0.35, torch.tensor([[100, 200], [10, 40]]))
    assert [result["labels"].tolist() for result in results] == [[0, 1], [0, 1, 0]]
    assert results[0]["scores"].tolist() == pytest.approx([0.9, 0.8])
    assert results[1]["scores"].tolist() == pytest.approx([0.7, 0.45, 0.4])
    assert results[0]["boxes"].tolist() == [[0, 0, 200, 100], [0, 25, 100, 75]]
    assert results[1]["boxes"].tolist() == [[25, 0, 35, 5], [0, 0, 40, 10], [0, 0, 40, 10]]


@both_backends
def test_post_process_without_sizes_and_with_few_queries(processor_class):
    results = processor_class().post_process_object_detection(two_images(), threshold=0.0)
    assert [len(result["scores"]) for result in results] == [6, 6]  # 3 queries x 2 classes, fewer than 300
    assert results[0]["scores"].tolist() == pytest.approx([0.9, 0.8, 0.3, 0.2, 0.1, 0.05])
    assert results[0]["boxes"].max() == 1.0


@both_backends
def test_post_process_keeps_the_best_300(processor_class):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 306, 91, generator=generator)
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.rand(1, 306, 4, generator=generator))
    processor = processor_class()
    (result,) = processor.post_process_object_detection(outputs, threshold=0.0)
    expected = logits.sigmoid().flatten().sort(descending=True).values[:300]
    torch.testing.assert_close(result["scores"], expected)
    assert len(processor.post_process_object_detection(outputs, 0.0, None, 5)[0]["scores"]) == 5


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_post_process_is_float32(processor_class, dtype):
    """Neither corners nor scaling are computed in the model's precision."""
    outputs = two_images(dtype)
    outputs.pred_boxes[0, 0] = torch.tensor([0.6, 0.3, 0.37, 0.11])
    results = processor_class().post_process_object_detection(outputs, 0.35, [(1999, 1001), (10, 40)])
    assert results[0]["scores"].dtype == results[0]["boxes"].dtype == torch.float32
    center_x, center_y, width, height = outputs.pred_boxes[0, 0].float().tolist()
    corners = [center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2]
    expected = [corner * side for corner, side in zip(corners, [1001, 1999] * 2, strict=True)]
    assert results[0]["boxes"][0].tolist() == pytest.approx(expected, abs=1e-3)


@both_backends
def test_post_process_target_sizes_in_any_form(processor_class):
    processor = processor_class()
    forms = [[(100, 200), (10, 40)], ((100, 200), (10, 40)), np.array([[100, 200], [10, 40]])]
    forms += [[torch.tensor([100, 200]), torch.tensor([10, 40])], torch.tensor([[100.0, 200.0], [10.0, 40.0]])]
    for form in forms:
        results = processor.post_process_object_detection(two_images(), 0.35, form)
        assert results[0]["boxes"].tolist() == [[0, 0, 200, 100], [0, 25, 100, 75]]
    with pytest.raises(ValueError, match="target sizes"):
        processor.post_process_object_detection(two_images(), 0.35, [(100, 200)])


@both_backends
def test_labels_and_detections_meet(processor_class):
    """A perfect prediction of the labels of a padded batch gives back the annotated boxes."""
    images = [photograph(64, 48), photograph(33, 90)]
    bboxes = [[10.0, 5.0, 20.0, 30.0], [1.0, 2.0, 30.0, 80.0]]
    processor = processor_class(size=SMALL)
    labels = processor(
        images, annotations=[target(i, bbox) for i, bbox in enumerate(bboxes)], return_tensors="pt"
    ).labels
    outputs = SimpleNamespace(
        logits=torch.full((2, 1, 1), 5.0), pred_boxes=torch.stack([label["boxes"] for label in labels])
    )
    results = processor.post_process_object_detection(outputs, 0.5, [label["orig_size"] for label in labels])
    for (x, y, width, height), result in zip(bboxes, results, strict=True):
        assert result["boxes"][0].tolist() == pytest.approx([x, y, x + width, y + height], abs=1e-3)
