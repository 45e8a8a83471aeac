"""The side-directed Gaussian inside a fused attention kernel, without a bias of shape (queries, tokens) in memory.

Two candidates beside the model's separable bias, for `benchmarks/compare_speed.py` to compare on a device:

* `channels`: the square expands into a product of what the query knows and what the token knows,
  `-(x - c)^2 u^2 / 8 = -u^2 / 8 x^2 + c u^2 / 4 x + (what a softmax ignores)`, so that four more channels of queries
  and keys carry both axes, and a fifth the mask. Half precision cannot hold the factors: three channels each, there.
* `flex`: flex attention computes the exponent from a token's index. On CPUs it is not fused and has no gradient.

The model keeps its bias. `channels` saves little of a forward pass on a CPU, and its gradients are small differences of
large sums: those of the widths are 17 % off in bfloat16, against 0.4 % with the bias
(`tests/benchmarks/test_gaussian_forms.py`).
Neither has been measured on a GPU.
"""

import copy

import torch
from torch.nn.attention.flex_attention import flex_attention

from sap_detr_hf.model.modeling_sap_detr import SapDetrForObjectDetection
from sap_detr_hf.model.side_directed_gaussian import SapDetrCrossAttention, SapDetrSideDirectedGaussian

SQUARE_SCALE, LINE_SCALE = 4.0, 256.0  # of the token's channels; float16 holds maps of up to 255 tokens a side
FAR = -1e30  # of a padding token, or the least number that the precision holds


class ChannelGaussian(SapDetrSideDirectedGaussian):
    """The exponent as further channels of queries and keys."""

    def forward(self, hidden_states, points, sides, extent, valid, map_size):
        """As [`SapDetrSideDirectedGaussian`], but its factors (B, H, N, 5) and (B or 1, 1, L, 5) in float32."""
        projected = self.proj(hidden_states)
        center, inverse_width = (part.transpose(1, 2) for part in self.place(projected, points, sides, extent))
        rows, columns = (torch.arange(size, device=center.device) + 0.5 - size / 2 for size in map_size)
        keys = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)  # (L, 2) x, y
        square = inverse_width.square() * -0.125  # (B, H, N, 2)
        middle = torch.stack([center.new_full((), size / 2) for size in reversed(map_size)])
        line = -2 * square * (center - middle)
        mask = keys.new_zeros(1, 1, len(keys)) if valid is None else torch.where(valid.flatten(2), 0.0, FAR)
        key = torch.cat([keys.square() * SQUARE_SCALE, keys * LINE_SCALE], dim=-1).expand(len(mask), 1, -1, -1)
        query = torch.cat([square / SQUARE_SCALE, line / LINE_SCALE, torch.ones_like(square[..., :1])], dim=-1)
        return query, torch.cat([key, mask[..., None]], dim=-1)


class ChannelCrossAttention(SapDetrCrossAttention):
    """Takes the Gaussian's channels to those of content and position."""

    def attend(self, query, key, value, attention_mask=None, position_bias=None, **kwargs):
        """As [`SapDetrCrossAttention`], `position_bias` being what [`ChannelGaussian`] gives."""
        query_channels, key_channels = position_bias
        query_channels, key_channels = [query_channels / self.scaling], [key_channels.expand(*key.shape[:3], -1)]
        if query.dtype in (torch.float16, torch.bfloat16):
            # (a + b) (x + y) without b y: both factors keep twice the digits that the type holds.
            held = key_channels[0].clamp(min=torch.finfo(query.dtype).min)
            (a, b), (x, y) = (in_two_parts(channels, query.dtype) for channels in (query_channels[0], held))
            query_channels, key_channels = [a, b, a], [x, x, y]
        query = torch.cat([query, *query_channels], dim=-1).to(query.dtype)
        key = torch.cat([key, *key_channels], dim=-1).to(key.dtype)
        spare = (0, -key.shape[-1] % 8)  # fused kernels on GPUs take multiples of 8
        query, key = (torch.nn.functional.pad(states, spare) for states in (query, key))
        return super().attend(query, key, value, attention_mask, **kwargs)


def in_two_parts(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The values as `dtype` holds them, and the remainder."""
    coarse = values.to(dtype).to(values.dtype)
    return coarse, values - coarse


class FlexGaussian(SapDetrSideDirectedGaussian):
    """The exponent as a function of a query's and a token's index."""

    def forward(self, hidden_states, points, sides, extent, valid, map_size):
        """As [`SapDetrSideDirectedGaussian`], but a `score_mod` of flex attention."""
        projected = self.proj(hidden_states)
        center, inverse_width = (part.transpose(1, 2) for part in self.place(projected, points, sides, extent))
        (center_x, center_y), (inverse_x, inverse_y) = center.unbind(-1), inverse_width.unbind(-1)  # (B, H, N) each
        width, tokens = map_size[1], None if valid is None else valid.flatten(1)  # (B, L)

        def score_mod(score, image, head, query, token):
            x = (token % width + 0.5 - center_x[image, head, query]) * inverse_x[image, head, query]
            y = (token // width + 0.5 - center_y[image, head, query]) * inverse_y[image, head, query]
            score = score - (x * x + y * y) / 8
            return score if tokens is None else torch.where(tokens[image, token], score, float("-inf"))

        return score_mod


class FlexCrossAttention(SapDetrCrossAttention):
    """Flex attention instead of the configured implementation: no attention weights as output, no dropout of them."""

    def attend(self, query, key, value, attention_mask=None, position_bias=None, **kwargs):
        """As [`SapDetrCrossAttention`], `position_bias` being what [`FlexGaussian`] gives."""
        kernel = COMPILED_FLEX_ATTENTION if query.device.type == "cuda" else flex_attention
        output = kernel(query, key, value, score_mod=position_bias, scale=self.scaling)  # (B, H, N, d / H)
        return self.out_proj(output.transpose(1, 2).flatten(2)), None


COMPILED_FLEX_ATTENTION = torch.compile(flex_attention, dynamic=False)
GAUSSIAN_FORMS = {
    "channels": (ChannelGaussian, ChannelCrossAttention),
    "flex": (FlexGaussian, FlexCrossAttention),
}


def gaussian_form(model: SapDetrForObjectDetection, form: str) -> SapDetrForObjectDetection:
    """Give a model one of `GAUSSIAN_FORMS`, in place; returns it. Weights stay the same, outputs up to rounding."""
    gaussian, attention = GAUSSIAN_FORMS[form]
    for layer in model.model.decoder.layers:
        layer.gaussian.__class__, layer.cross_attn.__class__ = gaussian, attention
    return model


MAP_SIZE = 50, 67  # tokens of an image of 800 x 1066 pixels at stride 16


def gradient_errors(model: SapDetrForObjectDetection, form: str | None, device: str = "cpu") -> list[float]:
    """How far one cross-attention in bfloat16 is from the model's own in float32.

    Args:
        model: gives the attention's sizes.
        form: one of `GAUSSIAN_FORMS`; `None` for the model's own.
        device: "cpu" or "cuda".

    Returns:
        Norm of the difference / norm: of the output, of the gradients of the Gaussians' centers and inverse widths.
    """
    exact = _attention_and_gradients(copy.deepcopy(model), torch.float32, device)
    other = copy.deepcopy(model) if form is None else gaussian_form(copy.deepcopy(model), form)
    found = _attention_and_gradients(other, torch.bfloat16, device)
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


def _attention_and_gradients(
    model: SapDetrForObjectDetection, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    config, layer = model.config, model.model.decoder.layers[1]
    gaussian, attention = layer.gaussian, layer.cross_attn
    gaussian.proj, attention.out_proj = torch.nn.Identity(), torch.nn.Identity()
    heads = config.decoder_attention_heads
    width = config.d_model // heads
    torch.manual_seed(0)
    center = torch.rand(2, 30, heads, 2) * torch.tensor(MAP_SIZE[::-1])  # (B, N, H, 2)
    inverse_width = 0.2 + torch.rand(2, 30, heads, 2)
    center, inverse_width = (values.to(device).requires_grad_() for values in (center, inverse_width))
    gaussian.place = lambda *_: (center, inverse_width)
    lengths = ((30, 2 * width), (MAP_SIZE[0] * MAP_SIZE[1], 2 * width), (MAP_SIZE[0] * MAP_SIZE[1], width))
    # Of bfloat16's values: the same in every precision
    states = [torch.randn(2, heads, *length).bfloat16().to(device, dtype) for length in lengths]
    noise = torch.randn(2, 30, config.d_model).to(device)
    bias = gaussian(states[0], None, None, None, None, MAP_SIZE)
    output, _ = attention.attend(*states, position_bias=bias)
    (output.float() * noise).sum().backward()
    assert center.grad is not None
    assert inverse_width.grad is not None
    return output.detach().float(), center.grad, inverse_width.grad
