"""The tables of the pages on results: every cell is that of the table that the results make."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("results", "heal")


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
            tables.append([])
        elif not set(line) <= set("|-: "):
            tables[-1].append(dict(zip(header, cells, strict=True)))
    return tables


def results_of(name: str) -> dict[tuple[str, str], str]:
    """Cell by row and column of all tables of a study."""
    found = {}
    for table in tables_of((ROOT / "results" / name / "table.md").read_text(encoding="utf-8")):
        for row in table:
            key = next(row[column] for column in ("cell", "training") if column in row)
            found |= {(key, column): value for column, value in row.items()}
    return found


def sections() -> list[tuple[str, str, list[dict[str, str]]]]:
    """Page, study and rows of each table that stands in a section with a link to a study's numbers."""
    found = []
    for page in PAGES:
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for section in re.split(r"^(?=## |\*\*\d\.)", text, flags=re.MULTILINE):
            studies = re.findall(r"\(\.\./results/(\w+)/table\.md\)", section)
            found += [(page, studies[0], table) for table in tables_of(section) if len(studies) == 1]
    return found


SECTIONS = sections()


def test_every_study_has_a_table_on_a_page():
    shown = {study for _, study, _ in SECTIONS}
    assert shown == {"capo", "healing", "hops", "language", "mano", "reach", "scales", "swaps", "window"}


def is_rounded(shown: str, full: str) -> bool:
    """Whether a number is another one, to as many digits as it shows; anything else must be equal."""
    if shown == full:
        return True
    try:
        return round(float(full), len(shown.partition(".")[2])) == float(shown)
    except ValueError:
        return False


@pytest.mark.parametrize("number", range(len(SECTIONS)))
def test_a_table_of_a_page_is_that_of_the_results(number):
    page, study, rows = SECTIONS[number]
    results = results_of(study)
    assert rows
    for row in rows:
        key, *values = row.items()
        assert key[0] in ("cell", "training")
        for column, shown in values:
            assert is_rounded(shown, results[key[1], column]), f"{page}: {key[1]}, {column}"


def test_the_summary_of_the_control_is_that_of_each_study():
    (table,) = [table for table in tables_of((ROOT / "docs/results.md").read_text()) if "task" in table[0]]
    for row in table:
        results = results_of(row["task"])
        subject = next(name for name, _ in results if name.startswith("plt-2"))  # which others are compared with
        for cell, name in (("plain", "plain"), ("smear", "smear"), ("plt-2", subject)):
            assert is_rounded(row[cell], results[name, "mean"]), row
        assert row["smear minus plain"] == results["smear", "minus plain"]
        assert row["plt-2 minus plain"] == results[subject, "minus plain"]
        assert is_rounded(row["smear, % of plt-2's gain"], results["smear", "% of plt-2"])
    assert [row["task"] for row in table] == ["language", "hops", "reach", "capo", "mano", "swaps"]
