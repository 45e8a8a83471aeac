"""A model that is sure of random boxes, and pictures, for the tests of the page."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_model import tiny_model

from sap_detr_hf import SapDetrForObjectDetection

NAMES = dict(enumerate(["person", "dog", "car", "boat", "tree", "cup"]))


def confident_model() -> SapDetrForObjectDetection:
    """Random boxes with scores spread over [0, 1], so that every threshold keeps another number of them."""
    model = tiny_model(id2label=NAMES)
    with torch.no_grad():
        last = model.class_heads[-1].layers[-1]
        last.weight *= 45
        last.bias.copy_(torch.tensor([-2.0, -9, -9, -9, -8.5, -4.5]))
    return model


def save_photograph(path: Path, size: tuple[int, int] = (160, 120), **options) -> Path:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
