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

from ..markdown_table import markdown_table
from ..model.coco_labels import COCO_CATEGORIES
from ..model.configuration_sap_detr import PUBLISHED_VARIANTS, SapDetrConfig
from ..model.modeling_sap_detr import SapDetrForObjectDetection
from ..training.settings import TrainingSettings
from ..weights.pretrained import needs_timm

# A path from the root, alone or within a command; not the middle of a relative path or of a URL.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~-])/[^\s'\"]+")
REPO_ID = "REPO_ID"
"""Stands in a card for the repository that the model is published as."""

NOT_STATED = "Not stated."
CONVERTED_TAG = "converted-checkpoint"
COCO_ID = "detection-datasets/coco"
RELEASED_CODE = "https://github.com/liuyang-ict/SAP-DETR"
RELEASED_LICENSE = "apache-2.0"
PAPER = "https://arxiv.org/abs/2211.02006"

# COCO val2017, 50 epochs, as published by the authors (paper, table 1).
REPORTED_BY_AUTHORS: dict[str, dict[str, float]] = {
    "r50": {"AP": 43.1, "AP_small": 22.9, "AP_medium": 47.1, "AP_large": 62.1},
    "r50-dc5": {"AP": 46.0, "AP_small": 26.4, "AP_medium": 50.2, "AP_large": 62.6},
    "r101": {"AP": 44.4, "AP_small": 24.1, "AP_medium": 48.7, "AP_large": 63.1},
    "r101-dc5": {"AP": 46.9, "AP_small": 27.9, "AP_medium": 51.3, "AP_large": 64.3},
}

# What the published models have in common, besides their backbones.
ARCHITECTURE = (
    "query_grid", "sample_query_content", "share_box_heads", "d_model", "encoder_layers", "decoder_layers",
    "point_start", "point_update", "head_points",
)  # fmt: skip

# The settings that decide what a model has learned, in the order of the card's table.
RECIPE = (
    "epochs", "max_steps", "effective_batch", "learning_rate", "backbone_learning_rate", "weight_decay",
    "gradient_clip", "schedule", "drop_epoch", "drop_factor", "warmup_steps", "augmentation", "shortest_edge",
    "longest_edge", "freeze", "ema_decay", "mixed_precision", "seed",
)  # fmt: skip

SECTIONS = ("Results", "Intended use", "How to use", "Training data and recipe", "Limits", "Speed", "Citation")

CITATION = """@inproceedings{liu2023sapdetr,
  title={SAP-DETR: Bridging the Gap Between Salient Points and Queries-Based Transformer Detector for Fast Model
         Convergency},
  author={Liu, Yang and Zhang, Yao and Wang, Yixin and Zhang, Yang and Tian, Jiang and Shi, Zhongchao and Fan, Jianping
          and He, Zhiqiang},
  booktitle={CVPR},
  year={2023}
}"""


@dataclass(frozen=True)
class CardSources:
    """Everything a card is written from.

    Args:
        config: the model's configuration.
        repo_id: the repository, for title and code.
        image_size: `size` of the image processor.
        evaluation: the content of an evaluation's results.json.
        settings: the training's settings; absent for a model that was not trained by this package.
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
            model = SapDetrForObjectDetection(deepcopy(self.config))
        model.drop_training_queries()  # as what is published
        return sum(parameter.numel() for parameter in model.parameters())

    @property
    def reported(self) -> dict[str, float] | None:
        """The authors' figures, for a conversion of what they published."""
        if not self.converted or self.variant is None or not _has_coco_slots(self.config):
            return None
        published = SapDetrConfig.from_variant(self.variant)
        same = all(getattr(self.config, name) == getattr(published, name) for name in ARCHITECTURE)
        return REPORTED_BY_AUTHORS.get(self.variant) if same else None

    @property
    def title(self) -> str:
        """What the card calls the model: the repository's name, the variant, or what it was trained on."""
        if self.repo_id != REPO_ID:
            return self.repo_id.split("/")[-1]
        if self.converted:
            return f"SAP-DETR {(self.variant or '').upper()}".strip()
        return f"SAP-DETR on {_training_data_name(self)}" if self.settings else "SAP-DETR"


def variant_of(config: SapDetrConfig) -> str | None:
    """The published variant that a configuration is, judged by its backbone."""
    backbone = config.backbone_config
    if getattr(backbone, "model_type", None) != "resnet":
        return None
    for name, fields in PUBLISHED_VARIANTS.items():
        published = SapDetrConfig(**fields).backbone_config
        same = all(
            getattr(published, field, None) == getattr(backbone, field, None) for field in ("depths", "hidden_sizes")
        )
        if same and fields["dilation"] == config.dilation:
            return name
    return None


def model_card(sources: CardSources) -> str:
    """The text of a README.md: metadata, then one section each of [`SECTIONS`]."""
    text = (
        _results(sources),
        _intended_use(sources),
        _how_to_use(sources),
        _training(sources),
        _limits(sources),
        _speed(sources),
        f"```bibtex\n{CITATION}\n```",
    )
    sections = "\n\n".join(f"## {name}\n\n{content}" for name, content in zip(SECTIONS, text, strict=True))
    return f"---\n{metadata(sources).to_yaml()}\n---\n\n# {sources.title}\n\n{_introduction(sources)}\n\n{sections}\n"


def card_of_converted(config: SapDetrConfig, speed: str | None = None) -> str:
    """The card of a converted released checkpoint; its AP is marked as the authors' own."""
    size = {"shortest_edge": 800, "longest_edge": 1333}
    return model_card(CardSources(config, converted=True, license=RELEASED_LICENSE, image_size=size, speed=speed))


def metadata(sources: CardSources) -> ModelCardData:
    """What the Hub reads; the AP numbers in it are measured, never reported ones."""
    datasets = [name for name in (sources.dataset_id or _training_data_id(sources),) if name]
    base = sources.settings.model if sources.settings else None
    return ModelCardData(
        model_name=sources.title,
        library_name="transformers",
        pipeline_tag="object-detection",
        license=sources.license,
        tags=["object-detection", "vision", "detr", "sap-detr", *([CONVERTED_TAG] if sources.converted else [])],
        datasets=datasets or None,
        base_model=base if base and is_hub_id(base) else None,
        eval_results=_eval_results(sources.evaluation) if sources.evaluation else None,
    )


def check_card(text: str) -> None:
    """Make sure that a card is complete.

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
    """Whether a model or data set is named by its Hub id: `owner/name`, and no folder of that name is here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """The results.json of an evaluation.

    Raises:
        OSError: no such file.
        ValueError: it is not what `scripts/evaluate.py` writes.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    needed = {"metrics", "per_class", "settings", "images"}
    if not isinstance(results, dict) or not needed <= results.keys():
        raise ValueError(f"{path} is not the results.json that scripts/evaluate.py writes.")
    return results


def _eval_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    settings = evaluation["settings"]
    name = _data_name(settings["data"])
    return [
        EvalResult(
            task_type="object-detection",
            dataset_type=settings["data"] if is_hub_id(settings["data"]) else name,
            dataset_name=name,
            dataset_split=settings["split"],
            metric_type="mAP",
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in evaluation["metrics"].items()
        if metric.startswith("AP") and value is not None
    ]


def _introduction(sources: CardSources) -> str:
    config = sources.config
    rows, columns = config.query_grid or (0, 0)
    origin = (
        f"Converted from a checkpoint of the [released code]({RELEASED_CODE}) (Apache-2.0) by `sap_detr_hf`."
        if sources.converted
        else "Made with `sap_detr_hf`."
    )
    return (
        f"A [SAP-DETR]({PAPER}) (*Salient Point-based DETR*, CVPR 2023) object detector with {_backbone(config)}, "
        f"{sources.parameters / 1e6:.1f} M parameters and {config.num_queries} queries. Every query owns a reference "
        f"point in its cell of a grid of {rows} x {columns} and predicts the distances from it to the four sides of a "
        f"box. {origin}"
    )


def _backbone(config: SapDetrConfig) -> str:
    backbone: Any = config.backbone_config
    variant = variant_of(config)
    if variant is not None:
        depth = variant.split("-")[0].removeprefix("r")
        return f"a ResNet-{depth} backbone" + (" whose last stage is dilated (DC5)" if config.dilation else "")
    name = getattr(backbone, "backbone", None) or getattr(backbone, "model_type", "unknown")
    return f"a `{name}` backbone"


def _results(sources: CardSources) -> str:
    parts = []
    if sources.evaluation is not None:
        parts.append(_measured(sources.evaluation))
    if sources.reported is not None:
        parts.append(
            "COCO val2017, 50 epochs, in per cent, **reported by the authors, not measured here**:\n\n"
            + markdown_table(sources.reported, [sources.reported.values()])
        )
    return "\n\n".join(parts) or "No AP has been measured."


def _measured(evaluation: Mapping[str, Any]) -> str:
    settings, values = evaluation["settings"], evaluation["metrics"]
    limit = settings.get("max_images")
    part = f"the first {limit} images only of " if limit else f"the {evaluation['images']} images of "
    command = ABSOLUTE_PATH.sub(lambda found: Path(found[0]).name, evaluation.get("command") or "")  # stays private
    command = f" by `{command}`" if command else ""
    numbers = ["-" if value is None else f"{100 * value:.1f}" for value in values.values()]
    return (
        f"Official COCO numbers in per cent, measured on {part}the split `{settings['split']}` of "
        f"{_data_name(settings['data'])}{command}:\n\n{markdown_table(values, [numbers])}"
    )


def _intended_use(sources: CardSources) -> str:
    names = _class_names(sources.config)
    classes = f"{len(names)} classes" + (f": {', '.join(names)}" if len(names) <= 20 else " (`config.id2label`)")
    return (
        f"Finding objects of {classes}, in photographs like those it was trained on, and as a starting point for "
        "fine-tuning on other classes. It has not been examined for fairness or for safety-critical use: measure it "
        "on your own pictures before anything depends on it."
    )


def _has_coco_slots(config: SapDetrConfig) -> bool:
    return config.num_labels == 91 and config.category_ids is None


def _class_names(config: SapDetrConfig) -> list[str]:
    names = config.id2label or {}
    return [name for index, name in names.items() if index in COCO_CATEGORIES or not _has_coco_slots(config)]


def _how_to_use(sources: CardSources) -> str:
    timm = ", `timm`" if needs_timm(sources.config) else ""
    return f"""```python
from transformers import pipeline

detector = pipeline("object-detection", model="{sources.repo_id}", trust_remote_code=True)
for found in detector("photo.jpg", threshold=0.5):
    print(found["label"], round(found["score"], 2), found["box"])
```

`trust_remote_code=True` runs the model code stored beside the weights; it needs `torch`, `transformers>=5.17`,
`scipy`, `pillow`{timm}. With the package `sap_detr_hf` installed, import it and leave the flag out; it also tells
each detection's salient point:

```python
import sap_detr_hf  # registers the model with transformers
from sap_detr_hf.model.image_files import open_image
from sap_detr_hf.inference.salient_detection import detect_with_points
from transformers import AutoImageProcessor, AutoModelForObjectDetection

model = AutoModelForObjectDetection.from_pretrained("{sources.repo_id}")
image_processor = AutoImageProcessor.from_pretrained("{sources.repo_id}")
found = detect_with_points(model, image_processor, open_image("photo.jpg"), threshold=0.5)
for label, score, box, point in zip(found.labels, found.scores, found.boxes, found.points):
    print(label, round(score.item(), 2), box.tolist(), point.tolist())
```"""


def _training(sources: CardSources) -> str:
    if sources.reported is not None and sources.variant:
        table = _recipe_table(published_settings(sources.variant), sources)
        return f"COCO train2017, by the authors, with the published recipe:\n\n{table}"
    settings = sources.settings
    if settings is None:
        return "The checkpoint does not say what it was trained on." if sources.converted else NOT_STATED
    data = _training_data_name(sources)
    if sources.data_description:
        data = f"{data} ({sources.data_description})"
    if settings.model:
        start = f"fine-tuned from `{settings.model if is_hub_id(settings.model) else Path(settings.model).name}`"
    elif settings.backbone_weights:
        start = f"trained from the backbone weights `{_data_name(settings.backbone_weights)}`"
    else:
        start = "trained from random weights"
    sentence = f"{start} by `scripts/train.py` on the split `{settings.train_split}` of {data}:"
    return f"{sentence[0].upper()}{sentence[1:]}\n\n{_recipe_table(settings, sources)}"


def published_settings(variant: str) -> TrainingSettings:
    """The authors' 50-epoch recipe of a published variant, as far as it decides what the model learns."""
    return TrainingSettings(variant=variant, data=COCO_ID, effective_batch=8 if variant.endswith("dc5") else 16)


def _recipe_table(settings: TrainingSettings, sources: CardSources) -> str:
    values = {name: getattr(settings, name) for name in RECIPE}
    for name in ("shortest_edge", "longest_edge"):
        values[name] = values[name] or (sources.image_size or {}).get(name)
    if settings.schedule != "step":
        values["drop_epoch"] = None
    if settings.schedule == "constant":
        values["drop_factor"] = None
    if not (settings.model or settings.backbone_weights or sources.converted) or "model.backbone" in settings.freeze:
        values["backbone_learning_rate"] = None
    values["freeze"] = ", ".join(settings.freeze) or None
    return markdown_table(("setting", "value"), (item for item in values.items() if item[1] is not None))


def _limits(sources: CardSources) -> str:
    config = sources.config
    size = dict(sources.image_size or {})
    lines = []
    if config.valid_region:
        lines.append(
            "Padding: points, Gaussian and sampling lie on each image's own region, so that an image's result depends "
            "on its neighbours in a padded batch only at the backbone's border."
        )
    else:
        lines.append(
            "Padding and batch size: in a padded batch an image's result depends on its neighbours, as in training. "
            "For reproducible numbers run one image at a time, or images of one size."
        )
    if size.get("shortest_edge") and size.get("longest_edge"):
        lines.append(
            f"Images are resized to a shortest side of {size['shortest_edge']} and a longest of at most "
            f"{size['longest_edge']} pixels."
        )
    lines.append(_small_objects(sources))
    lines.append(f"A query finds one object: of more than {config.num_queries} in an image the rest is missed.")
    if _has_coco_slots(config):
        lines.append(
            f"91 class slots: the class index is COCO's own category id, {len(_class_names(config))} of them are "
            "categories and the others are unused. Labels for fine-tuning must carry COCO's ids."
        )
    elif config.category_ids is not None:
        lines.append("The class index is not the data set's category id: `config.category_ids` holds that of each.")
    return "\n".join(f"* {line}" for line in lines)


def _small_objects(sources: CardSources) -> str:
    text = "Small objects are the weak side of detectors on a single feature map"
    figures = sources.evaluation["metrics"] if sources.evaluation else {}
    measured = {size: figures.get(f"AP_{size}") for size in ("small", "medium", "large")}
    parts = [f"{100 * value:.1f} of {size}" for size, value in measured.items() if value is not None]
    if measured["small"] is not None and len(parts) > 1:
        return f"{text}: AP {', '.join(parts)} objects."
    if sources.reported:
        return (
            f"{text}: the authors report AP {sources.reported['AP_small']} of small and "
            f"{sources.reported['AP_large']} of large ones."
        )
    return f"{text}."


def _speed(sources: CardSources) -> str:
    parts = [sources.speed] if sources.speed else []
    if sources.evaluation is not None and sources.evaluation.get("images_per_second"):
        evaluation = sources.evaluation
        parts.append(
            f"The evaluation took {evaluation['seconds']:.1f} s for {evaluation['images']} images, "
            f"{evaluation['images_per_second']:.1f} a second with everything, in batches of {evaluation['batch_size']} "
            f"on {evaluation['hardware']}."
        )
    return "\n\n".join(parts) or "Not measured."


def _training_data_id(sources: CardSources) -> str | None:
    if sources.reported is not None:
        return COCO_ID
    data = sources.settings.data if sources.settings else None
    return data if data and is_hub_id(data) else None


def _training_data_name(sources: CardSources) -> str:
    assert sources.settings is not None
    return sources.dataset_id or _data_name(sources.settings.data or sources.settings.train_annotations or "")


def _data_name(data: str) -> str:
    return data if is_hub_id(data) else Path(data).name
