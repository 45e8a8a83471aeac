# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The settings of a training run: one typed dataclass, read from a YAML recipe and the command line."""

import argparse
import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml


@dataclass
class TrainingSettings:
    """Everything a run depends on. The text beside a field is its reason, and what `train.py --help` prints.

    The defaults are the published recipe (50 epochs, batch 16) wherever the paper fixes a value.

    Raises:
        ValueError: values of the wrong type, out of range, or that do not fit together.
    """

    # Where things are
    output_dir: Annotated[str, "receives the model, checkpoints, metrics.jsonl and curves"] = "runs/sap_detr"
    resume: Annotated[str | None, "'auto': go on from the newest checkpoint if there is one; or a checkpoint file"] = (
        None
    )

    # Model: either `model` (fine-tuning) or `variant` (from scratch)
    model: Annotated[str | None, "model directory or Hub id to fine-tune"] = None
    ignore_mismatched_sizes: Annotated[bool, "give `model` a new class head when the data has other classes"] = False
    variant: Annotated[
        str | None,
        "model to train from scratch: r50, r50-dc5, r101, r101-dc5, r50-group, r50-dc5-group, r50-dn or r50-plus",
    ] = None
    model_overrides: Annotated[dict[str, Any], "SapDetrConfig fields to change, for instance {dropout: 0.1}"] = field(
        default_factory=dict
    )
    backbone_weights: Annotated[str | None, "ImageNet weights of the backbone: a file or Hub id"] = None
    freeze: Annotated[list[str], "parameter name prefixes to keep fixed, for instance [model.backbone]"] = field(
        default_factory=list
    )

    # Data
    data: Annotated[str | None, "COCO directory, COCO .json file, saved data set folder or Hub id"] = None
    train_split: Annotated[str, "split to learn from"] = "train"
    train_annotations: Annotated[str | None, "COCO JSON of the training split, where `data` has another layout"] = None
    train_images: Annotated[str | None, "image folder of the training split, where `data` has another layout"] = None
    val_split: Annotated[str, "split that AP is measured on"] = "val"
    val_annotations: Annotated[str | None, "COCO JSON of the validation split, where `data` has another layout"] = None
    val_images: Annotated[str | None, "image folder of the validation split, where `data` has another layout"] = None
    categories: Annotated[
        Literal["contiguous", "coco91"], "class index 0..N-1 for own data; raw COCO ids for released checkpoints"
    ] = "contiguous"
    box_format: Annotated[str, "box format of Hub data sets, which differ; COCO files are always xywh"] = "xywh"
    cache_dir: Annotated[str | None, "where the Arrow index of the data is kept"] = None
    augmentation: Annotated[str, "none, flip, released, or package.module:callable"] = "released"
    shortest_edge: Annotated[
        int | None, "image size, also saved with the processor; empty: the processor's own, 800"
    ] = None
    longest_edge: Annotated[int | None, "limit of the longer side; empty: the processor's own, 1333"] = None
    group_by_aspect_ratio: Annotated[bool, "batch wide with wide, tall with tall images: less padding to compute"] = (
        False
    )
    drop_last: Annotated[bool, "drop an epoch's incomplete last step (as published); otherwise fill it up"] = False
    workers: Annotated[int, "loader processes per training process; 0 loads in the training process"] = 2
    pin_memory: Annotated[bool, "page-locked batches: copies to a GPU overlap with computation"] = True
    overfit_batches: Annotated[
        int | None, "learn and evaluate on the first N effective batches only: a sanity check"
    ] = None

    # Length and batch
    epochs: Annotated[int, "passes over the training images"] = 50
    max_steps: Annotated[int | None, "stop after this many optimizer steps, for trials"] = None
    effective_batch: Annotated[int, "images per optimizer step over all processes; the rates below belong to it"] = 16
    images_per_device: Annotated[int, "images per forward pass of one process; limited by memory"] = 4
    gradient_accumulation: Annotated[int | None, "forward passes per step; empty: follows from the two above"] = None
    seed: Annotated[int, "of weights, data order and augmentation; process i draws its dropout from seed + i"] = 42

    # Optimizer
    learning_rate: Annotated[float, "peak rate outside the backbone"] = 1e-4
    backbone_learning_rate: Annotated[float, "peak rate of the pretrained backbone"] = 1e-5
    weight_decay: Annotated[float, "AdamW decay, on every parameter as published"] = 1e-4
    gradient_clip: Annotated[float | None, "largest gradient norm; empty: no clipping"] = 0.1
    schedule: Annotated[Literal["step", "cosine", "constant"], "how the rate falls after warm-up"] = "step"
    warmup_steps: Annotated[int, "steps of linear growth of the rate: attention diverges without"] = 1000
    warmup_start: Annotated[float, "share of the rate at the first step"] = 1e-3
    drop_epoch: Annotated[int, "`step`: epoch after which the rate is dropped"] = 40
    drop_factor: Annotated[float, "`step`: what the rate is multiplied by then; `cosine`: share left at the end"] = 0.1
    ema_decay: Annotated[float | None, "average the weights with this decay (0.9997) and evaluate them; empty: off"] = (
        None
    )

    # Precision and speed
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], "autocast type; fp16 scales the loss"] = "no"
    tf32: Annotated[bool, "TensorFloat-32 matrix products in float32 parts: faster on Ampere and later"] = True
    gradient_checkpointing: Annotated[bool, "recompute activations: less memory, about a third slower"] = False
    channels_last: Annotated[bool, "channels-last convolutions: faster on CPUs and on tensor cores"] = False
    compile: Annotated[bool, "torch.compile encoder and decoder: for the first image size, then for all others"] = False

    # Evaluation and keeping
    evaluation_epochs: Annotated[int, "measure AP every N epochs; 0: never"] = 1
    evaluation_steps: Annotated[int | None, "measure AP also every N steps"] = None
    evaluation_batch_size: Annotated[int, "images per forward pass in evaluation; does not change the numbers"] = 4
    early_stopping: Annotated[int | None, "stop after N evaluations after warm-up without a better AP"] = None
    checkpoint_epochs: Annotated[int, "save the training state every N epochs; 0: only by steps and at the end"] = 1
    checkpoint_steps: Annotated[int | None, "save the training state also every N steps"] = None
    keep_checkpoints: Annotated[int, "how many of the newest training states stay on disk"] = 2

    # Reporting
    log_steps: Annotated[int, "write a line of metrics.jsonl (and of the tracker) every N steps"] = 10
    tracker: Annotated[str | None, "tensorboard, wandb, trackio or another of Accelerate's trackers"] = None
    run_name: Annotated[str, "name of the run in the tracker"] = "sap_detr"

    def __post_init__(self):
        for name, annotation in field_types().items():
            setattr(self, name, _typed(name, getattr(self, name), annotation))
        self._check_ranges()
        if bool(self.model) == bool(self.variant):
            raise ValueError(
                "Name either `model` (a directory or Hub id to fine-tune) or `variant` (r50, r50-dc5, r101, r101-dc5 "
                f"to train from scratch), not {'both' if self.model else 'neither'}."
            )
        if not (self.data or self.train_annotations):
            raise ValueError("Name the training data: `data`, or `train_annotations` with `train_images`.")
        measured = (self.evaluation_epochs or self.evaluation_steps) and not self.overfit_batches
        if measured and not (self.data or self.val_annotations):
            raise ValueError(
                "Name the validation data that AP is measured on: `val_annotations` with `val_images`, "
                "or set `evaluation_epochs` to 0."
            )
        if measured and str(self.data).endswith(".json") and not self.val_annotations:
            raise ValueError(
                f"`data` = {self.data} is one COCO file, and AP on the images that are learned from says nothing: name "
                "`val_annotations` and `val_images`, or set `evaluation_epochs` to 0."
            )

    def _check_ranges(self):
        at_least_one = ("epochs", "effective_batch", "images_per_device", "keep_checkpoints", "log_steps",
                        "evaluation_batch_size", "gradient_accumulation", "max_steps", "evaluation_steps",
                        "checkpoint_steps", "early_stopping", "overfit_batches")  # fmt: skip
        at_least_zero = ("workers", "warmup_steps", "evaluation_epochs", "checkpoint_epochs", "weight_decay",
                         "learning_rate", "backbone_learning_rate", "warmup_start", "drop_factor", "seed")  # fmt: skip
        for smallest, names in ((1, at_least_one), (0, at_least_zero)):
            for name in names:
                value = getattr(self, name)
                if value is not None and value < smallest:
                    raise ValueError(f"`{name}` = {value} must be at least {smallest}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` = {self.ema_decay} must lie between 0 and 1.")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"`gradient_clip` = {self.gradient_clip} must be above 0; leave it empty for no clipping.")

    def accumulation(self, processes: int) -> int:
        """Forward passes per optimizer step on `processes` processes.

        Raises:
            ValueError: the effective batch is not processes x images_per_device x gradient_accumulation.
        """
        at_once = processes * self.images_per_device
        steps = self.gradient_accumulation or max(self.effective_batch // at_once, 1)
        if at_once * steps != self.effective_batch:
            raise ValueError(
                f"`effective_batch` = {self.effective_batch}, but {processes} process(es) x `images_per_device` = "
                f"{self.images_per_device} x `gradient_accumulation` = {steps} is {at_once * steps}: change one of "
                "them (and the learning rates with the effective batch)."
            )
        return steps

    def to_yaml(self) -> str:
        """The settings as a recipe that gives the same run."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def field_types() -> dict[str, Any]:
    """Each setting's name and type, without its reason."""
    return typing.get_type_hints(TrainingSettings)


def field_reasons() -> dict[str, str]:
    """Each setting's name and reason."""
    hints = typing.get_type_hints(TrainingSettings, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML recipe, all of them names of settings.

    Raises:
        OSError: no such file.
        ValueError: not a YAML mapping, or an unknown key (the message names the nearest known one).
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path} must hold `setting: value` lines.")
    for key in recipe:
        _check_known(str(key), f"The recipe {path}")
    return recipe


def settings_from_arguments(argv: list[str] | None = None, description: str | None = None) -> TrainingSettings:
    """Settings of a command line `[recipe.yaml] [--setting value ...]`; the command line wins.

    Args:
        argv: the command line; `sys.argv` where it is None.
        description: what `--help` says of the command; None: what `train.py` does.

    Raises:
        ValueError: unknown keys, values of the wrong type, settings that do not fit together.
    """
    parser = argument_parser()
    parser.description = description or parser.description
    arguments, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("--"):
            _check_known(word[2:].split("=")[0].replace("-", "_"), "The command line")
    if unknown:
        raise ValueError(f"The command line has words that belong to no setting: {' '.join(unknown)}")
    given = vars(arguments)
    recipe = given.pop("recipe", None)
    values = read_recipe(recipe) if recipe else {}
    values.update({name: _yaml_value(name, text) for name, text in given.items()})
    return TrainingSettings(**values)


def argument_parser() -> argparse.ArgumentParser:
    """A parser with one option per setting; values are YAML, so `null` empties and `{a: 1}` is a mapping."""
    parser = argparse.ArgumentParser(
        description="Train SAP-DETR: a recipe, and on the command line what differs from it.",
        epilog="Several GPUs or nodes: accelerate launch [--config_file recipes/accelerate/….yaml] scripts/train.py …",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", help="YAML file of settings, for instance recipes/finetune.yaml")
    defaults = {item.name: _default_text(item) for item in dataclasses.fields(TrainingSettings)}
    for name, reason in field_reasons().items():
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(
            *spellings, dest=name, metavar="VALUE", help=f"{reason} [{defaults[name]}]".replace("%", "%%")
        )
    return parser


def _default_text(item: dataclasses.Field) -> str:
    default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    return "empty" if default is None or default == [] or default == {} else str(default)


def _yaml_value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`--{name} {text}` cannot be read: {' '.join(str(error).split())}") from error


def _check_known(key: str, where: str):
    names = list(field_types())
    if key not in names:
        nearest = difflib.get_close_matches(key, names, n=1)
        advice = f"the nearest one is `{nearest[0]}`" if nearest else "scripts/train.py --help lists them"
        raise ValueError(f"{where} sets `{key}`, which is no setting: {advice}.")


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """`value` as its field's type; YAML reads 1e-4 as text and 1 as an integer, which floats must accept."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _typed(name, value, next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        # YAML 1.1 reads a bare `no` as False
        value = "no" if value is False and "no" in arguments else value
        if value not in arguments:
            raise ValueError(f"`{name}` = {value!r} must be one of {', '.join(arguments)}.")
        return value
    if annotation is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise ValueError(f"`{name}` = {value!r} must be a number.") from error
    kind = origin or annotation
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {bool: "true or false", int: "a whole number", str: "text", list: "a list", dict: "a mapping"}
        raise ValueError(f"`{name}` = {value!r} must be {words.get(kind, kind.__name__)}.")
    if origin is list and not all(isinstance(item, arguments[0]) for item in value):
        raise ValueError(f"`{name}` = {value!r} must be a list of {arguments[0].__name__} values.")
    return value
