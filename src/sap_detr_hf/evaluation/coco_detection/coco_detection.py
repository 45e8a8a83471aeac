"""COCO box AP as an `evaluate.Metric`: `evaluate.load(sap_detr_hf.evaluation.coco_metric.COCO_METRIC_PATH)`."""

import datasets
import evaluate

from sap_detr_hf.evaluation.coco_metric import CocoMetric, GroundTruth

_DESCRIPTION = "Official COCO average precision and recall of boxes, computed by COCOeval."
_INPUTS = """
Args:
    predictions: one dict an image: image_id, bbox (n x 4: x, y, width, height in pixels), category (n), score (n).
    references: one dict an image, in the order of the predictions: image_id, bbox (n x 4), category (n), area (n),
        iscrowd (n).
    names: optional dict, category id -> name; the categories of the references if not given.
Returns:
    AP, AP50, AP75, AP_small, AP_medium, AP_large, AR1, AR10, AR100, AR_small, AR_medium, AR_large in 0..1 (NaN where
    there is nothing to count) and per_class, a list with the same numbers for each category.
"""
_CITATION = """
@inproceedings{lin2014coco,
    title = {Microsoft {COCO}: Common Objects in Context},
    author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva
              and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
    booktitle = {ECCV},
    year = {2014},
}
"""


class CocoDetection(evaluate.Metric):
    """Predictions and references are added batch after batch; `evaluate` keeps them in an Arrow file on the disk."""

    def _info(self):
        box = datasets.List(datasets.Value("float64"), length=4)
        number, integer = datasets.Value("float64"), datasets.Value("int64")
        prediction = {"image_id": integer, "bbox": datasets.List(box), "category": datasets.List(integer)}
        features = {
            "predictions": {**prediction, "score": datasets.List(number)},
            "references": {**prediction, "area": datasets.List(number), "iscrowd": datasets.List(integer)},
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://cocodataset.org/#detection-eval"],
        )

    def _compute(self, predictions, references, names=None):
        metric = CocoMetric(
            GroundTruth.from_rows(({"image_id": r["image_id"], "objects": r} for r in references), names)
        )
        for prediction, reference in zip(predictions, references, strict=True):
            if prediction["image_id"] != reference["image_id"]:
                raise ValueError(
                    f"a prediction of image id {prediction['image_id']} is paired with the reference of image id "
                    f"{reference['image_id']}; give both in the same order"
                )
            metric.add(prediction["image_id"], prediction["bbox"], prediction["score"], prediction["category"])
        result = metric.compute()
        return {**result.metrics, "per_class": result.per_class}
