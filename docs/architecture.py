"""Draw the layers of the harness from its import contracts: ``python docs/architecture.py`` writes the picture.

A test compares the picture with what this script draws, so it cannot go stale.
"""

import ast
import configparser
import textwrap
from pathlib import Path

from jinja2 import Template

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
WIDTH, GAP, LINE, TOP = 1160, 10, 15, 26
TEMPLATE = Template(
    """\
<svg xmlns="http://www.w3.org/2000/svg" width="{{ width }}" height="{{ height }}" font-family="sans-serif">
<rect width="100%" height="100%" fill="white"/>
{%- for box in boxes %}
<rect x="{{ box.x }}" y="{{ box.y }}" width="{{ box.width }}" height="{{ box.height }}" rx="6"
 fill="{{ box.fill }}" stroke="#8a99ad"/>
<text x="{{ box.x + 10 }}" y="{{ box.y + 19 }}" font-size="14" font-weight="bold" fill="#1d2b3a">{{ box.name }}</text>
{%- for text in box.lines %}
<text x="{{ box.x + 10 }}" y="{{ box.y + 19 + 15 * loop.index }}" font-size="11" fill="#3c4a5a">{{ text | e }}</text>
{%- endfor %}
{%- endfor %}
</svg>
"""
)


def layers() -> list[list[str]]:
    """Return the packages of each layer, the highest first, as the contract names them."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    listed = contracts["importlinter:contract:floors"]["layers"].split("\n")
    return [line.replace("|", " ").split() for line in listed if line.strip()]


def purpose(package: str) -> str:
    """Return the first line of a package's docstring, or of the module's."""
    folder = ROOT / "harness" / package
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n", 1)[0]


def draw() -> str:
    """Return the picture as SVG: a row of boxes for each layer; imports point down."""
    boxes, y = [], GAP
    for number, packages in enumerate(layers()):
        width = (WIDTH - GAP * (len(packages) + 1)) // len(packages)
        texts = [textwrap.wrap(purpose(package), max(12, width // 6)) for package in packages]
        height = TOP + LINE * max(map(len, texts)) + 6
        fill = "#eef4fb" if number % 2 else "#dfeaf7"
        for place, (package, lines) in enumerate(zip(packages, texts, strict=True)):
            x = GAP + place * (width + GAP)
            boxes.append(
                {"x": x, "y": y, "width": width, "height": height, "fill": fill, "name": package, "lines": lines}
            )
        y += height + GAP
    return TEMPLATE.render(width=WIDTH, height=y, boxes=boxes)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
