"""The tables of the pages on results: every cell is that of the table that the results make."""

import re

import pytest
from result_pages import PAGES, ROOT, is_rounded, results_of, sections_of, tables_of


def tables() -> list[tuple[str, str, list[dict[str, str]]]]:
    """Page, study and rows of each table that stands in a section with a link to a study's numbers."""
    found = []
    for page in PAGES:
        for section in sections_of(page):
            studies = re.findall(r"\(\.\./results/(\w+)/table\.md\)", section)
            found += [(page, studies[0], table) for table in tables_of(section) if len(studies) == 1]
    return found


TABLES = tables()


def test_every_study_has_a_table_on_a_page():
    shown = {study for _, study, _ in TABLES}
    assert shown == {
        "capo",
        "core_hops",
        "cores",
        "experts",
        "healing",
        "hops",
        "language",
        "mano",
        "reach",
        "scales",
        "swaps",
        "window",
    }


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_a_table_of_a_page_is_that_of_the_results(number):
    page, study, rows = TABLES[number]
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
