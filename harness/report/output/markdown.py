"""Markdown: text that means nothing in it, so that a label cannot become a column, a tag or an emphasis."""

import re

from harness.report.stats.labels import one_line

# Within a word `_` means nothing, and dotted names are easier to read without backslashes; `<`, `&` and `]` mean
# something only before what makes them a tag, an entity or a link.
_SPECIAL = re.compile(r"[\\`*|~$]|[<&](?=\S)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")


def literal(text: str) -> str:
    """Return text as Markdown shows it unchanged, in one line; it may stand in a cell of a table."""
    return _SPECIAL.sub(r"\\\g<0>", one_line(text))
