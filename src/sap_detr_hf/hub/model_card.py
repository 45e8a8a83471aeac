"""Model cards, written from a model's configuration, its evaluation's results and its training's settings."""

import json
import os
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForObjectDetection

from sap_detr_cli.settings.train import TrainingSettings

from ..markdown_table import markdown_table
from ..model.coco_labels import COCO_CATEGORIES
from ..model.configuration_sap_detr import PUBLISHED_VARIANTS, SapDetrConfig
from ..weights.pretrained import needs_timm
from ..weights.warm_start import base_model_of

TEMPLATE = Path(__file__).with_name("model_card_template.md")
# A path from the root, alone or within a command; not the middle of a relative path or of a URL.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~-])/[^\s'\"]+")
REPO_ID = "REPO_ID"
"""Stands in a card for the repository that the model is published as."""

NOT_STATED = "Not stated."
CONVERTED_TAG = "converted-checkpoint"
COCO_ID = "detection-datasets/coco"
RELEASED_LICENSE = "apache-2.0"

# COCO val2017, 50 epochs, as published by the authors (paper, table 1).
REPORTED_BY_AUTHORS: dict[str, dict[str, float]] = {
    "r50": {"AP": 43.1, "AP_small": 22.9, "AP_medium": 47.1, "AP_large": 62.1},
    "r50-dc5": {"AP": 46.0, "AP_small": 26.4, "AP_medium": 50.2, "AP_large": 62.6},
    "r101": {"AP": 44.4, "AP_small": 24.1, "AP_medium": 48.7, "AP_large": 63.1},
    "r101-dc5": {"AP": 46.9, "AP_small": 27.9, "AP_medium": 51.3, "AP_large": 64.3},
}

# What the published models have in common, besides their backbones.
ARCHITECTURE = (
    "query_grid", "sample_query_content", "share_box_heads", "side_directed_gaussian", "activation_function", "d_model",
    "encoder_layers", "decoder_layers", "point_start", "point_update", "head_points",
)  # fmt: skip

# The settings that decide what a model has learned, in the order of the card's table.
RECIPE = (
    "variant", "model_overrides", "epochs", "max_steps", "effective_batch", "learning_rate", "backbone_learning_rate",
    "weight_decay", "gradient_clip", "schedule", "drop_epoch", "drop_factor", "warmup_steps", "augmentation",
    "shortest_edge", "longest_edge", "freeze", "ema_decay", "mixed_precision", "seed",
)  # fmt: skip

# A template shows an absent key as nothing, so it must be there.
EVALUATION_KEYS = {
    "metrics", "per_class", "settings", "images", "seconds", "images_per_second", "batch_size", "hardware"
}  # fmt: skip

SECTIONS = ("Results", "Intended use", "How to use", "Training data and recipe", "Limits", "Speed", "Citation")


@dataclass(frozen=True)
class CardSources:
    """Everything a card is written from; the template reads it as `card`.

    Args:
        config: the model's configuration.
        repo_id: the repository, for title and code.
        image_size: `size` of the image processor.
        evaluation: the content of an evaluation's results.json.
        settings: the training's settings; absent for a model that was not trained by this package.
        untrained: name of the recipe with these settings, for a variant that nobody has trained.
        converted: whether the weights come from a checkpoint of the released code.
        dataset_id: Hub id of the training data, where the settings name a folder.
        data_description: what the training data shows, in a few words.
        license: of the weights, as the Hub names it; a card without is incomplete.
        speed: a Markdown table of measured speed.

    Raises:
        ValueError: the evaluation is of a model with other classes.
    """

    config: SapDetrConfig
    repo_id: str = REPO_ID
    image_size: Mapping[str, int | None] | None = None
    evaluation: Mapping[str, Any] | None = None
    settings: TrainingSettings | None = None
    untrained: str | None = None
    converted: bool = False
    dataset_id: str | None = None
    data_description: str | None = None
    license: str | None = None
    speed: str | None = None

    def __post_init__(self):
        if self.evaluation is None:
            return
        classes = set((self.config.id2label or {}).values())
        foreign = [row["name"] for row in self.evaluation["per_class"] if row["name"] not in classes]
        if foreign:
            raise ValueError(
                f"The evaluation is of another model: its class {foreign[0]!r} is none of this model's "
                f"{len(classes)} classes. Evaluate this model, or leave the evaluation out."
            )

    @cached_property
    def variant(self) -> str | None:
        """The published variant, if the model has its architecture."""
        return variant_of(self.config)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the model, counted without allocating them."""
        with torch.device("meta"):
            model = AutoModelForObjectDetection.from_config(deepcopy(self.config))
        model.drop_training_queries()  # as what is published
        return model.num_parameters()

    @cached_property
    def reported(self) -> dict[str, float] | None:
        """The authors' figures, for a conversion of what they published."""
        if not self.converted or self.variant is None or not self.has_coco_slots:
            return None
        published = SapDetrConfig.from_variant(self.variant)
        same = all(getattr(self.config, name) == getattr(published, name) for name in ARCHITECTURE)
        return REPORTED_BY_AUTHORS.get(self.variant) if same else None

    @property
    def title(self) -> str:
        """The repository's name, the variant, or the training data."""
        if self.repo_id != REPO_ID:
            return self.repo_id.split("/")[-1]
        if self.converted:
            return f"{self.config.detector_name} {(self.variant or '').upper()}".strip()
        name = self.config.detector_name
        if self.untrained and self.settings:
            return f"{name} {(self.settings.variant or '').upper()}"
        return f"{name} on {self.training_data}" if self.settings else name

    @property
    def has_coco_slots(self) -> bool:
        """Whether the class index is COCO's category id."""
        return self.config.num_labels == 91 and self.config.category_ids is None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, without the unused slots of COCO's ids."""
        names = self.config.id2label or {}
        return [name for index, name in names.items() if index in COCO_CATEGORIES or not self.has_coco_slots]

    @property
    def command(self) -> str:
        """The evaluation's command, without the folders of the machine that ran it."""
        command = (self.evaluation or {}).get("command") or ""
        return ABSOLUTE_PATH.sub(lambda found: Path(found[0]).name, command)

    @property
    def measured(self) -> dict[str, str]:
        """The evaluation's figures in per cent; `-` for one that could not be measured."""
        figures = self.evaluation["metrics"] if self.evaluation else {}
        return {name: "-" if value is None else f"{100 * value:.1f}" for name, value in figures.items()}

    @property
    def ap_by_size(self) -> list[str]:
        """For instance `["23.7 of small", "40.9 of medium"]`; empty where AP of small objects or both others lack."""
        measured = {size: self.measured.get(f"AP_{size}", "-") for size in ("small", "medium", "large")}
        parts = [f"{value} of {size}" for size, value in measured.items() if value != "-"]
        return parts if measured["small"] != "-" and len(parts) > 1 else []

    @property
    def training_data(self) -> str:
        """Hub id, or name of the folder or file."""
        assert self.settings is not None
        return self.dataset_id or public_name(self.settings.data or self.settings.train_annotations or "")

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings of [`RECIPE`] that had an effect, by name."""
        settings = published_settings(self.variant) if self.reported and self.variant else self.settings
        if settings is None:
            return {}
        values = {name: getattr(settings, name) for name in RECIPE}
        for name in ("shortest_edge", "longest_edge"):
            values[name] = values[name] or (self.image_size or {}).get(name)
        if settings.schedule != "step":
            values["drop_epoch"] = None
        if settings.schedule == "constant":
            values["drop_factor"] = None
        pretrained = settings.model or settings.init_from or settings.backbone_weights or self.converted
        if not pretrained or "model.backbone" in settings.freeze:
            values["backbone_learning_rate"] = None
        values["freeze"] = ", ".join(settings.freeze) or None
        overrides = settings.model_overrides.items()
        values["model_overrides"] = ", ".join(f"{name}: {value}" for name, value in overrides) or None
        return {name: value for name, value in values.items() if value is not None}


def variant_of(config: SapDetrConfig) -> str | None:
    """Return the published variant that a configuration is, judged by its backbone."""
    for name in PUBLISHED_VARIANTS:
        published = SapDetrConfig.from_variant(name)
        theirs, ours = published.backbone_config, config.backbone_config
        fields = ("model_type", "depths", "hidden_sizes")
        same = all(getattr(theirs, field) == getattr(ours, field, None) for field in fields)
        if same and published.dilation == config.dilation:
            return name
    return None


def published_settings(variant: str) -> TrainingSettings:
    """Return the authors' 50-epoch recipe of a published variant, as far as it decides what the model learns."""
    batch = 8 if variant.endswith("dc5") else 16
    return TrainingSettings(variant=variant, data=COCO_ID, effective_batch=batch)  # type: ignore[arg-type]


def model_card(sources: CardSources) -> str:
    """Return the text of a README.md: metadata, then one section each of [`SECTIONS`]."""
    tools: dict[str, Any] = {"table": markdown_table, "public_name": public_name, "needs_timm": needs_timm}
    tools["not_stated"] = NOT_STATED
    return f"{ModelCard.from_template(metadata(sources), template_path=str(TEMPLATE), card=sources, **tools)}\n"


def card_of_converted(config: SapDetrConfig, speed: str | None = None) -> str:
    """Return the card of a converted released checkpoint; its AP is marked as the authors' own."""
    size = {"shortest_edge": 800, "longest_edge": 1333}
    return model_card(CardSources(config, converted=True, license=RELEASED_LICENSE, image_size=size, speed=speed))


def metadata(sources: CardSources) -> ModelCardData:
    """Return the part that the Hub reads; the AP numbers in it are measured, never reported ones."""
    settings, evaluation = sources.settings, sources.evaluation
    if evaluation and evaluation["settings"].get("max_images"):
        evaluation = None  # of a part of the split: the card's text says so, readers of the metadata would not know
    data = sources.dataset_id or (COCO_ID if sources.reported else _hub_id(settings.data if settings else None))
    if sources.untrained:
        data = None
    start = settings.model or settings.init_from if settings else None
    if start and not is_hub_id(start):
        start = base_model_of(start)  # a directory that was started from another model
    return ModelCardData(
        model_name=sources.title,
        library_name="transformers",
        pipeline_tag="object-detection",
        license=sources.license,
        tags=["object-detection", "vision", "detr", "sap-detr", *([CONVERTED_TAG] if sources.converted else [])],
        datasets=[data] if data else None,
        base_model=_hub_id(start),
        eval_results=_eval_results(evaluation) if evaluation else None,
    )


def _eval_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    name = public_name(evaluation["settings"]["data"])
    return [
        EvalResult(
            task_type="object-detection",
            dataset_type=name,
            dataset_name=name,
            dataset_split=evaluation["settings"]["split"],
            metric_type="mAP",
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in evaluation["metrics"].items()
        if metric.startswith("AP") and value is not None
    ]


def check_card(text: str) -> None:
    """Check that a card is complete.

    Raises:
        ValueError: says what is missing or cannot be read.
    """
    try:
        data = ModelCard(text, ignore_metadata_errors=False).data
    except Exception as error:  # YAML errors, KeyErrors of the model-index and others
        raise ValueError(f"The model card's metadata cannot be read: {' '.join(str(error).split())}") from error
    wanted = {"library_name": "transformers", "pipeline_tag": "object-detection"}
    wrong = [f"`{name}: {value}`" for name, value in wanted.items() if getattr(data, name, None) != value]
    absent = wrong + ([] if getattr(data, "license", None) else ["`license`"])
    absent += [f"the section `## {name}`" for name in SECTIONS if name != "Speed" and f"\n## {name}\n" not in text]
    if f"\n{NOT_STATED}\n" in text:
        absent.append("what the model was trained on")
    if re.search(rf"\b{REPO_ID}\b", text):
        absent.append(f"the repository's name in place of {REPO_ID}")
    if absent:
        raise ValueError(f"The model card is incomplete; it lacks {', '.join(absent)}.")


def is_hub_id(name: str) -> bool:
    """Return whether a model or data set is named by its Hub id: `owner/name`, and no folder of that name is here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _hub_id(name: str | None) -> str | None:
    return name if name and is_hub_id(name) else None


def public_name(data: str) -> str:
    """Return a Hub id as it is, and of a path the last part: the folders of a machine stay private."""
    return data if is_hub_id(data) else Path(data).name


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read the results.json of an evaluation.

    Raises:
        OSError: no such file.
        ValueError: it is not what `sap-detr evaluate` writes.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no {path}: `sap-detr evaluate` writes such a results.json.") from error
    except ValueError as error:  # of the encoding, too
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(results, dict) or not results.keys() >= EVALUATION_KEYS:
        raise ValueError(f"{path} is not the results.json that `sap-detr evaluate` writes.")
    return results
