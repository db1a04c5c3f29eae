"""Seeds: every random choice uses a generator derived from the root seed and a name for the choice."""

import hashlib
import json
from random import Random


def derive(seed: int, *names: str) -> int:
    """Return the 63-bit seed of a named stream: equal on every machine, independent of other streams' seeds.

    Args:
        seed: the root seed.
        names: name of the choice, from general to specific. ``("a", "b")`` and ``("ab",)`` are different streams.
    """
    text = json.dumps([seed, *names], ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str) -> Random:
    """Return the generator of a named stream."""
    return Random(derive(seed, *names))
