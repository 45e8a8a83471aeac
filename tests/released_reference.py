"""The released code's outputs in `tests/reference/`, and the deterministic weights and inputs behind them."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection
from sap_detr_hf.weights.convert import convert_state_dict

DIRECTORY = Path(__file__).parent / "reference"
VARIANT_OF = {
    "resnet50": "r50",
    "resnet50_dc5": "r50-dc5",
    "resnet101": "r101",
    "resnet101_dc5": "r101-dc5",
    "resnet50_one_empty": "r50",
    "resnet50_all_empty": "r50",
}


@cache
def description(name: str) -> dict:
    return json.loads((DIRECTORY / f"{name}.json").read_text())


@cache
def outputs(name: str) -> dict[str, np.ndarray]:
    with np.load(DIRECTORY / f"{name}.npz") as arrays:
        return dict(arrays)


def draw(name: str, shape: list[int]) -> np.ndarray:
    """The deterministic values of a released tensor."""
    r = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 0.1 * abs(r) + 0.9
    if name.endswith("running_mean"):
        return 0.05 * r
    if len(shape) > 1:
        gain = 0.4 if "out_proj." in name or "linear2." in name else 1.0
        return gain * r / np.sqrt(np.prod(shape[1:]))
    if name.endswith("weight"):
        return 1 + 0.05 * r
    is_class_bias = name.startswith("class_embed.") and name.endswith(".layers.2.bias")
    return 0.02 * r - (4 if is_class_bias else 0)


def released_grid(rows: int, columns: int) -> np.ndarray:
    """The fixed reference points as the released code stores them, (rows * columns, 2) logits."""
    y, x = np.meshgrid(np.arange(rows) / rows, np.arange(columns) / columns, indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    return np.log(np.maximum(points, 1e-3) / np.maximum(1 - points, 1e-3))


@cache
def released_state_dict(name: str) -> dict[str, torch.Tensor]:
    """A state dict as the released code saves it, with every shared tensor in all its places."""
    tensors: dict[str, torch.Tensor] = {}
    entries = description(name)["tensors"]
    for key, entry in entries.items():
        if "same_as" not in entry:
            value = released_grid(17, 18) if key == "refpoint_embed.weight" else draw(key, entry["shape"])
            tensors[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return {key: tensors[entry.get("same_as", key)] for key, entry in entries.items()}


def reference_model(name: str, **overrides) -> SapDetrForObjectDetection:
    """The model of a reference, its weights converted by the package's own converter."""
    config = SapDetrConfig.from_variant(VARIANT_OF[name], **overrides)
    model = SapDetrForObjectDetection(config)
    model.load_state_dict(convert_state_dict(released_state_dict(name), config))
    return model


def reference_inputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """pixel_values (B, 3, H, W) and pixel_mask (B, H, W)."""
    meta = description(name)["meta"]
    rng = np.random.default_rng(meta["seed"])
    height, width = (max(size[i] for size in meta["sizes"]) for i in (0, 1))
    pixels = torch.zeros(len(meta["sizes"]), 3, height, width)
    mask = torch.zeros(len(meta["sizes"]), height, width, dtype=torch.long)
    for i, (h, w) in enumerate(meta["sizes"]):
        pixels[i, :, :h, :w] = torch.from_numpy(rng.standard_normal((3, h, w)).astype(np.float32))
        mask[i, :h, :w] = 1
    return pixels, mask


def reference_labels(name: str) -> list[dict[str, torch.Tensor]]:
    meta = description(name)["meta"]
    rng = np.random.default_rng(meta["seed"] + 1)
    labels = []
    for n in meta["ns"]:
        size = rng.uniform(0.05, 0.5, (n, 2))
        center = rng.uniform(0, 1, (n, 2)) * (1 - size) + size / 2
        classes = rng.integers(1, 91, n)
        boxes = torch.from_numpy(np.concatenate([center, size], axis=1)).float()
        labels.append({"class_labels": torch.from_numpy(classes), "boxes": boxes})
    return labels
