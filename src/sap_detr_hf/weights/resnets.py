"""torchvision's ResNets: their names, their configurations in transformers, and which of them a state dict holds."""

import re
from collections.abc import Iterable
from typing import Any

from ..model.configuration_sap_detr import R50_BACKBONE

_BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}

RESNETS: dict[str, tuple[str, list[int]]] = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
}
"""Kind of block and blocks per stage by torchvision's name."""


def resnet_config(name: str) -> dict[str, Any]:
    """The `backbone_config` of a torchvision ResNet whose last stage is used.

    Raises:
        KeyError: no such ResNet.
    """
    block, depths = RESNETS[name]
    # The published variants leave transformers' default depths out.
    changed = {} if depths == RESNETS["resnet50"][1] else {"depths": depths}
    return {**R50_BACKBONE, **changed, **(_BASIC if block == "basic" else {})}


def resnet_name_of(names: Iterable[str]) -> str | None:
    """Which ResNet has tensors of these (torchvision's) names; `None` for none of [`RESNETS`]."""
    blocks = {match.groups() for match in map(re.compile(r"layer(\d)\.(\d+)\.conv(\d)\.weight").match, names) if match}
    depths = [len({block for stage, block, _ in blocks if stage == str(number)}) for number in (1, 2, 3, 4)]
    block = "bottleneck" if any(convolution == "3" for _, _, convolution in blocks) else "basic"
    return next((name for name, kind in RESNETS.items() if kind == (block, depths)), None)
