"""An exported model with 8-bit weights: dynamic quantisation by onnxruntime."""

import logging
import os
from pathlib import Path

from ..files import whole_file
from .session import open_session


def quantize_int8(path: str | Path, int8_path: str | Path) -> None:
    """Write a copy of an exported model whose linear layers compute with 8-bit weights and activations.

    Weights have one scale a channel and 7 bits of range, so that processors without VNNI do not saturate; activations
    get their scale at run time. Convolutions stay in float32: onnxruntime's `ConvInteger` is many times slower.
    Shape, inputs, outputs and metadata stay. `benchmarks/evaluate_onnx.py` measures what it costs.

    Raises:
        FileNotFoundError, ImportError, ValueError: see [`open_session`].
    """
    open_session(path)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preprocessing that changes nothing here, through the root logger
    try:
        with whole_file(int8_path) as aside:
            quantize_dynamic(
                os.fspath(path),
                os.fspath(aside),
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
    finally:
        logger.setLevel(level)
