"""Settings of detection in slices, shared by several verbs."""

from typing import Annotated

from ..options import Limit

SliceSize = Annotated[
    int | None,
    "side in pixels of overlapping square slices, for small objects in large images; empty: no slices",
    Limit("at least 16", lambda value: value >= 16),
]
Overlap = Annotated[
    float | None,
    "with --slice: share of a slice that overlaps with the next, at least as wide as the objects; empty: 0.2",
    Limit("at least 0 and below 0.9", lambda value: 0 <= value < 0.9),
]
WholeImage = Annotated[
    bool | None, "with --slice: detect in the whole image as well, for objects larger than a slice; empty: yes"
]


def check_slices(size: int | None, overlap: float | None, whole_image: bool | None) -> None:
    """Raise an error for slice settings without a slice size: they would have no effect.

    Raises:
        ValueError: `overlap` or `whole_image` is given without `size`; the message names it.
    """
    given = {"--overlap": overlap, "--whole-image": whole_image}
    unused = " and ".join(option for option, value in given.items() if value is not None)
    if size is None and unused:
        raise ValueError(f"{unused} only works with slices: give their size with --slice, or leave it out")
