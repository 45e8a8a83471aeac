"""What an explanation holds: how one query came to its box, and which queries learn which true boxes.

Letters in shape comments: D decoder layers, N queries, H heads, h and w rows and columns of the feature map, T true
boxes. All positions are pixels of the upright image.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ..inference.detector import SalientDetections


@dataclass
class Explanation:
    """How one query came to its box.

    Args:
        image: the upright RGB image.
        detections: all detections of the image above the threshold, best first.
        query: index of the explained query, row-major in the grid.
        label: name of the explained class: the detection's, or the query's best.
        layer: the decoder layer (0 = first) of `gaussian` and `attention`.
        scores: (D,) probability of the class after each layer.
        points: (D, 2) x, y of the salient point after each layer.
        boxes: (D, 4) x1, y1, x2, y2 after each layer. The last point and box are the detection's.
        sides: (D, 4) distances left, top, right, bottom from the point to the box's sides after each layer.
        entered_points: (D, 2) the point that each layer started from; the first lies where points start in their cell.
        entered_sides: (D, 4) the distances that each layer started from: the Gaussian leads along them.
        reference_points: (N, 2) x, y, every query's fixed point: the upper left corner of its cell.
        cells: (N, 4) x1, y1, x2, y2 of the queries' cells; a point never leaves its cell.
        cell_levels: (N,) int64, the level of the feature pyramid that each cell belongs to, 0 = finest.
        cell_size: width and height of the explained query's cell.
        attention: (H, h, w) cross-attention weights, the sum of each head is 1; 0 in the padding.
        map_size: width and height of what the h x w map covers, from the image's upper left corner. Larger than the
            image where the processor pads. As in the model, the map is stretched evenly over its input.
    """

    image: Image.Image
    detections: SalientDetections
    query: int
    label: str
    layer: int
    scores: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    sides: np.ndarray
    entered_points: np.ndarray
    entered_sides: np.ndarray
    reference_points: np.ndarray
    cells: np.ndarray
    cell_levels: np.ndarray
    cell_size: tuple[float, float]
    attention: np.ndarray
    map_size: tuple[float, float]

    heads: ClassVar[str]
    """What leads the heads: name of the figure that shows it."""
    looked_at_name: ClassVar[str]
    """What [`looked_at`] is."""

    @property
    def looked_at(self) -> np.ndarray:
        """(P, 2) x, y of the places that the heads of `layer` are led to."""
        raise NotImplementedError


@dataclass
class MatchingExplanation:
    """Which query learns which true box, at every decoder layer, as the training loss matches them.

    Args:
        image: the upright RGB image.
        true_boxes: (T, 4) x1, y1, x2, y2.
        true_labels: T names.
        queries: (D, T) int64, the query matched to each true box.
        points: (D, T, 2) x, y of the matched queries' points.
        boxes: (D, T, 4) x1, y1, x2, y2 of the matched queries' boxes.
        cells: (D, T, 4) x1, y1, x2, y2 of the matched queries' cells.
        all_cells, cell_levels: see [`Explanation`]'s.
    """

    image: Image.Image
    true_boxes: np.ndarray
    true_labels: list[str]
    queries: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    cells: np.ndarray
    all_cells: np.ndarray
    cell_levels: np.ndarray
