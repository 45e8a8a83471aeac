"""The settings of detection in slices, which several verbs share."""

from typing import Annotated

from ..options import Limit

SliceSize = Annotated[
    int | None,
    "side in pixels of overlapping square slices, for small objects in large images; empty: the image as a whole",
    Limit("at least 16", lambda value: value >= 16),
]
Overlap = Annotated[
    float,
    "with --slice: share of a slice that the next one repeats; best no narrower than the objects",
    Limit("at least 0 and below 0.9", lambda value: 0 <= value < 0.9),
]
WholeImage = Annotated[bool, "with --slice: detect in the whole image as well, for objects larger than a slice"]
