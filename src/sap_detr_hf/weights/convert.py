"""Convert the authors' SAP-DETR checkpoints (`torch.save` of a training run) to a transformers model directory."""

import argparse
import logging
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..messages import first_line
from ..model.coco_labels import COCO_ID2LABEL
from ..model.configuration_sap_detr import PUBLISHED_VARIANTS, SapDetrConfig
from ..model.image_processing_pil_sap_detr import SapDetrImageProcessorPil
from ..model.modeling_sap_detr import SapDetrForObjectDetection
from ..model.salient_points import grid_logits
from .released_names import released_name, shared_source, split_attention_projection
from .resnets import RESNETS, resnet_config, resnet_name_of

logger = logging.getLogger(__name__)

# What a released run must have been started with: other values change the computation that this package implements.
# Its decoder's temperature is 20 whatever `pe_temperatureH` and `pe_temperatureW` say of the encoder's.
_REQUIRED_ARGS = {
    "batch_norm_type": "FrozenBatchNorm2d",
    "pre_norm": False,
    "meshgrid_refpoints_xy": True,
    "random_refpoints_xy": False,
    "keep_query_pos": False,
    "rm_self_attn_decoder": False,
    "class_embed_diff_each_layer": False,
    "position_embedding": "sine",
    "pe_temperatureH": 20,
    "pe_temperatureW": 20,
    "masks": False,
}

_ACTIVATIONS = ("relu", "gelu", "prelu")  # of the released code's, those that transformers has too
_DEFAULT_HEADS = 8
_BODY = "backbone.0.body."


class ConversionError(ValueError):
    """The file is not a complete released SAP-DETR checkpoint."""


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Read a released checkpoint without running code from it.

    Args:
        path: a `torch.save`d dict with `model` and maybe `args`, or a bare state dict; names may start with `module.`.

    Returns:
        The state dict, and the run's `args` as a dict or `None` where there are none.

    Raises:
        FileNotFoundError: no such file.
        ConversionError: not a checkpoint, truncated, or one that would run code when unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} holds Python objects besides tensors and settings, or is not a PyTorch file. It was not loaded, "
            f"because loading such a file can run any code. PyTorch said: {_first_sentence(error)}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConversionError(
            f"{path} cannot be read as a PyTorch checkpoint: it is truncated or not a checkpoint. Download it again. "
            f"PyTorch said: {_first_sentence(error)}"
        ) from error
    return _state_dict_and_args(content, path)


def _first_sentence(error: Exception) -> str:
    return first_line(error).split(". ")[0]


def _state_dict_and_args(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    content = content if isinstance(content, dict) else {}
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else None
    tensors = content.get("model", content)
    tensors = {str(k).removeprefix("module."): v for k, v in tensors.items() if isinstance(v, torch.Tensor)}
    if "refbbox_embed.weight" not in tensors:
        raise ConversionError(
            f"{path} holds no SAP-DETR model: the tensor `refbbox_embed.weight` is missing among its "
            f"{len(tensors)} tensors. Give a checkpoint of the released SAP-DETR code."
        )
    return tensors, args


def config_of_checkpoint(
    tensors: dict[str, torch.Tensor],
    args: dict[str, Any] | None,
    variant: str | None = None,
    dilation: bool | None = None,
) -> SapDetrConfig:
    """The configuration a checkpoint was trained with.

    Args:
        tensors: the released state dict.
        args: the run's arguments, if the checkpoint has them. What they do not say, the tensors tell.
        variant: the published variant, which says backbone and dilation.
        dilation: whether the last stage is dilated (DC5), for a checkpoint without `args` of another backbone: no
            tensor shows it.

    Raises:
        ConversionError: an option this package does not implement, or no way to tell the dilation.
    """
    args = args or {}
    for name, expected in _REQUIRED_ARGS.items():
        if args.get(name, expected) != expected:
            raise ConversionError(
                f"The checkpoint was trained with `{name}` = {args[name]!r}; only {expected!r} is supported."
            )
    queries = tensors["refbbox_embed.weight"].shape[0]
    num_labels = tensors["class_embed.0.layers.2.bias"].shape[0]
    heads = _heads(tensors, args)
    return SapDetrConfig(
        **_backbone(tensors, args, variant, dilation),
        id2label=dict(COCO_ID2LABEL) if num_labels == 91 else {i: f"class {i}" for i in range(num_labels)},
        query_grid=_query_grid(queries),
        prediction_grid=None if queries in (306, 400) else [20, 20],
        d_model=tensors["input_proj.weight"].shape[0],
        encoder_layers=_count(tensors, "transformer.encoder.layers"),
        decoder_layers=_count(tensors, "transformer.decoder.layers"),
        encoder_ffn_dim=tensors["transformer.encoder.layers.0.linear1.weight"].shape[0],
        decoder_ffn_dim=tensors["transformer.decoder.layers.0.linear1.weight"].shape[0],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        activation_function=_activation(tensors, args),
        dropout=args.get("dropout", 0.0),
        attention_dropout=args.get("dropout", 0.0),
        sample_query_content="transformer.point_transfer.0.weight" in tensors,
        share_box_heads=not _has_own_box_heads(tensors, args),
        side_directed_gaussian=_has_gaussian(tensors, args),
        class_cost=args.get("set_cost_class", 2),
        bbox_cost=args.get("set_cost_bbox", 5),
        giou_cost=args.get("set_cost_giou", 2),
        class_loss_coefficient=args.get("cls_loss_coef", 1),
        objectness_loss_coefficient=args.get("obj_loss_coef", 1),
        bbox_loss_coefficient=args.get("bbox_loss_coef", 5),
        giou_loss_coefficient=args.get("giou_loss_coef", 2),
        inner_loss_coefficient=args.get("inner_loss_coef", 2),
        focal_alpha=args.get("focal_alpha", 0.25),
        auxiliary_loss=args.get("aux_loss", True),
    )


def _backbone(
    tensors: dict[str, torch.Tensor], args: dict[str, Any], variant: str | None, dilation: bool | None
) -> dict[str, Any]:
    """`backbone_config` and `dilation`."""
    if variant is not None:
        if variant not in PUBLISHED_VARIANTS:
            raise ConversionError(f"The variant {variant!r} is not one of {', '.join(PUBLISHED_VARIANTS)}.")
        published = PUBLISHED_VARIANTS[variant]
        if dilation not in (None, published["dilation"]):
            raise ConversionError(f"The variant {variant!r} has `dilation` = {published['dilation']}, not {dilation}.")
        return published
    body = [name.removeprefix(_BODY) for name in tensors if name.startswith(_BODY)]
    name = args.get("backbone") or resnet_name_of(body)
    if name not in RESNETS:
        described = repr(name) if name else f"unknown (tensors such as {', '.join(body[:2]) or 'none'})"
        raise ConversionError(f"The checkpoint's backbone is {described}; only {', '.join(RESNETS)} are supported.")
    if dilation is None:
        dilation = args.get("dilation")
    elif args.get("dilation", dilation) != dilation:
        raise ConversionError(f"The checkpoint was trained with `dilation` = {args['dilation']}, not {dilation}.")
    is_basic = RESNETS[name][0] == "basic"
    if dilation is None and is_basic:
        dilation = False
    if dilation is None:
        raise ConversionError(
            f"The checkpoint has no `args` that say whether the last stage of its {name} is dilated (DC5), and no "
            f"tensor shows it: give `--dilation yes` or `--dilation no`, or `--variant` with one of "
            f"{', '.join(PUBLISHED_VARIANTS)}."
        )
    if dilation and is_basic:
        raise ConversionError(f"`dilation` = True is not supported for a {name}: torchvision cannot dilate its blocks.")
    return {"backbone_config": resnet_config(name), "dilation": dilation}


def _query_grid(queries: int) -> list[int]:
    """The released code's grid: 17 x 18, or square."""
    side = math.isqrt(queries)
    if queries != 306 and side * side != queries:
        raise ConversionError(
            f"The checkpoint has {queries} queries; only 306 (17 x 18) and square numbers, such as 400, are supported."
        )
    return [17, 18] if queries == 306 else [side, side]


def _heads(tensors: dict[str, torch.Tensor], args: dict[str, Any]) -> int:
    last_bias = tensors.get("transformer.decoder.layers.0.gaussian_proj.layers.2.bias")  # four numbers per head
    shown = None if last_bias is None else last_bias.shape[0] // 4
    said = args.get("nheads")
    if said is not None and shown not in (None, said):
        raise ConversionError(f"The checkpoint was trained with `nheads` = {said}, but its tensors show {shown} heads.")
    if said is None and shown is None:
        logger.warning(
            "The checkpoint does not say its number of attention heads: using the default %d.", _DEFAULT_HEADS
        )
    return said or shown or _DEFAULT_HEADS


def _has_gaussian(tensors: dict[str, torch.Tensor], args: dict[str, Any]) -> bool:
    shown = any(".gaussian_proj." in name for name in tensors)
    if args.get("sdg", shown) != shown:
        raise ConversionError(
            f"The checkpoint was trained with `sdg` = {args['sdg']}, but its tensors "
            f"{'hold' if shown else 'lack'} the side-directed Gaussian's: it is incomplete."
        )
    return shown


def _activation(tensors: dict[str, torch.Tensor], args: dict[str, Any]) -> str:
    learned = "transformer.encoder.layers.0.activation.weight" in tensors
    name = args.get("transformer_activation", "prelu" if learned else "relu")
    if not learned and "transformer_activation" not in args:
        logger.warning("The checkpoint does not say its activation function: using the default ReLU.")
    if name not in _ACTIVATIONS:
        raise ConversionError(
            f"The checkpoint was trained with `transformer_activation` = {name!r}; only {', '.join(_ACTIVATIONS)} are "
            "supported."
        )
    return name


def _count(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    return len({name[len(prefix) + 1 :].split(".")[0] for name in tensors if name.startswith(prefix + ".")})


def _has_own_box_heads(tensors: dict[str, torch.Tensor], args: dict[str, Any]) -> bool:
    """Whether each layer has its own side and point head; the settings say it, or else the tensors differ."""
    first, second = (tensors.get(f"bbox_embed.{i}.layers.0.weight") for i in (0, 1))
    differ = first is not None and second is not None and not torch.equal(first, second)
    return args.get("bbox_embed_diff_each_layer", differ)


def convert_state_dict(released: dict[str, torch.Tensor], config: SapDetrConfig) -> dict[str, torch.Tensor]:
    """Rename a released state dict for [`SapDetrForObjectDetection`], using every tensor exactly once.

    Copies of shared tensors are compared with their source and dropped; the fixed grid of points is compared with the
    configuration's; `num_batches_tracked` counters are dropped.

    Raises:
        ConversionError: a tensor without a place, a place without a tensor, a wrong shape, a copy that differs from
            its source, or points that are not the grid.
    """
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in released.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name == "refpoint_embed.weight":
            _check_grid(tensor, config)
        source = _source_of_copy(name, config)
        if source is not None:
            _check_copy(released, name, source)
            continue
        try:
            new_name = released_name(name)
        except KeyError:
            raise ConversionError(f"The checkpoint's tensor `{name}` does not exist in SAP-DETR.") from None
        parts = {new_name: tensor} if "in_proj_" not in new_name else split_attention_projection(new_name, tensor)
        if converted.keys() & parts.keys():
            raise ConversionError(f"The checkpoint holds `{name}` twice.")
        converted.update(parts)
    _check_complete(converted, config)
    return converted


def _source_of_copy(name: str, config: SapDetrConfig) -> str | None:
    source = shared_source(name)
    if source is None and config.share_box_heads:
        head, _, rest = name.partition(".")
        index, _, tensor = rest.partition(".")
        if head in ("bbox_embed", "point_embed") and index != "0":
            source = f"{head}.0.{tensor}"
    return source


def _check_copy(released: dict[str, torch.Tensor], name: str, source: str) -> None:
    if source not in released:
        raise ConversionError(f"The checkpoint has `{name}` but not `{source}`, which it shares: it is incomplete.")
    if not torch.equal(released[name], released[source]):
        raise ConversionError(f"`{name}` and `{source}` must be one shared tensor, but their values differ.")


def _check_grid(points: torch.Tensor, config: SapDetrConfig) -> None:
    assert config.query_grid is not None
    rows, columns = config.query_grid
    expected = grid_logits(rows, columns)
    if points.shape != expected.shape or (points.float() - expected).abs().max() > 1e-4:
        raise ConversionError(
            f"`refpoint_embed.weight` is not the fixed grid of {rows} x {columns} points; "
            "checkpoints with other or learned points are not supported."
        )


def _check_complete(converted: dict[str, torch.Tensor], config: SapDetrConfig) -> None:
    with torch.device("meta"):
        expected = SapDetrForObjectDetection(config).state_dict()
    missing = sorted(expected.keys() - converted.keys())
    unexpected = sorted(converted.keys() - expected.keys())
    if missing or unexpected:
        raise ConversionError(
            f"The checkpoint does not fit the model: {len(missing)} tensors are missing (first: {missing[:3]}), "
            f"{len(unexpected)} are unexpected (first: {unexpected[:3]}). Is the variant right, is the file complete?"
        )
    for name, tensor in expected.items():
        if converted[name].shape != tensor.shape:
            raise ConversionError(
                f"`{name}` has the shape {tuple(converted[name].shape)} in the checkpoint but {tuple(tensor.shape)} "
                "in the model. Is the variant right?"
            )


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    variant: str | None = None,
    verify: bool = False,
    dilation: bool | None = None,
) -> SapDetrForObjectDetection:
    """Convert a released checkpoint to a directory with weights, configuration and image processor.

    Args:
        checkpoint: see [`read_checkpoint`].
        output_dir: a new or empty directory.
        variant: `"r50"`, `"r50-dc5"`, `"r101"` or `"r101-dc5"`, where the checkpoint does not say it.
        dilation: see [`config_of_checkpoint`].
        verify: load the directory again, compare every tensor with the checkpoint's and run a forward pass.

    Raises:
        FileNotFoundError, FileExistsError, ConversionError: with what to do.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not empty: name a new directory.")
    tensors, args = read_checkpoint(checkpoint)
    try:
        config = config_of_checkpoint(tensors, args, variant, dilation)
    except KeyError as error:
        raise ConversionError(f"The checkpoint has no tensor {error}: it is not a complete SAP-DETR.") from None
    converted = convert_state_dict(tensors, config)
    model = SapDetrForObjectDetection(config)
    model.load_state_dict({name: tensor.float() for name, tensor in converted.items()})
    model.save_pretrained(output_dir)
    SapDetrImageProcessorPil().save_pretrained(output_dir)
    if verify:
        verify_conversion(output_dir, converted)
    return model.eval()


@torch.no_grad()
def verify_conversion(directory: str | Path, converted: dict[str, torch.Tensor]) -> None:
    """Load a converted directory, compare every tensor with the original's and run a forward pass.

    Raises:
        ConversionError: a tensor differs, or the outputs are not finite boxes inside the range of a sigmoid.
    """
    model = SapDetrForObjectDetection.from_pretrained(directory).eval()
    loaded = model.state_dict()
    for name, tensor in converted.items():
        if loaded[name].shape != tensor.shape or not torch.equal(loaded[name], tensor.float()):
            raise ConversionError(f"`{name}` was not saved as it is in the checkpoint.")
    outputs = model(torch.randn(1, 3, 256, 320, generator=torch.Generator().manual_seed(0)))
    if not outputs.logits.isfinite().all() or not outputs.pred_boxes.isfinite().all():
        raise ConversionError("The converted model's outputs are not finite: the checkpoint holds broken weights.")
    logger.info("Verified %d tensors and a forward pass.", len(converted))
