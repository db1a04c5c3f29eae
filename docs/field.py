"""Write the page of the field: ``python docs/field.py`` makes ``field.md`` from ``field.yaml`` and the code.

The grade of a member is what the header of its module states. A test compares the page with what this script writes.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from harness.engine.statement import statement_in

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "field.md"
TEMPLATE = """\
# The field

What research on harmful fine-tuning attacks and defends with, and what of it runs here: `harness -m MEMBER ...`, for
example `harness -m defense/align=vaccine attack=mix`. The grade of a defense is the first clause about fidelity in the
header of its module, where its equations and deviations are (see [defenses](defenses.md)); attacks and guardrails have
their sources in their headers (see [attacks](attacks.md)). Written by `python docs/field.py`.
{% for part, title in [("defenses", "Defenses"), ("attacks", "Attacks")] %}
## {{ title }}

| class | here | missing, and why |
|---|---|---|
{% for each in field[part] -%}
| {{ each.class }} | {{ each | here }} | {{ each.get("absent", {}) | reasons }} |
{% endfor %}{% endfor %}
## ICLR 2025

| paper | line |
|---|---|
{% for each in field.iclr_2025 -%}
| {{ each | paper }} | {% if each.line %}`harness -m {{ each.line }}`{% else %}– ({{ each.absent }}){% endif %} |
{% endfor -%}
"""


def grade(option: str) -> str:
    """Return the grade of an option of a slot or of a method at inference: the first clause about it in its header."""
    group, _, name = option.partition("=")
    target = yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text("utf-8"))["_target_"]
    module, _, name = target.rpartition(".")
    statement = statement_in(import_module(getattr(import_module(module), name).__module__).__doc__)
    return re.split(r"[.:;,]( |$)", statement, maxsplit=1)[0]


def _here(each: dict[str, Any]) -> str:
    found = [
        f"`{option}`" + (f" ({grade(option)})" if option.startswith(("defense/", "serve=")) else "")
        for option in each.get("options", [])
    ]
    return "<br>".join([*found, *(f"`{line}`" for line in each.get("lines", []))]) or "–"


def _reasons(absent: dict[str, str]) -> str:
    return "<br>".join(f"{name}: {reason}" for name, reason in absent.items())


def _paper(each: dict[str, Any]) -> str:
    return f"[{each['paper']}](https://arxiv.org/abs/{each['arxiv']})" if each["arxiv"] else each["paper"]


def field() -> dict[str, Any]:
    """Return the data of the page."""
    data: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "field.yaml").read_text("utf-8"))
    return data


def page() -> str:
    """Return the page."""
    environment = Environment(autoescape=False)
    environment.filters |= {"here": _here, "reasons": _reasons, "paper": _paper}
    return environment.from_string(TEMPLATE).render(field=field())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
