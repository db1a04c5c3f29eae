"""Markdown escaping, so that a label is not interpreted as a column separator, a tag or emphasis."""

import re

from harness.report.stats.labels import one_line

# `_` within a word has no meaning and is not escaped, which keeps dotted names readable; `<`, `&` and `]` are special
# only if they can start a tag, an entity or a link.
_SPECIAL = re.compile(r"[\\`*|~$]|[<&](?=\S)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")


def literal(text: str) -> str:
    """Return text escaped for Markdown, in one line, so that it can be a cell of a table."""
    return _SPECIAL.sub(r"\\\g<0>", one_line(text))
