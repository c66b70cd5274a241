"""What the pages on results show, and what the results say."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("results", "heal", "when")


def sections_of(page: str) -> list[str]:
    """The text of a page in parts, each from one heading or finding to the next."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.split(r"^(?=## |\*\*\d\.)", text, flags=re.MULTILINE)


def tables_of(text: str) -> list[list[dict[str, str]]]:
    """All tables of a Markdown text, each a list of rows by their column."""
    tables, header = [], None
    for line in [*text.splitlines(), ""]:
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if header is None:
            header = cells
            assert len(set(header)) == len(header), f"two columns of one name: {header}"
            tables.append([])
        elif not set(line) <= set("|-: "):
            tables[-1].append(dict(zip(header, cells, strict=True)))
    return tables


def results_of(study: str, file: str = "table.md") -> dict[tuple[str, str], str]:
    """Cell by row and column of all tables of a study."""
    found = {}
    for table in tables_of((ROOT / "results" / study / file).read_text(encoding="utf-8")):
        for row in table:
            key = next(row[column] for column in ("cell", "training") if column in row)
            found |= {(key, column): value for column, value in row.items()}
    return found


def is_rounded(shown: str, full: str) -> bool:
    """Whether a number is another one, to as many digits as it shows; anything else must be equal."""
    if shown == full:
        return True
    try:
        return round(float(full), len(shown.partition(".")[2])) == float(shown)
    except ValueError:
        return False
