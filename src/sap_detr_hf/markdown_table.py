"""Tables in Markdown."""

from collections.abc import Iterable


def table_text(text: str) -> str:
    """A text for a cell, its vertical lines escaped."""
    return text.replace("|", "\\|")


def markdown_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table, cells as `str` gives them, without a line break at the end."""
    names, *lines = [[str(cell) for cell in row] for row in (header, *rows)]
    shown = [f"| {' | '.join(line)} |" for line in (names, *lines)]
    return "\n".join([shown[0], f"|{'---|' * len(names)}", *shown[1:]])
