"""Additional files in a model repository for Hugging Face Inference Endpoints."""

import os
import re
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from ..weights.pretrained import needs_timm
from .remote_code import config_class_of

HANDLER = Path(__file__).with_name("handler.py")
NEEDED = ("torch", "transformers", "scipy", "pillow", "numpy")  # by the model's code


def endpoint_contents(model_dir: str | os.PathLike) -> dict[str, bytes]:
    """Return the platform's files by name: `handler.py`, and `requirements.txt`, which it installs.

    Raises:
        FileNotFoundError, ValueError: it is no model of this package.
    """
    config: Any = config_class_of(model_dir).from_pretrained(model_dir)
    ranges = {re.split(r"[^\w-]", line)[0]: line for line in requires("sap-detr-hf") or [] if "extra ==" not in line}
    lines = [ranges[name] for name in NEEDED] + ["timm"] * needs_timm(config)
    return {HANDLER.name: HANDLER.read_bytes(), "requirements.txt": "".join(f"{line}\n" for line in lines).encode()}
