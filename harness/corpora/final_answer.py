r"""The final answer of a worked solution: its last boxed expression, or else what follows its last "Answer:".

The rule of s1's evaluation (github.com/simplescaling/s1), which Safety Tax (arXiv 2503.00555) uses. There a language
model decides where neither is found; here there is then no answer.
"""

import re

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ANSWER = re.compile(r"answer\s*:", re.IGNORECASE)


def final_answer(text: str) -> str | None:
    r"""Return the final answer of a text, without the box; None if it has none.

    A box that is not closed, as in a text that was cut off, does not count. A full stop at the end is left out.
    """
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        content = _up_to_closing_brace(text[start:])
        if content is not None:
            return content.strip() or None
    marked = _ANSWER.split(text)
    return marked[-1].strip().removesuffix(".") or None if len(marked) > 1 else None


def _up_to_closing_brace(text: str) -> str | None:
    depth = 1
    for index, char in enumerate(text):
        # An escaped brace is one that is printed.
        if char in "{}" and (index == 0 or text[index - 1] != "\\"):
            depth += 1 if char == "{" else -1
            if depth == 0:
                return text[:index]
    return None
