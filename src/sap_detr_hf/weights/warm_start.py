"""Start a model from another trained detector of transformers, from a directory or the Hub.

A SAP-DETR from a DAB-DETR, DETR or Conditional DETR; a SAP-DINO-DETR from a Deformable DETR.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers import AutoImageProcessor, AutoModelForObjectDetection, PreTrainedConfig

from ..files import require_new_folder
from ..markdown_table import markdown_table
from ..model.image_processing_pil_sap_detr import SapDetrImageProcessorPil
from ..model.pretrained_model import SapDetrPreTrainedModel
from .pretrained import load_complete, needs_timm
from .released_names import resnet_name
from .warm_start_config import read_source, started_config
from .warm_start_names import WarmStartSource

# What an image processor does to pixels, in all DETRs' processors alike.
_PIXEL_FIELDS = (
    "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


@dataclass(frozen=True)
class WarmStart:
    """A model that starts from another detector's weights.

    Args:
        model: in evaluation mode; its heads, and the parts that [`table`] lists, are newly initialized.
        image_processor: with the source's image size, mean and deviation.
        source: directory or Hub id.
        base_model: Hub id of the source, `None` for a directory that names none.
        license: the source's, as its model card names it; `None` if it cannot be read.
        taken: tensors of `model.model` by name: the source's tensor and the factor that it was multiplied by.
        unused: the source's tensors without a place.
    """

    model: SapDetrPreTrainedModel
    image_processor: SapDetrImageProcessorPil
    source: str
    base_model: str | None
    license: str | None
    taken: dict[str, tuple[str, float]]
    unused: tuple[str, ...]

    @property
    def name(self) -> str:
        """What a card may say of the source: its Hub id, or the directory's name without its place."""
        return self.base_model or Path(self.source).name

    def table(self) -> str:
        """Return a Markdown table of the copied and the newly initialized parts."""
        values: dict[tuple[str, str], int] = {}
        for name, tensor in self.model.state_dict().items():
            row = (_part(name.removeprefix("model.")), self._origin(name.removeprefix("model.")))
            values[row] = values.get(row, 0) + tensor.numel()
        taken = sum(count for (_, origin), count in values.items() if origin not in (NEW, CONSTANT))
        share = f"{100 * taken / sum(values.values()):.0f} %"
        rows = [(part, origin, f"{count:,}") for (part, origin), count in values.items()]
        rows.append(("**taken in all**", share, f"{taken:,}"))
        unused = ", ".join(f"`{part}`" for part in dict.fromkeys(map(_part, self.unused)))
        return markdown_table(("part", f"from {self.name}", "values"), rows) + f"\n\nNot taken: {unused or 'nothing'}."

    def _origin(self, name: str) -> str:
        if name not in self.taken:
            return CONSTANT if ".position_scale." in name else NEW
        theirs, factor = self.taken[name]
        return _part(theirs) + ("" if factor == 1 else f" * {factor:.4f}")


NEW = "newly initialized"
CONSTANT = "starts as the constant 1"


def _part(name: str) -> str:
    """The backbone, or a module with `*` for its layers' numbers."""
    module = "backbone" if name.startswith("backbone.") else name.rpartition(".")[0]
    return re.sub(r"\.\d+(?=\.|$)", ".*", module or name)


def warm_start(source: str, **overrides: Any) -> WarmStart:
    """Build a SAP-DETR or SAP-DINO-DETR with the weights of another detector that fit.

    Backbone, projection and encoder then compute what they compute in the source, and so does the content path of the
    decoder layers; everything else starts as in a new model. (A Deformable DETR normalizes over the padding of a batch
    too, a SAP-DINO-DETR over each image alone.)

    Args:
        source: directory or Hub id of a detector whose `model_type` is one of [`WARM_START_SOURCES`].
        overrides: fields of the new model's configuration, such as `id2label` and `category_ids`; by default the
            classes are the source's and the widths and depths follow it.

    Raises:
        OSError: there is no such model.
        ValueError: a model that does not fit, with the reason.
    """
    their_config, kind = read_source(source)
    config = started_config(source, **overrides)
    is_resnet = config.backbone_config.model_type == "resnet"  # type: ignore[union-attr]
    theirs = _tensors(_load(source, their_config), kind, is_resnet)
    model: Any = AutoModelForObjectDetection.from_config(config)
    taken = _fill(source, model.model, theirs, kind.rules_for(their_config))
    if kind.constant_position_scale:
        _scale_positions_by_one(model)
    used = {name for name, _ in taken.values()}
    return WarmStart(
        model=model.eval(),
        image_processor=SapDetrImageProcessorPil(**pixel_settings(source)),
        source=source,
        base_model=base_model_of(source) if Path(source).is_dir() else source,
        license=_card_data(source).get("license"),
        taken=taken,
        unused=tuple(name for name in theirs if name not in used),
    )


def warm_start_model(source: str, target_dir: str | Path, **overrides: Any) -> WarmStart:
    """Write a model directory whose weights come from another detector: configuration, weights, processor and card.

    Args:
        source, overrides: see [`warm_start`].
        target_dir: a new or empty directory.

    Raises:
        OSError, ValueError: see [`warm_start`]; or the directory holds something.
    """
    target_dir = Path(target_dir)
    require_new_folder(target_dir)
    start = warm_start(source, **overrides)
    start.model.save_pretrained(target_dir)
    start.image_processor.save_pretrained(target_dir)
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["object-detection", "vision", "detr", "sap-detr"],
        license=start.license,
        base_model=start.base_model,
    )
    (target_dir / "README.md").write_text(
        f"---\n{card.to_yaml()}\n---\n\n# {start.model.config.detector_name} started from {start.name}\n\n"
        f"Weights to fine-tune, not a trained detector: the newly initialized parts have learned nothing.\n\n"
        f"{start.table()}\n",
        encoding="utf-8",
    )
    return start


def base_model_of(directory: str | Path) -> str | None:
    """The Hub id of the model that a directory's weights started from, as its card says; `None` if it says none."""
    base: Any = _card_data(str(directory)).get("base_model")
    return base[0] if isinstance(base, list) and base else base


def _load(source: str, config: PreTrainedConfig) -> nn.Module:
    """The source without its heads, complete and in float32."""
    try:
        return load_complete(source, config=config).base_model
    except ImportError as error:
        if not needs_timm(config):
            raise
        raise ValueError(f"{source} has a backbone of timm, which is not installed: `pip install timm`.") from error


def _tensors(model: Any, kind: WarmStartSource, is_resnet: bool) -> dict[str, torch.Tensor]:
    """The source's tensors by name, the backbone's under the names of transformers' own ResNet or timm wrapper."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(kind.backbone):
            name = name.removeprefix(kind.backbone).removeprefix("_backbone.")
            if needs_timm(model.config):
                name = resnet_name(name) if is_resnet else f"_backbone.{name}"
            name = f"backbone.{name}"
        tensors[name] = tensor
    return tensors


@torch.no_grad()
def _fill(
    source: str, model: nn.Module, theirs: dict[str, torch.Tensor], all_rules: tuple[tuple[str, str, float], ...]
) -> dict[str, tuple[str, float]]:
    """Copy what fits into the model, and name it as [`WarmStart.taken`] does."""
    taken = {}
    for name, tensor in model.state_dict().items():
        rules = ((re.fullmatch(pattern, name), their_name, factor) for pattern, their_name, factor in all_rules)
        match, their_name, factor = next((rule for rule in rules if rule[0]), (None, "", 1.0))
        value = theirs.get(match.expand(their_name)) if match else None
        if match is None or value is None:
            continue
        if value.shape != tensor.shape:
            raise ValueError(
                f"`{name}` has the shape {tuple(tensor.shape)}, but {tuple(value.shape)} in {source}: leave widths as "
                "they are there."
            )
        tensor.copy_(value * factor)
        taken[name] = (match.expand(their_name), factor)
    return taken


@torch.no_grad()
def _scale_positions_by_one(model: Any) -> None:
    for layer in model.model.encoder.layers:
        last = layer.position_scale.layers[-1]
        last.weight.zero_()
        last.bias.fill_(1.0)


def pixel_settings(source: str) -> dict[str, Any]:
    """Image size, mean, deviation and the like of a source's image processor; nothing where it has none."""
    try:
        theirs = AutoImageProcessor.from_pretrained(source).to_dict()
    except OSError:  # a directory with a model alone
        return {}
    fields = {name: theirs[name] for name in _PIXEL_FIELDS if theirs.get(name) is not None}
    fields["size"] = {side: pixels for side, pixels in dict(fields["size"]).items() if pixels is not None}
    return fields


def _card_data(source: str) -> dict[str, Any]:
    """The metadata of a directory's or repository's model card; empty where none can be read."""
    path = Path(source)
    if path.is_dir() and not (path / "README.md").is_file():
        return {}
    try:
        return ModelCard.load(path / "README.md" if path.is_dir() else source).data.to_dict()
    except (OSError, ValueError):  # the Hub's errors too
        return {}
