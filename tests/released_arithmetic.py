"""SAP-DETR on a state dict of the released code, one formula after the other, and small synthetic checkpoints for it.

The formulas are those of the released code in its own form (three parts a head, a Gaussian over all pairs), without any
of the package's modules; `tests/weights/test_released_options.py` first holds them against the stored outputs.
"""

import json
import math
import re
from collections import OrderedDict
from functools import cache

import torch
from released_reference import DIRECTORY, description, draw, released_grid
from torch import nn

functional = nn.functional

SMALL_ARGS = {
    **json.loads((DIRECTORY / "args_resnet50.json").read_text()),
    "backbone": "resnet18",
    "nheads": 4,
    "dim_feedforward": 96,
    "enc_layers": 2,
    "dec_layers": 3,
    "num_queries": 400,
}


def released_outputs(
    tensors: dict[str, torch.Tensor], args: dict, pixels: torch.Tensor, pixel_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Predictions of all decoder layers, (layers, B, N, ·): `logits`, `boxes`, `objectness`, `points`."""
    return _Released(tensors, args).outputs(pixels, pixel_mask)


class _Released:
    def __init__(self, tensors: dict[str, torch.Tensor], args: dict):
        self.tensors, self.args, self.heads = tensors, args, args["nheads"]
        self.d_model = tensors["input_proj.weight"].shape[0]

    def linear(self, name: str, states: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def norm(self, name: str, states: torch.Tensor) -> torch.Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(states, (self.d_model,), weight, bias)

    def mlp(self, name: str, states: torch.Tensor, depth: int) -> torch.Tensor:
        for i in range(depth):
            states = self.linear(f"{name}.layers.{i}", states)
            states = states.relu() if i + 1 < depth else states
        return states

    def feed_forward(self, name: str, states: torch.Tensor, norm: str) -> torch.Tensor:
        hidden = self.linear(f"{name}.linear1", states)
        kind = self.args["transformer_activation"]
        if kind == "prelu":
            hidden = functional.prelu(hidden, self.tensors[f"{name}.activation.weight"])
        else:
            hidden = getattr(functional, kind)(hidden)
        return self.norm(f"{name}.{norm}", states + self.linear(f"{name}.linear2", hidden))

    def attention(self, query, key, value, padding=None, bias=None):
        """(B, N, H·w), (B, L, H·w), (B, L, d) -> (B, N, d); padding (B, L), bias (B, H, N, L)."""
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        if bias is not None:
            logits = logits + bias
        if padding is not None:
            logits = logits.masked_fill(padding[:, None, None], -math.inf)
        return (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def sine(self, positions: torch.Tensor) -> torch.Tensor:
        width = self.d_model // 2
        wave = 20 ** (2 * (torch.arange(width) // 2) / width)
        angle = positions[..., None] * 2 * math.pi / wave
        pairs = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1)
        return pairs.flatten(-3)

    def backbone(self, pixels: torch.Tensor) -> torch.Tensor:
        from torchvision.ops import FrozenBatchNorm2d

        network = _resnet(self.args["backbone"], self.args["dilation"], FrozenBatchNorm2d)
        body = "backbone.0.body."
        network.load_state_dict({k.removeprefix(body): v for k, v in self.tensors.items() if k.startswith(body)})
        for child in network.children():
            pixels = child(pixels)
        return pixels

    def outputs(self, pixels: torch.Tensor, pixel_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.backbone(pixels)
        height, width = size = features.shape[-2:]
        padding = functional.interpolate((pixel_mask == 0)[None].float(), size=size)[0].bool()  # (B, h, w)
        valid = (~padding).float()
        place = [valid.cumsum(axis) / (valid.sum(axis, keepdim=True) + 1e-6) for axis in (1, 2)]
        positions = self.sine(torch.stack(place, dim=-1)).flatten(1, 2)  # y before x
        padding = padding.flatten(1)
        weight, bias = self.tensors["input_proj.weight"], self.tensors["input_proj.bias"]
        memory = functional.conv2d(features, weight, bias).flatten(2).transpose(1, 2)
        for i in range(self.args["enc_layers"]):
            memory = self.encoder_layer(i, memory, positions, padding)
        start = self.tensors["refpoint_embed.weight"].sigmoid().expand(len(pixels), -1, -1)
        content = self.start_content(memory, start, (height, width))
        return self.decode(content, start, memory, positions, padding, (height, width))

    def encoder_layer(self, i, states, positions, padding):
        name = f"transformer.encoder.layers.{i}"
        scaled = positions * self.mlp(f"transformer.encoder.query_scales.{i}", states, 2)
        weights = self.tensors[f"{name}.self_attn.in_proj_weight"].chunk(3)
        biases = self.tensors[f"{name}.self_attn.in_proj_bias"].chunk(3)
        inputs = (states + scaled, states + scaled, states)
        parts = [functional.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]
        attended = self.linear(f"{name}.self_attn.out_proj", self.attention(*parts, padding))
        return self.feed_forward(name, self.norm(f"{name}.norm1", states + attended), "norm2")

    def start_content(self, memory, points, size):
        if not self.args["newconvinit"]:
            return torch.zeros(*points.shape[:2], self.d_model)
        name, feature_map = "transformer.point_transfer", memory.transpose(1, 2).unflatten(2, size)
        for i in (0, 3, 6):
            weight, bias = self.tensors[f"{name}.{i}.weight"], self.tensors[f"{name}.{i}.bias"]
            feature_map = functional.conv2d(feature_map, weight, bias, padding=1)
            weight, bias = self.tensors[f"{name}.{i + 1}.weight"], self.tensors[f"{name}.{i + 1}.bias"]
            feature_map = functional.group_norm(feature_map, 32, weight, bias).relu()
        sampled = functional.grid_sample(feature_map, points[:, None] * 2 - 1, align_corners=False)
        return sampled[:, :, 0].transpose(1, 2)

    def decode(self, states, start, memory, positions, padding, size):
        queries = start.shape[1]
        cell = torch.tensor([1 / 18, 1 / 17]) if queries == 306 else 1 / math.sqrt(queries)
        head_cell = cell if queries == 306 else 1 / 20
        points, sides = start, self.tensors["refbbox_embed.weight"].sigmoid().expand(len(start), -1, -1)
        before, predictions = start, []  # the point that entered the layer before
        for i in range(self.args["dec_layers"]):
            entered_sides = sides
            states = self.decoder_layer(i, states, points, sides, memory, positions, padding, size)
            normed = self.norm("transformer.decoder.norm", states)
            step = (self.mlp(f"point_embed.{i}", normed, 3) + _logit(before - start)).sigmoid()
            predicted_point = start + step * head_cell
            left, top, right, bottom = (
                (self.mlp(f"bbox_embed.{i}", normed, 3) + _logit(entered_sides)).sigmoid().unbind(-1)
            )
            x, y = predicted_point.unbind(-1)
            boxes = torch.stack([x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], -1)
            logits, objectness = self.mlp(f"class_embed.{i}", normed, 3), self.linear("obj_embed", normed)
            predictions.append({"logits": logits, "boxes": boxes, "objectness": objectness, "points": predicted_point})
            before = points
            points = start + cell * (self.mlp(f"point_embed.{i}", states, 3) + _logit(points - start)).sigmoid()
            sides = (self.mlp(f"bbox_embed.{i}", states, 3) + _logit(sides)).sigmoid()
        return {name: torch.stack([layer[name] for layer in predictions]) for name in predictions[0]}

    def decoder_layer(self, i, states, points, sides, memory, positions, padding, size):
        name = f"transformer.decoder.layers.{i}"
        point_sine = self.sine(points)
        box_sine = self.sine(torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=-1))
        point, box = self.mlp("ref_point_head", point_sine, 2), self.mlp("ref_bbox_head", box_sine, 2)
        if i > 0:
            scale = self.mlp("transformer.decoder.query_scale", states, 2)
            point_sine, box_sine = point_sine * scale, box_sine * scale.repeat(1, 1, 2)
        query, key = (
            self.linear(f"{name}.sa_{side}content_proj", states)
            + self.linear(f"{name}.sa_point_{side}pos_proj", point)
            + self.linear(f"{name}.sa_bbox_{side}pos_proj", box)
            for side in "qk"
        )
        attended = self.attention(query, key, self.linear(f"{name}.sa_v_proj", states))
        states = self.norm(f"{name}.norm1", states + self.linear(f"{name}.self_attn.out_proj", attended))

        bias = self.gaussian(f"{name}.gaussian_proj", states, points, sides, size) if self.args["sdg"] else None
        query = self.linear(f"{name}.ca_qcontent_proj", states)
        key = self.linear(f"{name}.ca_kcontent_proj", memory)
        key_position = self.linear(f"{name}.ca_kpos_proj", positions)
        if i == 0:
            query = query + self.linear(f"{name}.ca_point_qpos_proj", point)
            query = query + self.linear(f"{name}.ca_bbox_qpos_proj", box)
            key = key + key_position
        query = self.beside(
            query,
            self.linear(f"{name}.ca_qpos_sine_proj", point_sine),
            self.linear(f"{name}.ca_bbox_qpos_sine_proj", box_sine),
        )
        key = self.beside(key, key_position, key_position)
        attended = self.attention(query, key, self.linear(f"{name}.ca_v_proj", memory), padding, bias)
        states = self.norm(f"{name}.norm2", states + self.linear(f"{name}.cross_attn.out_proj", attended))
        return self.feed_forward(name, states, "norm3")

    def beside(self, *parts: torch.Tensor) -> torch.Tensor:
        """Head by head, one part after the other."""
        return torch.cat([part.unflatten(-1, (self.heads, -1)) for part in parts], dim=-1).flatten(2)

    def gaussian(self, name, states, points, sides, size):
        map_size = torch.tensor([size[1], size[0]])
        offset, scale = self.mlp(name, states, 3).unflatten(-1, (2, self.heads, 2)).unbind(2)  # (B, N, H, 2)
        offset = offset.tanh()
        reach = torch.where(offset > 0, sides[:, :, None, 2:], sides[:, :, None, :2])
        center = (points[:, :, None] + offset * reach) * map_size
        y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        keys = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5  # (L, 2)
        difference = (keys - center[:, :, :, None]) * scale[:, :, :, None]  # (B, N, H, L, 2)
        return -difference.square().sum(-1).transpose(1, 2) / 8


def _logit(values: torch.Tensor) -> torch.Tensor:
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=1e-3) / (1 - values).clamp(min=1e-3))


def _resnet(name: str, dilation: bool, norm: type[nn.Module]) -> nn.Sequential:
    """torchvision's ResNet without what follows its last feature map."""
    import torchvision

    replaced = [False, False, dilation]
    network = getattr(torchvision.models, name)(weights=None, replace_stride_with_dilation=replaced, norm_layer=norm)
    return nn.Sequential(OrderedDict(list(network.named_children())[:-2]))


def synthetic_checkpoint(d_model: int = 64, classes: int = 7, **options) -> tuple[dict[str, torch.Tensor], dict]:
    """State dict and `args` as the released code saves them, drawn by name; `options` are those of `args`."""
    from torchvision.ops import FrozenBatchNorm2d

    args = {**SMALL_ARGS, **options}
    sizes = {256: d_model, 512: 2 * d_model, 768: 3 * d_model, 2048: args["dim_feedforward"], 91: classes}
    sizes |= {32: 4 * args["nheads"], 306: args["num_queries"]}
    body = _resnet(args["backbone"], args["dilation"], FrozenBatchNorm2d).state_dict()
    shapes = {f"backbone.0.body.{name}": list(value.shape) for name, value in body.items()}
    same_as: dict[str, str] = {}
    for name, entry in description("resnet50")["tensors"].items():
        if not name.startswith("backbone.") and _exists(name, args):
            shapes[name] = [sizes.get(size, size) for size in entry["shape"]]
            same_as[name] = entry.get("same_as", name)
            if not args["bbox_embed_diff_each_layer"]:
                same_as[name] = re.sub(r"^(bbox_embed|point_embed)\.\d+", r"\1.0", same_as[name])
    shapes["input_proj.weight"][1] = 512 if args["backbone"] in ("resnet18", "resnet34") else 2048
    if args["transformer_activation"] == "prelu":
        layers = [f"transformer.encoder.layers.{i}" for i in range(args["enc_layers"])]
        layers += [f"transformer.decoder.layers.{i}" for i in range(args["dec_layers"])]
        shapes |= {f"{name}.activation.weight": [1] for name in layers}
    drawn = {name: _drawn(name, tuple(shape)) for name, shape in shapes.items() if same_as.get(name, name) == name}
    rows, columns = (17, 18) if args["num_queries"] == 306 else [math.isqrt(args["num_queries"])] * 2
    drawn["refpoint_embed.weight"] = torch.from_numpy(released_grid(rows, columns)).float()
    return {name: drawn[same_as.get(name, name)] for name in shapes}, args


@cache
def _drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(draw(name, list(shape))).float()


def _exists(name: str, args: dict) -> bool:
    """Whether a tensor of the published R50 is there with these `args`."""
    layers = re.search(r"(encoder|decoder)\.(?:layers|query_scales)\.(\d+)\.|(?:_embed)\.(\d+)\.", name)
    if layers:
        depth = args["enc_layers"] if layers[1] == "encoder" else args["dec_layers"]
        if int(layers[2] or layers[3]) >= depth:
            return False
    return (args["sdg"] or "gaussian_proj" not in name) and (args["newconvinit"] or "point_transfer" not in name)
