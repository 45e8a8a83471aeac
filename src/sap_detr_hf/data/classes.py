"""Classes of a data set: how its category ids become class indices, and whether a model has the same."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..model.coco_labels import COCO_ID2LABEL

if TYPE_CHECKING:
    from .dataset import DetectionData


def number_classes(names: dict[int, str], categories: str, source: str) -> tuple[dict[int, str], list[int] | None]:
    """`id2label` and `category_ids` of the categories (id -> name); see `load_detection_data` for the two ways."""
    if categories == "contiguous":
        category_ids = sorted(names)
        return {index: names[category_id] for index, category_id in enumerate(category_ids)}, category_ids
    for category_id, name in names.items():
        if category_id not in COCO_ID2LABEL:
            raise ValueError(
                f'Category {category_id} ("{name}") of {source} does not fit into the {len(COCO_ID2LABEL)} slots of '
                'categories "coco91": use "contiguous".'
            )
    return {**COCO_ID2LABEL, **names}, None


def class_indices(categories: Iterable[int], category_ids: list[int] | None) -> torch.Tensor:
    """Class index of each of the data set's own category ids, (n,) int64.

    Raises:
        ValueError: A category id is not among `category_ids`.
    """
    if category_ids is None:
        return torch.tensor(list(categories), dtype=torch.int64)
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    try:
        return torch.tensor([index_of[category] for category in categories], dtype=torch.int64)
    except KeyError as error:
        raise ValueError(f"Category id {error.args[0]} is not one of the classes' ids {category_ids}.") from error


def check_categories(data: "DetectionData", config: Any) -> None:
    """Make sure that every category of the data is the model's class of the same name.

    Args:
        data: The data set.
        config: The model's configuration, with `id2label` and `category_ids`.

    Raises:
        ValueError: Names the first category that the model does not know or calls otherwise, and what to do.
    """
    category_ids = getattr(config, "category_ids", None)
    labels = {int(index): label for index, label in config.id2label.items()}
    if category_ids is None:
        label_of = labels
    else:
        label_of = {category_id: labels[index] for index, category_id in enumerate(category_ids)}
    advice = (
        "Train with a new head for these categories, or use the data set that the model was trained on"
        " (released COCO checkpoints: raw ids 1..90 in 91 slots)."
    )
    for category_id, name in data.categories.items():
        if category_id not in label_of:
            raise ValueError(
                f'Category {category_id} ("{name}") of {data.source} is not among the model\'s {len(label_of)} '
                f"category ids {_shortened(sorted(label_of))}. {advice}"
            )
        label = label_of[category_id]
        unnamed = label.startswith("LABEL_")
        if not unnamed and label.casefold() != name.casefold():
            raise ValueError(
                f'Category {category_id} is "{name}" in {data.source} but "{label}" in the model. {advice}'
            )


def _shortened(values: list[int]) -> str:
    return str(values) if len(values) <= 20 else f"{values[0]}..{values[-1]}"
