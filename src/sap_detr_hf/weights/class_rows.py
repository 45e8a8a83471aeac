"""Copy the weights of classes that the base model has too, matched by name, into a new class head."""

import copy
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel


def shared_classes(
    old: Mapping[int, str], new: Mapping[int, str], renamed: Mapping[str, str] | None = None
) -> dict[int, int]:
    """Match classes by name, whatever their case, spaces and underscores.

    Args:
        old: `id2label` of the model that is fine-tuned.
        new: the data's.
        renamed: names of the model's classes by the data's own names for them, such as `{"pedestrian": "person"}`.

    Returns:
        The old index of each new index that has one. A name that several old classes share matches none.

    Raises:
        ValueError: `renamed` names a class that is not there.
    """
    indices: dict[str, list[int]] = {}
    for index, name in old.items():
        indices.setdefault(_plain(name), []).append(index)
    wanted = {_plain(theirs): _plain(ours) for theirs, ours in (renamed or {}).items()}
    for theirs, ours in (renamed or {}).items():
        for name, known, where in ((theirs, map(_plain, new.values()), "data"), (ours, indices, "model")):
            if _plain(name) not in known:
                raise ValueError(f"{name!r} is renamed, but no class of the {where} has this name.")
    matches = {index: indices.get(wanted.get(_plain(name), _plain(name)), []) for index, name in new.items()}
    return {index: found[0] for index, found in matches.items() if len(found) == 1}


def _plain(name: str) -> str:
    return name.casefold().replace(" ", "").replace("_", "")


def class_tensors(model: PreTrainedModel) -> set[str]:
    """Name the parameters that have a row for each class: those whose first dimension grows with the classes."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "category_ids"):
        config.category_ids = None
    config.num_labels = len(model.config.id2label or ()) + 1
    with torch.device("meta"):
        larger = dict(type(model)(config).named_parameters())
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.shape != larger[name].shape and parameter.shape[1:] == larger[name].shape[1:]
    }


@torch.no_grad()
def start_class_rows(model: PreTrainedModel, base: PreTrainedModel, pairs: Mapping[int, int]) -> None:
    """Initialize every class head, except for the rows of classes that the base model has.

    Args:
        model: with the new classes, changed in place.
        pairs: new class index -> index in `base`, see [`shared_classes`].
    """
    fresh = dict(type(model)(model.config).named_parameters())
    old = dict(base.named_parameters())
    ours, theirs = list(pairs), list(pairs.values())
    for name in class_tensors(model):
        parameter = model.get_parameter(name)
        parameter.copy_(fresh[name])
        if pairs and name in old and parameter.shape[1:] == old[name].shape[1:]:
            parameter[ours] = old[name][theirs].to(parameter)
