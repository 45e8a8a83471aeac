"""Tables in Markdown."""

from collections.abc import Iterable


def markdown_table(header: Iterable[object], rows: Iterable[Iterable[object]], rule: str = "---") -> str:
    """Header and rows, cells as `str` gives them, without a line break at the end.

    Args:
        header: names of the columns.
        rows: as many cells each.
        rule: what each column has in the line below the header; with spaces around, that line looks like the others.

    Returns:
        For instance

        ```python
        >>> print(markdown_table(["model", "AP"], [["r50", 43.1]]))
        | model | AP |
        |---|---|
        | r50 | 43.1 |

        ```
    """
    names, *lines = [[str(cell) for cell in row] for row in (header, *rows)]
    shown = [f"| {' | '.join(line)} |" for line in (names, *lines)]
    return "\n".join([shown[0], f"|{f'{rule}|' * len(names)}", *shown[1:]])
