# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""torch.compile in training: encoder and decoder, for all sizes of images."""

import torch._dynamo
from transformers import PreTrainedModel

COMPILATIONS = 32


def allow_compilations() -> None:
    """Raise torch's limit of 8 compilations of one function, behind which modules silently stay as they are.

    Modules share it, because transformers wraps their forward passes in the same function, and each is compiled for
    training and evaluation, with and without a mask.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)


def compile_transformer(model: PreTrainedModel, **options) -> None:
    """Compile a detector's encoder and decoder in place, with `options` of `torch.compile`.

    The backbone stays as it is: torch 2.14 compiles the backward pass of a convolution anew for each size. What has
    none is compiled twice, for the first size and for all others. Not with `dynamic=True`, which makes unknowns of all
    numbers in the model as well, such as the norms' epsilons, and fails beside other processes and with gradient
    checkpointing. The loss cannot be compiled, its matching is scipy's.
    """
    allow_compilations()
    for name in ("encoder", "decoder"):
        model.base_model.get_submodule(name).compile(**options)
