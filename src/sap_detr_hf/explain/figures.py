"""Figures of an explanation (`explanation.py`); every `draw_` function takes one and returns an RGB PIL image.

`draw_explanation` gives an overview; `draw_reference_points`, `draw_sides`, `draw_layers`, `draw_heads`,
`draw_attention` and `draw_matching` show one part each. The color of a cell or sampling point is that of its level of
the feature pyramid, see `LEVEL_COLORS`. Needs matplotlib.
"""

from collections.abc import Sequence
from functools import singledispatch

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from ..drawing import label_color
from ..fonts import font_file
from .explanation import Explanation, MatchingExplanation
from .gaussian import GaussianExplanation
from .sampling import SamplingExplanation

DPI = 110
PANEL_SIDE = 3.0  # inches of a panel's longer side
HEAD_SIDE = 2.0  # where there is a panel for each head
COLUMNS = 4  # panels in a row
GAP = 0.06  # inches between panels
TITLE_HEIGHT = 0.22  # inches of a title's line
LEVEL_COLORS = ("white", "cyan", "yellow", "magenta", "lime", "orange")  # the finest first, then from the first again
SIDE_NAMES = ("left", "top", "right", "bottom")


def draw_explanation(explanation: Explanation) -> Image.Image:
    """Four panels: the cells with their points, the four distances, what leads every head, and where attention went."""
    canvas = _Canvas(explanation.image, 4, title_lines=2)
    canvas.title(0, "Each query owns a cell\nand finds a point in it")
    _draw_grid(canvas.panels[0], explanation)
    canvas.title(1, "The box is four distances\nfrom the point to its sides")
    _draw_sides(canvas.panels[1], explanation)
    canvas.title(2, _draw_all_heads(explanation, canvas.panels[2]))
    canvas.title(3, "Cross-attention,\nmean of all heads")
    _draw_heat(canvas.panels[3], explanation, explanation.attention.mean(0))
    return canvas.picture()


def draw_reference_points(explanation: Explanation) -> Image.Image:
    """All queries' fixed points and cells, and where the points of the detections moved within their cells."""
    canvas = _Canvas(explanation.image, 1, 2 * PANEL_SIDE)
    canvas.title(0, f"{len(explanation.reference_points)} queries, {len(explanation.detections)} detections")
    _draw_grid(canvas.panels[0], explanation)
    return canvas.picture()


def draw_sides(explanation: Explanation) -> Image.Image:
    """The chosen query's box, cell and point, the four distances as arrows, and their lengths in pixels."""
    canvas = _Canvas(explanation.image, 1, 2 * PANEL_SIDE)
    lengths = ", ".join(f"{name} {length:.0f}" for name, length in zip(SIDE_NAMES, explanation.sides[-1], strict=True))
    canvas.title(0, f"query {explanation.query}: {lengths} pixels")
    _draw_sides(canvas.panels[0], explanation)
    return canvas.picture()


def draw_layers(explanation: Explanation) -> Image.Image:
    """Point, sides and box that enter the decoder, and those after each layer; the point's way so far."""
    canvas = _Canvas(explanation.image, len(explanation.points) + 1)
    start, sides = explanation.entered_points[0], explanation.entered_sides[0]
    boxes = [np.concatenate([start - sides[:2], start + sides[2:]]), *explanation.boxes]
    way = [start, *explanation.points]
    titles = ["start"] + [f"layer {i}: {explanation.label} {score:.2f}" for i, score in enumerate(explanation.scores)]
    for step, panel in enumerate(canvas.panels):
        canvas.title(step, titles[step])
        _draw_cell(panel, explanation)
        _draw_box(panel, boxes[step], _color(explanation.label))
        _draw_arrows(panel, way[step], boxes[step])
        _draw_way(panel, way[: step + 1])
        _draw_point(panel, way[step], _color(explanation.label))
    return canvas.picture()


@singledispatch
def draw_heads(explanation: Explanation) -> Image.Image:
    """What leads each head, by the kind of explanation: [`draw_gaussian`] or [`draw_sampling`]."""
    raise NotImplementedError


@draw_heads.register
def draw_gaussian(explanation: GaussianExplanation) -> Image.Image:
    """The side-directed Gaussian of each head over the image, with the point and box that it started from."""
    canvas = _Canvas(explanation.image, len(explanation.gaussian), HEAD_SIDE)
    for head, gaussian in enumerate(explanation.gaussian):
        canvas.title(head, f"layer {explanation.layer}, head {head}")
        _draw_heat(canvas.panels[head], explanation, gaussian, highest=1.0)
    return canvas.picture()


@draw_heads.register
def draw_sampling(explanation: SamplingExplanation) -> Image.Image:
    """The sampling points of each head, with the point and box that it started from; larger ones weigh more."""
    canvas = _Canvas(explanation.image, len(explanation.sampling_points), HEAD_SIDE)
    for head, panel in enumerate(canvas.panels):
        canvas.title(head, f"layer {explanation.layer}, head {head}")
        _draw_samples(panel, explanation, head, head + 1)
    return canvas.picture()


def draw_attention(explanation: Explanation) -> Image.Image:
    """The cross-attention of each head over the image, each scaled to its own highest weight."""
    canvas = _Canvas(explanation.image, len(explanation.attention), HEAD_SIDE)
    for head, attention in enumerate(explanation.attention):
        canvas.title(head, f"layer {explanation.layer}, head {head}, max {attention.max():.2f}")
        _draw_heat(canvas.panels[head], explanation, attention)
    return canvas.picture()


def draw_matching(matching: MatchingExplanation) -> Image.Image:
    """Each true box (dashed) with its matched query at every decoder layer: the query's cell, point and box."""
    canvas = _Canvas(matching.image, len(matching.queries))
    for layer, panel in enumerate(canvas.panels):
        canvas.title(layer, f"layer {layer}")
        _draw_all_cells(panel, matching.all_cells, matching.cell_levels)
        for column, name in enumerate(matching.true_labels):
            color = matplotlib.colormaps["tab10"](column % 10)
            point, truth = matching.points[layer, column], matching.true_boxes[column]
            _rectangle(panel, matching.cells[layer, column], facecolor=color, alpha=0.4)
            _draw_box(panel, matching.boxes[layer, column], color, width=1.0)
            _draw_box(panel, truth, color, width=2.5, linestyle="--")
            _draw_point(panel, point, color)
            _write(panel, truth[:2], f"{name}: query {matching.queries[layer, column]}", color)
    return canvas.picture()


def heat_over_image(heat: np.ndarray, size: tuple[int, int], map_size: tuple[float, float]) -> np.ndarray:
    """A value for each pixel of the image, from one for each cell of the feature map.

    Args:
        heat: (h, w), not negative.
        size: width and height of the image.
        map_size: width and height that the map covers from the image's upper left corner; what lies beyond the image
            (padding) is cut off.

    Returns:
        (height, width) float32, interpolated, not negative.
    """
    rows, columns = heat.shape
    region = (0.0, 0.0, columns * min(1.0, size[0] / map_size[0]), rows * min(1.0, size[1] / map_size[1]))
    values = Image.fromarray(np.asarray(heat, dtype=np.float32))
    return np.asarray(values.resize(size, Image.Resampling.BICUBIC, box=region)).clip(min=0)


def blend_heat(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in gray with `heat` (height, width) in [0, 1] glowing over it."""
    gray = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * 0.6
    color = matplotlib.colormaps["inferno"](heat.clip(0, 1))[..., :3] * 255  # (height, width, 3)
    share = 0.85 * heat.clip(0, 1)[..., None] ** 0.6
    return Image.fromarray((gray * (1 - share) + color * share).round().astype(np.uint8))


class _Canvas:
    """Equal panels that all show the image, with the image's pixels as coordinates and room for a title above."""

    def __init__(self, image: Image.Image, count: int, side: float = PANEL_SIDE, title_lines: int = 1):
        columns = min(count, COLUMNS)
        rows = -(-count // columns)
        width, height = (length * side / max(image.size) for length in image.size)
        row_height = height + TITLE_HEIGHT * title_lines
        size = (columns * (width + GAP) + GAP, rows * row_height + GAP)
        self.figure = Figure(figsize=size, dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.panels: list[Axes] = []
        for index in range(count):
            left = GAP + (index % columns) * (width + GAP)
            bottom = GAP + (rows - 1 - index // columns) * row_height
            place = (left / size[0], bottom / size[1], width / size[0], height / size[1])
            panel = self.figure.add_axes(place)
            _show(panel, image)
            panel.set(xlim=(0, image.width), ylim=(image.height, 0), autoscale_on=False)
            panel.set_axis_off()
            self.panels.append(panel)

    def title(self, panel: int, text: str) -> None:
        self.panels[panel].set_title(text, fontproperties=font_file(text), fontsize=10, pad=4, parse_math=False)

    def picture(self) -> Image.Image:
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


def _show(panel: Axes, image: Image.Image) -> None:
    panel.imshow(image, extent=(0, image.width, image.height, 0), aspect="auto", interpolation="bicubic")


def _color(label: str) -> tuple[float, ...]:
    return tuple(value / 255 for value in label_color(label))


def _draw_grid(panel: Axes, explanation: Explanation) -> None:
    detections = explanation.detections
    _draw_all_cells(panel, explanation.cells, explanation.cell_levels)
    for rank, label in enumerate(detections.labels):
        cell = explanation.cells[int(detections.queries[rank])]
        _rectangle(panel, cell, facecolor=_color(label), alpha=0.45)
        _draw_box(panel, detections.boxes[rank].numpy(), _color(label), width=1.5)
        _draw_point(panel, detections.points[rank].numpy(), _color(label))


def _draw_all_cells(panel: Axes, cells: np.ndarray, levels: np.ndarray) -> None:
    """Outlines of the cells (N, 4) of all queries, and a dot in the upper left corner of each."""
    colors = [_level_color(level) for level in levels]
    outlines = [Rectangle((x1, y1), x2 - x1, y2 - y1) for x1, y1, x2, y2 in cells]
    panel.add_collection(PatchCollection(outlines, facecolor="none", edgecolor=colors, linewidth=0.4, alpha=0.5))
    x, y = cells[:, :2].T
    panel.scatter(x, y, s=6 if len(cells) <= 400 else 1, color=colors, edgecolor="black", linewidth=0.4)


def _draw_sides(panel: Axes, explanation: Explanation) -> None:
    point, box = explanation.points[-1], explanation.boxes[-1]
    _draw_cell(panel, explanation)
    _draw_box(panel, box, _color(explanation.label))
    _draw_arrows(panel, point, box)
    _write(panel, box[:2], f"{explanation.label} {explanation.scores[-1]:.2f}", "black")
    _draw_point(panel, point, _color(explanation.label))


@singledispatch
def _draw_all_heads(explanation: Explanation, panel: Axes) -> str:
    """What leads the heads, all in one panel; returns the panel's title."""
    raise NotImplementedError


@_draw_all_heads.register
def _draw_all_samples(explanation: SamplingExplanation, panel: Axes) -> str:
    _draw_samples(panel, explanation, 0, len(explanation.sampling_points))
    for level in range(explanation.sampling_points.shape[1]):
        place = (0.03 + 0.25 * (level % 4), 0.03 + 0.08 * (level // 4))
        panel.text(*place, f"level {level}", color=_level_color(level), fontsize=7, transform=panel.transAxes)
    return "Each head samples between\nthe point and the sides"


@_draw_all_heads.register
def _draw_all_gaussians(explanation: GaussianExplanation, panel: Axes) -> str:
    """From the point to the center of each head's Gaussian, and the line of one standard deviation around it."""
    _darken(panel, explanation)
    _draw_entered(panel, explanation)
    start = explanation.entered_points[explanation.layer]
    for head, (center, widths) in enumerate(
        zip(explanation.gaussian_centers, explanation.gaussian_widths, strict=True)
    ):
        color = matplotlib.colormaps["Set2"](head % 8)
        panel.plot([start[0], center[0]], [start[1], center[1]], color=color, linewidth=1.4)
        panel.add_patch(Ellipse(tuple(center), *(2 * widths), facecolor=(*color[:3], 0.25), edgecolor=color))
        panel.scatter(center[0], center[1], s=14, color=[color], zorder=4)
    return "A Gaussian leads each head\nfrom the point to the sides"


def _draw_samples(panel: Axes, explanation: SamplingExplanation, first: int, end: int) -> None:
    """The sampling points of the heads from `first` on, their area by their weight, and the box they started from."""
    _darken(panel, explanation)
    _draw_entered(panel, explanation)
    points, weights = explanation.sampling_points[first:end], explanation.sampling_weights[first:end]
    largest = weights.max()
    for level in range(points.shape[1]):
        x, y = points[:, level].reshape(-1, 2).T
        area = 2 + 40 * weights[:, level].ravel() / largest
        panel.scatter(x, y, s=area, color=_level_color(level), edgecolor="black", linewidth=0.4, alpha=0.8, zorder=6)


def _level_color(level: int) -> str:
    return LEVEL_COLORS[level % len(LEVEL_COLORS)]


def _darken(panel: Axes, explanation: Explanation) -> None:
    _show(panel, Image.blend(explanation.image, Image.new("RGB", explanation.image.size), 0.45))


def _draw_heat(panel: Axes, explanation: Explanation, heat: np.ndarray, highest: float | None = None) -> None:
    values = heat_over_image(heat, explanation.image.size, explanation.map_size)
    blended = blend_heat(explanation.image, values / (highest or values.max() or 1.0))
    _show(panel, blended)
    _draw_entered(panel, explanation)


def _draw_entered(panel: Axes, explanation: Explanation) -> None:
    """The box and point that the explained layer started from."""
    point, sides = explanation.entered_points[explanation.layer], explanation.entered_sides[explanation.layer]
    _draw_box(panel, np.concatenate([point - sides[:2], point + sides[2:]]), "white", width=1.0)
    _draw_point(panel, point, _color(explanation.label))


def _draw_cell(panel: Axes, explanation: Explanation) -> None:
    cell, color = explanation.cells[explanation.query], _level_color(explanation.cell_levels[explanation.query])
    _rectangle(panel, cell, facecolor=color, alpha=0.35)
    _rectangle(panel, cell, fill=False, edgecolor=color, linestyle=":", linewidth=1)


def _draw_box(panel: Axes, box: np.ndarray, color: str | tuple, width: float = 2.0, linestyle: str = "-") -> None:
    if linestyle == "-":  # a rim, so that it stands out on any background
        _rectangle(panel, box, fill=False, linewidth=width + 1.2, edgecolor="black", alpha=0.75)
    _rectangle(panel, box, fill=False, linewidth=width, edgecolor=color, linestyle=linestyle)


def _rectangle(panel: Axes, box: np.ndarray, **style) -> None:
    panel.add_patch(Rectangle(tuple(box[:2]), box[2] - box[0], box[3] - box[1], **style))


def _draw_arrows(panel: Axes, point: np.ndarray, box: np.ndarray) -> None:
    """From the point to the left, upper, right and lower side of its box."""
    (x, y), (x1, y1, x2, y2) = point, box
    style = {
        "arrowstyle": "-|>,head_width=0.25,head_length=0.4",
        "color": "white",
        "linewidth": 1.6,
        "shrinkA": 0,
        "shrinkB": 0,
        "path_effects": [withStroke(linewidth=3.2, foreground="black")],
    }
    for end in ((x1, y), (x, y1), (x2, y), (x, y2)):
        panel.annotate("", end, (x, y), arrowprops=style)


def _draw_way(panel: Axes, way: Sequence[np.ndarray]) -> None:
    x, y = np.array(way).T
    panel.plot(x, y, color="black", linewidth=2.4)
    panel.plot(x, y, color="cyan", linewidth=1.2)
    panel.scatter(x[:-1], y[:-1], s=9, color="cyan", edgecolor="black", linewidth=0.5, zorder=4)


def _draw_point(panel: Axes, point: np.ndarray, color: str | tuple) -> None:
    for size, face, edge, width in ((38, color, "white", 1.4), (62, "none", "black", 0.8)):
        panel.scatter(
            point[0], point[1], s=size, facecolor=face, edgecolor=edge, linewidth=width, zorder=5, clip_on=False
        )


def _write(panel: Axes, corner: np.ndarray, text: str, background: str | tuple) -> None:
    """A name above a box's upper left corner, or below it where there is no room."""
    above = corner[1] > 0.08 * panel.get_ylim()[0]
    panel.text(
        max(corner[0], 0.0),
        corner[1] if above else max(corner[1], 0.0),
        text,
        fontproperties=font_file(text),
        parse_math=False,
        fontsize=8,
        va="bottom" if above else "top",
        color="white",
        bbox={"facecolor": background, "alpha": 0.75, "linewidth": 0, "boxstyle": "square,pad=0.15"},
        zorder=6,
        clip_on=True,
    )
