"""The files that an export writes: ONNX, OpenVINO (.xml and .bin) and torch.export (.pt2), each with its metadata.

The ONNX file runs without this package, torch or transformers: `examples/predict_onnx.py`.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from .graph import AXES, INPUT_NAMES, OUTPUT_NAMES
from .packages import require_onnx, require_openvino
from .same_padding import onnx_translations

METADATA = "sap_detr"  # where OpenVINO and torch.export files hold their metadata, as one JSON text


def write_onnx(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write one ONNX file, with the metadata as its own.

    Raises:
        ImportError: see [`require_onnx`].
    """
    require_onnx()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*axis name: .* will not be used")  # both inputs share the axes
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=INPUT_NAMES,
            output_names=OUTPUT_NAMES,
            dynamic_shapes=AXES,
            custom_translation_table=onnx_translations(),
        )
    assert converted is not None
    for node in converted.model.graph.all_nodes():  # they name files of this machine
        node.metadata_props.clear()
    converted.model.metadata_props.update(metadata)
    converted.save(path, external_data=False)


def write_openvino(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write an OpenVINO model in float32: an .xml file, and its weights in a .bin file beside it.

    By way of ONNX, which knows the operation of `same_padding`.

    Raises:
        ImportError: see [`require_onnx`] and [`require_openvino`].
    """
    openvino = require_openvino()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(program, {}, file)
        model = openvino.Core().read_model(file)
        model.set_rt_info(json.dumps(dict(metadata)), METADATA)
        save_openvino(model, path)


def save_openvino(model: Any, path: Path) -> None:
    """Save an OpenVINO model with its weights as they are: by default OpenVINO would round them to float16."""
    require_openvino().save_model(model, path, compress_to_fp16=False)


def write_torch(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write the traced program as `torch.export.save` does, without its example inputs and the modules' names.

    Nor with the shapes of intermediate tensors: as formulas of the input's size, those of a SAP-DINO-DETR take minutes
    to load. Running the program does not need them, and its `run_decompositions` finds them again.
    """
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("nn_module_stack", None)
        if node.op == "call_function":
            node.meta["val"] = tree_map_only(torch.Tensor, lambda value: value.new_empty(0), node.meta["val"])
    torch.export.save(program, path, extra_files={METADATA: json.dumps(dict(metadata))})


WRITERS: dict[str, Callable[[ExportedProgram, Mapping[str, str], Path], None]] = {
    ".onnx": write_onnx,
    ".xml": write_openvino,
    ".pt2": write_torch,
}
