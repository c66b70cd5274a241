# SPDX-License-Identifier: Apache-2.0
"""The four badges of README.md, each with the words of a file of the repository.

python -m laboratory.badges    # in a checkout; writes docs/badges
"""

import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/badges"
HEIGHT, LETTER, MARGIN = 20, 7, 8  # pixels; LETTER is a wide guess at the mean width of a character


def values() -> dict[str, str]:
    """The text of each badge: the workflow that runs the tests, its Pythons, the license, and the paper."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    pythons = re.search(r"python: \[(.*)\]", workflow)
    paper = re.search(r"value: arXiv:([\d.]+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert pythons and paper
    return {
        "tests": ".github/workflows/test.yml",
        "python": pythons[1].replace('"', ""),
        "license": setup["metadata"]["license"],
        "arxiv": paper[1],
    }


def badge(label: str, value: str) -> str:
    """An SVG of a label on grey and its value on blue, which read on light and on dark pages."""
    left, right = (len(words) * LETTER + 2 * MARGIN for words in (label, value))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img" '
        f'aria-label="{label}: {value}"><rect width="{left}" height="{HEIGHT}" fill="#444c56"/>'
        f'<rect x="{left}" width="{right}" height="{HEIGHT}" fill="#1f6feb"/>'
        '<g fill="#ffffff" font-family="sans-serif" font-size="12" text-anchor="middle">'
        f'<text x="{left / 2}" y="14">{label}</text><text x="{left + right / 2}" y="14">{value}</text></g></svg>\n'
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for label, value in values().items():
        (FOLDER / f"{label}.svg").write_text(badge(label, value), encoding="utf-8")
