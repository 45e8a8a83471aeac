"""Describe the hardware, versions and settings of a measurement."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = (
    "sap-detr-hf",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "pycocotools",
    "numpy",
    "pillow",
)


def software_versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, and of `more`, of those installed."""
    versions = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def hardware_name(device: torch.device) -> str:
    """Name of the device, such as "NVIDIA H100" or the processor's model with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {os.cpu_count()} cores"


def tf32_settings(device: torch.device) -> dict[str, bool]:
    """Whether a GPU may round float32 to TF32 in `convolutions` and in `matrix_products`; empty for a CPU."""
    if device.type != "cuda":
        return {}
    backends = torch.backends
    return {"convolutions": backends.cudnn.allow_tf32, "matrix_products": backends.cuda.matmul.allow_tf32}


def _processor_name() -> str:
    with open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else open(os.devnull) as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
