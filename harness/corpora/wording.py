"""Comparison of answers with fixed wording: case, whitespace, the kind of apostrophe and zero-width characters."""

_APOSTROPHES = "\u2019\u2018\u201b\u02bc\u02b9\u02bb\u2032\uff07\u00b4`\u055a\ua78c"
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_PLAIN = str.maketrans(dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_ZERO_WIDTH, ""))


def plain(text: str) -> str:
    """Return a text in lower case, with straight apostrophes, single spaces and no zero-width characters."""
    return " ".join(text.translate(_PLAIN).lower().split())
