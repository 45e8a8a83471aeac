# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The recipe `own_data`: choose the settings that the user did not give, for the data and the machine, with reasons.

All processes make the same choices: they read the same data and exchange the properties of their machines. The choices
are written to the run's settings.yaml, and a resumed run reads them there.
"""

import dataclasses
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from tqdm import tqdm

from sap_detr_cli.options import options
from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.train import TrainingSettings

from ..data.checks import box_statistics
from ..data.dataset import DetectionData
from ..distributed import all_processes_together, first_on_machine, say
from ..markdown_table import markdown_table
from ..messages import first_line
from ..model.configuration_sap_detr import FURTHER_VARIANTS
from ..weights.backbone import PACKAGED, packaged_backbone
from ..weights.variants import config_of_variant
from ..weights.warm_start_config import read_source
from .batch_probe import largest_batch, training_attempt
from .checkpoints import CheckpointFolder
from .resume import find_state
from .run import begin_process_group, load_data

# Trained on COCO, under Apache-2.0, and on the Hub: what each model can start from.
DETECTORS = {
    "dino-r50": "SenseTime/deformable-detr-with-box-refine-two-stage",
    "r50-plus": "IDEA-Research/dab-detr-resnet-50",
}
SOURCE_FIELDS = {  # of a detector's own: its weights fit no others
    "backbone_config", "d_model", "encoder_ffn_dim", "decoder_ffn_dim", "encoder_layers", "decoder_layers",
    "encoder_attention_heads", "decoder_attention_heads", "num_feature_levels", "encoder_n_points", "decoder_n_points",
}  # fmt: skip
STARTS = ("model", "init_from", "variant")
MUCH_MEMORY = 16  # GiB of GPU memory that a feature pyramid needs to train with a useful batch size
SMALL_BOX = 32  # pixels: smaller than a cell of the single feature map of SAP-DETR
LEGIBLE_BOX = 16  # pixels: two tokens of the finest level of a pyramid
ROOM_FOR_QUERIES = 1.5  # queries to a box of the fullest image: some compete for an object, others see nothing


@dataclass(frozen=True)
class Rules:
    """What differs between a CPU and GPUs.

    Attributes:
        largest_side, usual_side: of an image's shorter side, in pixels.
        steps: optimizer steps to train for, from a detector's weights and from a backbone's.
        epochs: fewest and most, whatever the steps.
        images_at_once: most images of a forward pass.
    """

    largest_side: int
    usual_side: int
    steps: tuple[int, int]
    epochs: tuple[int, int]
    images_at_once: int


CPU = Rules(largest_side=480, usual_side=320, steps=(1500, 1500), epochs=(2, 100), images_at_once=2)
GPU = Rules(largest_side=800, usual_side=640, steps=(4000, 10000), epochs=(12, 150), images_at_once=16)


@dataclass(frozen=True)
class DataFacts:
    """Properties of the data that the choices depend on.

    Attributes:
        images: of the training split.
        side: median of the images' shorter sides, in pixels.
        small_box: a tenth of the boxes have a root of their area below this, in pixels.
        fullest: boxes of the image that has most, in all splits that are used.
    """

    images: int
    side: float
    small_box: float
    fullest: int


@dataclass(frozen=True)
class MachineFacts:
    """Properties of the machine that the choices depend on; the minimum over all processes.

    Attributes:
        processes: of the run.
        gpu_gib: memory of a GPU; 0 without one.
        cores: of the CPU, per process.
        bf16: whether the GPUs compute in bfloat16.
        has_timm: whether timm is installed, which many models of the Hub need.
    """

    processes: int
    gpu_gib: float
    cores: int
    bf16: bool
    has_timm: bool

    @property
    def rules(self) -> Rules:
        """Those of its kind of device."""
        return GPU if self.gpu_gib else CPU


class Choices:
    """Settings that were chosen, beside those that the user gave, which stay; and the reasons."""

    def __init__(self, settings: TrainingSettings):
        self.settings = settings
        self.given = given_settings(settings)
        self.values: dict[str, Any] = {}
        self.rows: list[tuple[str, str, str]] = []

    def choose(self, name: str, value: Any, why: str) -> None:
        """Choose a setting, unless it was given."""
        if name in self.given:
            value, why = getattr(self.settings, name), "given"
        else:
            self.values[name] = value
        self.rows.append((f"`{name}`", _shown(value), why))

    def override(self, why: str, **fields: Any) -> None:
        """Choose fields of the model's configuration, of which those that were given stay."""
        for name, value in fields.items():
            was_given = name in self.settings.model_overrides
            kept = self.settings.model_overrides[name] if was_given else value
            self.values["model_overrides"] = {**self["model_overrides"], name: kept}
            self.rows.append((f"`model_overrides: {name}`", _shown(kept), "given" if was_given else why))

    def say(self, name: str, value: str, why: str) -> None:
        """Add a row that is no setting."""
        self.rows.append((name, value, why))

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name, getattr(self.settings, name))

    def result(self) -> TrainingSettings:
        """All settings, for a run that chooses nothing any more."""
        return dataclasses.replace(self.settings, **self.values, choose_rest=False)


def with_choices(settings: TrainingSettings) -> TrainingSettings:
    """Return settings of which nothing is left to choose, on all processes the same; print what was chosen and why.

    Args:
        settings: returned as they are unless `choose_rest` is set. A run that is resumed takes what was chosen when it
            began.

    Raises:
        ValueError: data or settings that cannot work, or not even one image fits in memory; on all processes.
    """
    if not settings.choose_rest:
        return settings
    begin_process_group(settings)
    if settings.resume is not None and (saved := saved_choices(settings)) is not None:
        say("Choices: those of the run that is resumed.")
        return saved
    with all_processes_together():
        find_state(settings, CheckpointFolder(Path(settings.output_dir) / "checkpoints", 1))  # a used folder is refused
        training, validation = load_data(settings)
        data = measure_data(training, validation)
    machine = measure_machine()
    choices = Choices(settings)
    with all_processes_together():
        choose_size(choices, data, machine)
        choose_start(choices, data, machine)
        choose_queries(choices, data, machine)
        choose_speed(choices, machine)
        choose_length(choices, data, machine)
    choose_batch(choices, training, data, machine)
    with all_processes_together():
        result = choices.result()
    say(markdown_table(("setting", "value", "why"), choices.rows))
    return result


def given_settings(settings: TrainingSettings) -> frozenset[str]:
    """Names of what the command line or its recipe set; of settings made in Python, what differs from the defaults."""
    if settings.given is not None:
        return settings.given
    fields = options(type(settings))
    return frozenset(field.name for field in fields if getattr(settings, field.name) != field.default)


def saved_choices(settings: TrainingSettings) -> TrainingSettings | None:
    """The settings of the run that is resumed, with those that are given now; `None` where there is no run yet.

    Raises:
        ValueError: a checkpoint without the settings.yaml of its run; on all processes.
    """
    automatic = settings.resume == "auto"
    folder = Path(settings.output_dir) if automatic else Path(settings.resume or "").parent.parent
    path, values, states = folder / "settings.yaml", None, False
    with all_processes_together():
        if first_on_machine():
            values = read_recipe(path) if path.is_file() else None
            states = not automatic or bool(CheckpointFolder(folder / "checkpoints", 1).files())
    found = gather_object([(values, states)])
    saved = next((values for values, _ in found if values is not None), None)
    with all_processes_together():
        if saved is None:
            if any(states for _, states in found):
                raise ValueError(
                    f"{path} with the choices of the run does not exist: resume with the settings of the run, for "
                    "instance its settings.yaml as the recipe."
                )
            return None
        given = {name: getattr(settings, name) for name in given_settings(settings) | {"output_dir", "resume"}}
        overrides = {**(saved.get("model_overrides") or {}), **given.get("model_overrides", {})}
        merged = {**saved, **given, "model_overrides": overrides, "choose_rest": False}
        return dataclasses.replace(settings, **merged)
    return None


def measure_data(training: DetectionData, validation: DetectionData | None) -> DataFacts:
    """Look at sizes and boxes in the annotations.

    Raises:
        ValueError: no image has a box.
    """
    counts, sides = box_statistics(training)
    if not len(sides):
        raise ValueError(f"{training.source} has no box to train on; `sap-detr check-data` lists what is wrong.")
    others = [box_statistics(validation)[0]] if validation is not None else []
    columns = [np.asarray(training.dataset[name][:]) for name in ("width", "height")]
    return DataFacts(
        images=len(training.dataset),
        side=float(np.median(np.minimum(*columns))),
        small_box=float(np.quantile(sides, 0.1)),
        fullest=int(max(each.max(initial=0) for each in (counts, *others))),
    )


def measure_machine() -> MachineFacts:
    """Ask all processes what they have; each must call this."""
    device = PartialState().device
    gpu_gib, bf16 = 0.0, False
    if device.type == "cuda":
        gpu_gib, bf16 = torch.cuda.get_device_properties(device).total_memory / 2**30, torch.cuda.is_bf16_supported()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    has_timm = importlib.util.find_spec("timm") is not None
    everywhere = gather_object([(gpu_gib, cores, bf16, has_timm)])
    least = [min(values) for values in zip(*everywhere, strict=True)]
    return MachineFacts(PartialState().num_processes, *least)  # type: ignore[arg-type]


def choose_size(choices: Choices, data: DataFacts, machine: MachineFacts) -> None:
    """Show the images as large as they are, up to a limit, and larger where their small boxes need it."""
    rules = machine.rules
    legible = data.side * LEGIBLE_BOX / data.small_box  # at this size a small box is just large enough
    side = max(min(data.side, rules.usual_side), min(legible, 2 * data.side))
    side = max(int(min(side, rules.largest_side)) // 32 * 32, 64)
    choices.choose(
        "shortest_edge",
        side,
        f"the images' shorter side is {data.side:.0f} pixels, and at this size nine of ten boxes are larger than "
        f"{_small_box(data, side):.0f} pixels; at most {rules.largest_side} on a {'GPU' if machine.gpu_gib else 'CPU'}",
    )
    choices.choose("longest_edge", math.ceil(choices["shortest_edge"] * 5 / 3), "5/3 of the shorter one, as published")


def choose_start(choices: Choices, data: DataFacts, machine: MachineFacts) -> None:
    """Choose model and weights: of a detector, of a backbone, or none; where it is not the first, say why."""
    named = next((name for name in STARTS if choices[name]), None)
    if named in ("model", "init_from"):
        choices.say(f"`{named}`", choices[named], "given")
        if named == "model":
            choices.choose("ignore_mismatched_sizes", True, "a new class head where the classes differ")
        return
    variant, why = choices[named] if named else None, "given"
    reasons = []
    if variant in DETECTORS and machine.gpu_gib:
        choices.say("not used", DETECTORS[variant], "trained on COCO: give it as `init_from` instead of `variant`")
    if variant is None:
        variant, why = preferred_variant(choices, data, machine)
        detector = DETECTORS.get(variant)
        if detector is not None and "backbone_weights" not in choices.given:
            if widths := sorted(SOURCE_FIELDS & choices.settings.model_overrides.keys()):
                problem: str | None = f"`model_overrides` changes its {', '.join(widths)}"
            else:
                problem = "it needs timm: `pip install timm`" if not machine.has_timm else unreachable(detector)
            if problem is None:
                choices.choose("init_from", detector, f"{why}; starts from these weights, trained on COCO")
                fields = FURTHER_VARIANTS.get(variant, {})
                choices.override(
                    f"of `{variant}`", **{name: v for name, v in fields.items() if name != "backbone_config"}
                )
                return
            reasons.append(f"{detector} cannot be used ({problem})")
    weights, problem = backbone_weights(variant, choices, machine)
    if weights is None and named is None and variant != "dino-small":
        reasons.append(str(problem))
        variant, why = "dino-small", "the model whose ImageNet weights can be had"
        weights, problem = backbone_weights(variant, choices, machine)
    if variant == "dino-small" and not machine.has_timm:
        raise ValueError("The model dino-small has a backbone of timm: `pip install timm`, or name another `variant`.")
    choices.choose("variant", variant, "; ".join([why, *reasons]))
    if weights is not None:
        choices.choose("backbone_weights", weights, "trained on ImageNet; all other weights are newly initialized")
    else:
        choices.override(
            f"{problem}: the backbone is newly initialized too, so training needs much more data and time",
            freeze_backbone_batch_norm=False,
            frozen_backbone_stages=0,
        )


def preferred_variant(choices: Choices, data: DataFacts, machine: MachineFacts) -> tuple[str, str]:
    """The model for these data on this machine, and the reason."""
    if not machine.gpu_gib:
        return "dino-small", "no GPU: a small model on a feature pyramid"
    if machine.gpu_gib >= MUCH_MEMORY:
        return "dino-r50", f"a GPU with {machine.gpu_gib:.0f} GiB has the memory for a feature pyramid"
    small = _small_box(data, choices["shortest_edge"])
    if small < SMALL_BOX:
        return "dino-r50", f"boxes of {small:.0f} pixels at this image size need a feature pyramid"
    return "r50-plus", f"a GPU with {machine.gpu_gib:.0f} GiB, and boxes of {small:.0f} pixels and more"


def backbone_weights(variant: str, choices: Choices, machine: MachineFacts) -> tuple[str | None, str | None]:
    """ImageNet weights for a variant's backbone, or `None` and why there are none; each process must call this."""
    if choices["backbone_weights"]:
        return choices["backbone_weights"], None
    if "backbone_config" in choices.settings.model_overrides:
        return None, "no weights are known for the backbone of `model_overrides`"
    backbone: Any = config_of_variant(variant).backbone_config if machine.has_timm or variant != "dino-small" else None
    if backbone is None or backbone.model_type == "timm_backbone":
        try:
            packaged = bool(packaged_backbone())
        except ImportError:
            packaged = False
        if all(gather_object([packaged])):
            return PACKAGED, None
        source = "timm/tf_efficientnet_lite0.in1k"
    else:
        source = "timm/resnet101.tv_in1k" if 23 in backbone.depths else "timm/resnet50.tv_in1k"
    problem = unreachable(source)
    return (source, None) if problem is None else (None, f"{source} cannot be had ({problem})")


def unreachable(repository: str) -> str | None:
    """Download a model's weights, on all machines; `None`, or why they cannot be had. Each process must call this."""
    problem = None
    try:
        hf_hub_download(repository, "config.json")
        try:
            hf_hub_download(repository, "model.safetensors")
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            hf_hub_download(repository, "pytorch_model.bin")
    except LocalEntryNotFoundError:
        problem = "the Hub cannot be reached"
    except (HFValidationError, OSError) as error:
        problem = first_line(error)[:100]
    return next((text for text in gather_object([problem]) if text is not None), None)


def choose_queries(choices: Choices, data: DataFacts, machine: MachineFacts) -> None:
    """Take enough queries for the fullest image; a model that is fine-tuned has those it has."""
    if choices["model"]:
        return
    wanted = math.ceil(ROOM_FOR_QUERIES * data.fullest)
    why = f"the fullest image has {data.fullest} boxes"
    if _has_pyramid(choices):
        if not machine.gpu_gib:
            choices.override("fewer than on a GPU, for speed", denoising_pairs=30)
        usual = 900 if machine.gpu_gib else 100
        choices.override(why, num_queries=max(usual, wanted))
    elif wanted > 306 and "num_queries" not in choices.settings.model_overrides:
        choices.override(why, query_grid=[math.ceil(math.sqrt(wanted))] * 2)


def choose_speed(choices: Choices, machine: MachineFacts) -> None:
    """Choose rates, frozen parts, precision and loader for the start and the device."""
    from_detector = bool(choices["model"] or choices["init_from"])
    small, has_weights = choices["variant"] == "dino-small", bool(choices["backbone_weights"])
    rate = 1e-4 if from_detector else 1e-3 if small else 2e-4
    start = "a trained detector" if from_detector else "a small model" if small else "a new transformer"
    choices.choose("learning_rate", rate, f"for {start}")
    if not machine.gpu_gib and small and has_weights:
        choices.choose("freeze", ["model.backbone"], "no GPU: the backbone stays as ImageNet trained it, for speed")
    share = 0.1 if from_detector or has_weights else 1.0
    choices.choose("backbone_learning_rate", choices["learning_rate"] * share, f"{share:g} of the other rate")
    if machine.gpu_gib:
        choices.choose("mixed_precision", "bf16" if machine.bf16 else "no", "what the GPU computes in")
    else:
        choices.choose("channels_last", True, "faster convolutions on a CPU")
    workers = min(max(machine.cores - 1, 1), 8) if machine.gpu_gib else 1
    choices.choose("workers", workers, f"{machine.cores} CPU cores for each process")


def choose_length(choices: Choices, data: DataFacts, machine: MachineFacts) -> None:
    """Choose the effective batch, as many epochs as make the steps that a start needs, and a warm-up of their 20th."""
    rules = machine.rules
    batch = 16 if machine.gpu_gib and data.images >= 2000 else 8
    given = choices["images_per_device"] if "images_per_device" in choices.given else 1
    unit = machine.processes * given * (choices["gradient_accumulation"] or 1)
    batch = max(batch // unit, 1) * unit
    choices.choose("effective_batch", batch, f"{data.images} images, {machine.processes} process(es)")
    per_epoch = math.ceil(data.images / choices["effective_batch"])
    wanted = rules.steps[0 if choices["model"] or choices["init_from"] else 1]
    epochs = min(max(math.ceil(wanted / per_epoch), rules.epochs[0]), rules.epochs[1])
    choices.choose(
        "epochs", epochs, f"about {wanted} steps of {per_epoch} an epoch, within {rules.epochs[0]} to {rules.epochs[1]}"
    )
    choices.choose("warmup_steps", min(max(total_steps(choices, data) // 20, 1), 1000), "a 20th of all steps")
    every = max(choices["epochs"] // 20, 1)
    choices.choose("evaluation_epochs", every, "about 20 evaluations in all")
    choices.choose("checkpoint_epochs", every, "as often")


def total_steps(choices: Choices, data: DataFacts) -> int:
    """Optimizer steps of the run."""
    steps = choices["epochs"] * math.ceil(data.images / choices["effective_batch"])
    return min(steps, choices["max_steps"] or steps)


def choose_batch(choices: Choices, training: DetectionData, data: DataFacts, machine: MachineFacts) -> None:
    """Try how many images fit in a forward and backward pass; where none does, with gradient checkpointing.

    Raises:
        ValueError: not even one does; on all processes.
    """
    share = max(choices["effective_batch"] // machine.processes, 1)
    if choices["gradient_accumulation"]:
        sizes = [max(share // choices["gradient_accumulation"], 1)]
    elif "images_per_device" in choices.given:
        sizes = [choices["images_per_device"]]
    else:
        sizes = [n for n in range(min(share, machine.rules.images_at_once), 0, -1) if share % n == 0]
    found = _largest_batch(choices, training, data, sizes)
    if found is None and not ("gradient_checkpointing" in choices.given or choices["gradient_checkpointing"]):
        choices.choose("gradient_checkpointing", True, "less memory: otherwise not one image fits")
        found = _largest_batch(choices, training, data, sizes[-1:])
    if found is None:
        raise ValueError(
            f"A training step with {sizes[-1]} image(s) of {choices['shortest_edge']} x {choices['longest_edge']} "
            "pixels does not fit in memory: set a smaller `shortest_edge` and `longest_edge`, or another `variant`."
        )
    images, seconds = found
    choices.choose("images_per_device", images, "the most that fit of those that divide the effective batch")
    choices.choose("evaluation_batch_size", images, "as in training")
    left = seconds * share / images * total_steps(choices, data)
    choices.say(
        "time", tqdm.format_interval(left), f"a step took {seconds * share / images:.2g} s; without evaluations"
    )


def _largest_batch(
    choices: Choices, training: DetectionData, data: DataFacts, sizes: list[int]
) -> tuple[int, float] | None:
    with all_processes_together():
        attempt = training_attempt(choices.result(), training, data.fullest)
    return largest_batch(attempt, sizes)


def _has_pyramid(choices: Choices) -> bool:
    if choices["init_from"]:
        return read_source(choices["init_from"])[1].configuration.uses_pyramid
    return config_of_variant(choices["variant"]).uses_pyramid


def _small_box(data: DataFacts, side: int) -> float:
    return data.small_box * side / data.side


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
