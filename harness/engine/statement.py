"""The statement of fidelity in the header of a method's module: a paragraph that begins with ``Fidelity:``."""

import re

_STATEMENT = re.compile(r"^Fidelity: (?P<statement>.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)


def statement_in(header: str | None) -> str:
    """Return the statement about fidelity in the header of a module, on one line; empty if there is none."""
    found = _STATEMENT.search(header or "")
    return " ".join(found["statement"].split()).replace("``", "") if found else ""
