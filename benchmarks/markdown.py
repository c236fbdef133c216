"""Tables of text as Markdown: what every report here writes to its folder."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"  # not measured, or does not apply

Table = tuple[list[str], list[list[str]]]  # headers and rows of cells


def escaped(text: str) -> str:
    """Text that cannot break a Markdown table, list or heading."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def markdown_table(table: Table, texts: Sequence[int] = (0,)) -> list[str]:
    """The lines of a table; the columns `texts` (negative ones from the end) stand left, all others right."""
    headers, rows = table
    left = {number % len(headers) for number in texts}
    rule = [":--" if number in left else "--:" for number in range(len(headers))]
    return ["| " + " | ".join(map(escaped, cells)) + " |" for cells in (headers, rule, *rows)]
