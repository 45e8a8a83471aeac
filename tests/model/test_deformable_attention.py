"""Deformable attention against loops in plain Python, DINO's formula, and the CPU's own sampling."""

import math

import pytest
import torch

from sap_detr_hf.model.deformable_attention import (
    QUERIES_AT_ONCE,
    SapDinoDetrSideDirectedSampling,
    SapDinoDetrTokenAttention,
    sample_on_cpu,
)
from sap_detr_hf.model.token_pyramid import token_pyramid

SHAPES = [(6, 8), (3, 4), (2, 2), (1, 1)]
HEADS, POINTS, WIDTH = 2, 3, 32


def pyramid_of(batch=2, masked=True):
    maps = [torch.zeros(batch, WIDTH, *shape) for shape in SHAPES]
    if not masked:
        return token_pyramid(maps, None)
    masks = []
    for height, width in SHAPES:
        mask = torch.zeros(batch, 1, height, width, dtype=torch.bool)
        mask[0] = True
        mask[1, :, : max(1, height // 2), : max(1, width * 3 // 4)] = True
        masks.append(mask)
    return token_pyramid(maps, masks)


def noisy(attention):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return attention


def inputs(queries):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SHAPES)
    places = {
        "points": torch.rand(2, queries, 2, generator=generator),
        "sides": 0.5 * torch.rand(2, queries, 4, generator=generator),
    }
    states = torch.randn(2, queries, WIDTH, generator=generator), torch.randn(2, tokens, WIDTH, generator=generator)
    return states, places


def bilinear(level_map, x, y):
    """Value (channels,) of a map (h, w, channels) at x, y in tokens, whose centers lie at halves; zeros outside."""
    height, width, _ = level_map.shape
    total = torch.zeros(level_map.shape[-1])
    column, row = math.floor(x - 0.5), math.floor(y - 0.5)
    for i in (row, row + 1):
        for j in (column, column + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(x - 0.5 - j)) * (1 - abs(y - 0.5 - i)) * level_map[i, j]
    return total


def by_loops(attention, states, value_states, pyramid, location_of):
    """The definition, one sampling point after the other."""
    value = attention.value_proj(value_states)
    if pyramid.valid is not None:
        value = value * pyramid.valid[..., None]
    offsets = attention.sampling_offsets(states).view(*states.shape[:2], HEADS, len(SHAPES), POINTS, 2)
    weights = attention.attention_weights(states).view(*states.shape[:2], HEADS, -1).softmax(-1)
    output = torch.zeros_like(states)
    part = WIDTH // HEADS
    for image in range(len(states)):
        for query in range(states.shape[1]):
            for head in range(HEADS):
                total, number = torch.zeros(part), 0
                for level, (height, width) in enumerate(SHAPES):
                    start = int(pyramid.starts[level])
                    level_map = value[image, start : start + height * width].view(height, width, WIDTH)
                    level_map = level_map[..., head * part : (head + 1) * part]
                    for point in range(POINTS):
                        x, y = location_of(image, query, level, offsets[image, query, head, level, point])
                        share = weights[image, query, head, number]
                        total += share * bilinear(level_map, x * width, y * height)
                        number += 1
                output[image, query, head * part : (head + 1) * part] = total
    return attention.output_proj(output)


@pytest.mark.parametrize("masked", [True, False])
def test_side_directed_sampling_is_the_loop_over_heads_levels_and_points(masked):
    attention, pyramid = (
        noisy(SapDinoDetrSideDirectedSampling(WIDTH, HEADS, len(SHAPES), POINTS)),
        pyramid_of(2, masked),
    )
    states, places = inputs(5)

    def location_of(image, query, level, offset):
        sides = places["sides"][image, query]
        found = []
        for axis in (0, 1):
            side = sides[2 + axis] if offset[axis] > 0 else sides[axis]
            valid = float(pyramid.ratios[min(image, len(pyramid.ratios) - 1), level, axis])
            found.append(float(places["points"][image, query, axis] + offset[axis] / POINTS * side) * valid)
        return found

    with torch.no_grad():
        expected = by_loops(attention, *states, pyramid, location_of)
        found, weights = attention(*states, pyramid, **places)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(2, 5, HEADS))
    torch.testing.assert_close(attention(*states, pyramid, **places)[0], expected, rtol=0, atol=1e-5)  # grid_sample


def test_token_attention_is_the_loop_over_heads_levels_and_points():
    attention, pyramid = noisy(SapDinoDetrTokenAttention(WIDTH, HEADS, len(SHAPES), POINTS)), pyramid_of()
    tokens = inputs(1)[0][1]
    levels = [(level, *divmod(i, width)) for level, (h, width) in enumerate(SHAPES) for i in range(h * width)]

    def location_of(image, query, level, offset):
        own, row, column = levels[query]
        found = []
        for axis, place in enumerate((column, row)):
            own_valid = float(pyramid.ratios[image, own, axis]) * SHAPES[own][1 - axis]  # valid columns or rows
            center = (place + 0.5) / own_valid * float(pyramid.ratios[image, level, axis])
            found.append(center + float(offset[axis]) / SHAPES[level][1 - axis])
        return found

    with torch.no_grad():
        expected = by_loops(attention, tokens, tokens, pyramid, location_of)
        torch.testing.assert_close(attention(tokens, tokens, pyramid)[0], expected, rtol=0, atol=1e-5)


def test_sampling_around_a_centered_point_is_dinos():
    attention, pyramid = SapDinoDetrSideDirectedSampling(WIDTH, HEADS, len(SHAPES), POINTS), pyramid_of(masked=False)
    offsets = torch.randn(2, 5, HEADS, len(SHAPES), POINTS, 2)
    center, size = torch.rand(2, 5, 2), torch.rand(2, 5, 2)
    found = attention.locations(offsets, pyramid, points=center, sides=torch.cat([size, size], dim=-1) / 2)
    expected = center[:, :, None, None, None] + offsets / POINTS * size[:, :, None, None, None] / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_first_heads_look_towards_sides_and_corners():
    attention, pyramid = (
        SapDinoDetrSideDirectedSampling(WIDTH, 8, 1, 4),
        token_pyramid([torch.zeros(1, WIDTH, 4, 4)], None),
    )
    offsets = attention.sampling_offsets(torch.randn(1, 1, WIDTH)).view(1, 1, 8, 1, 4, 2)
    point, sides = torch.tensor([[[0.4, 0.5]]]), torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    last = attention.locations(offsets, pyramid, points=point, sides=sides)[0, 0, :, 0]  # (H, M, 2)
    expected = [[0.7, 0.5], [0.7, 0.9], [0.4, 0.9], [0.3, 0.9], [0.3, 0.5], [0.3, 0.3], [0.4, 0.3], [0.7, 0.3]]
    torch.testing.assert_close(last[:, 3], torch.tensor(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(last[0, :, 0], 0.4 + 0.3 * torch.tensor([0.25, 0.5, 0.75, 1]), rtol=0, atol=1e-6)


def test_cpu_sampling_and_its_gradients_equal_those_of_grid_sample_far_outside_too():
    attention = SapDinoDetrTokenAttention(WIDTH, HEADS, len(SHAPES), POINTS)
    pyramid = pyramid_of(masked=False)
    generator = torch.Generator().manual_seed(0)
    queries = QUERIES_AT_ONCE + 7
    value = torch.randn(2, int(pyramid.sizes.prod(-1).sum()), HEADS, WIDTH // HEADS, generator=generator)
    locations = 3 * torch.randn(2, queries, HEADS, len(SHAPES), POINTS, 2, generator=generator) + 0.5
    locations[0, :6] = torch.tensor([-1e9, -0.13, 0.01, 0.99, 1.13, 1e9])[:, None, None, None, None]
    weights = torch.rand(2, queries, HEADS, len(SHAPES), POINTS, generator=generator)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    sizes = pyramid.sizes.flip(-1).long()
    expected = attention.sampling(value, sizes, pyramid.shapes, pyramid.starts, locations, weights, 64)
    sampled = sample_on_cpu(value, SHAPES, locations, weights)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-5)
    gradient = torch.randn(expected.shape, generator=generator)
    pairs = zip(
        torch.autograd.grad(sampled, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    )
    for own, of_grid_sample in pairs:
        torch.testing.assert_close(own, of_grid_sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cpu_sampling_passes_on_what_is_not_a_number():
    value, weights = torch.randn(1, 65, 1, WIDTH), torch.rand(1, 1, 1, len(SHAPES), POINTS)
    locations = torch.full((1, 1, 1, len(SHAPES), POINTS, 2), torch.nan)
    assert sample_on_cpu(value, SHAPES, locations, weights).isnan().all()


@pytest.mark.parametrize(("learns", "many", "own"), [(False, 4096, True), (True, 4096, False), (True, 160, True)])
def test_training_takes_the_own_sampling_for_many_queries_only(learns, many, own, monkeypatch):
    attention, pyramid = (
        SapDinoDetrTokenAttention(WIDTH, HEADS, 1, POINTS),
        token_pyramid([torch.zeros(1, WIDTH, 1, 160)], None),
    )
    monkeypatch.setattr("sap_detr_hf.model.deformable_attention.MANY_QUERIES", many)
    by_grid_sample = []
    attention.sampling.register_forward_pre_hook(lambda *_: by_grid_sample.append(True))
    tokens = torch.randn(1, 160, WIDTH)
    with torch.set_grad_enabled(learns):
        attention(tokens, tokens, pyramid)
    assert not by_grid_sample if own else by_grid_sample


@torch.no_grad()
def test_locations_are_exact_under_autocast(monkeypatch):
    """A half-precision coordinate would be off by a third of a token here."""
    attention, pyramid = (
        SapDinoDetrTokenAttention(WIDTH, HEADS, 1, POINTS),
        token_pyramid([torch.zeros(1, WIDTH, 1, 160)], None),
    )
    seen = []
    monkeypatch.setattr(
        "sap_detr_hf.model.deformable_attention.sample_on_cpu",
        lambda *arguments: seen.append(arguments) or sample_on_cpu(*arguments),
    )
    tokens = torch.randn(1, 160, WIDTH)
    attention(tokens, tokens, pyramid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(tokens, tokens, pyramid)
    (_, _, exact, _), (value, _, found, weights) = seen
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    assert value.dtype == weights.dtype == torch.float32
