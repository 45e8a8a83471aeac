"""The optional packages of the formats."""

import os
from importlib.util import find_spec
from typing import Any

PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino", "nncf")}


def require_onnx() -> None:
    """Raises ImportError that says what to install where the packages for ONNX are absent."""
    _require("ONNX files need", "onnx")


def require_openvino() -> Any:
    """The package openvino; raises ImportError that says what to install where it, or nncf, is absent."""
    _require("OpenVINO models need", "openvino")
    import openvino

    return openvino


def require_nncf() -> Any:
    """The package nncf, which reports nothing to its authors; raises as [`require_openvino`]."""
    _require("OpenVINO models need", "openvino")
    os.environ.setdefault("NNCF_CI", "1")  # without it, every quantization is reported over the network
    import nncf

    return nncf


def require_packages(suffix: str) -> None:
    """Raises ImportError that says what to install where the packages for a format are absent."""
    if suffix == ".xml":  # first: the extra openvino brings what ONNX files need
        require_openvino()
    if suffix in (".onnx", ".xml"):
        require_onnx()


def _require(what: str, extra: str) -> None:
    for name in PACKAGES[extra]:
        if find_spec(name) is None:
            raise ImportError(f"{what} the package {name}: pip install 'sap-detr-hf[{extra}]'.")
