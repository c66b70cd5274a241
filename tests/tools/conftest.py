# SPDX-License-Identifier: Apache-2.0
"""Which tools work with a PLT: `make test-all` runs these tests and writes what they proved."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

HEAD = """# Tools around a PLT

One line per tool: features that were proved to work, those that work with a note, and those that are refused. The last
column names the files that prove them; there the mark `proves` of each test names its feature. Features that are
missing here have not been tried, or did not work. `make test-all` runs the tests and writes this page:
Python {}, torch {}, transformers {}, on a CPU.

| tool | works | works with a note | refused | tests |
|---|---|---|---|---|
"""
NOTES = """
## Notes and refusals

| tool | feature | note, or the sentence it is refused with |
|---|---|---|
"""
VERDICTS = ("works", "works with a note", "refused")


class Line(NamedTuple):
    """A feature of a tool, and the tests that proved it."""

    tool: str  # with its version
    feature: str
    verdict: str
    notes: list[str]  # of a refused feature, the sentences it is refused with
    file: str  # of its tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-tools", type=Path, metavar="FILE", help="write the table of what the tests proved")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "proves(tool, what, note): a line of docs/tools.md, there if all tests with the same one pass"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("proves")
        if mark is not None:
            item.user_properties.append(("proves", mark.kwargs))


@pytest.fixture
def refused(record_property: Callable) -> Callable[..., AbstractContextManager]:
    """`pytest.raises` that keeps the sentence for the table."""

    @contextmanager
    def raises(error: type[Exception], match: str) -> Iterator[None]:
        with pytest.raises(error, match=match) as caught:
            yield
        record_property("sentence", str(caught.value).strip().splitlines()[0])

    return raises


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path = config.getoption("write_tools", None)
    if path is not None:
        outcomes = ("passed", "failed", "error", "skipped", "xfailed")
        lines = list(proved([report for outcome in outcomes for report in terminalreporter.getreports(outcome)]))
        head = HEAD.format(platform.python_version(), version("torch"), version("transformers"))
        path.write_text(head + tables(lines))


def proved(reports: list[pytest.TestReport]) -> Iterator[Line]:
    """Each feature all of whose tests passed."""
    tests: dict[tuple[str, str], list[dict]] = {}
    for report in reports:
        test = {"report": report} | dict(report.user_properties)
        if "proves" in test:
            tests.setdefault((test["proves"]["tool"], test["proves"]["what"]), []).append(test)
    for (tool, feature), line in tests.items():
        if all(test["report"].passed for test in line):
            sentences = [test["sentence"] for test in line if "sentence" in test]
            notes = [test["proves"]["note"] for test in line if "note" in test["proves"]]
            verdict = "refused" if sentences else "works with a note" if notes else "works"
            file = line[0]["report"].nodeid.removeprefix("tests/tools/").partition("::")[0]
            yield Line(f"{tool} {version(tool)}", feature, verdict, sentences or notes, file)


def tables(lines: list[Line]) -> str:
    """A row per tool, then the notes and the sentences of refusals."""
    tools: dict[str, list[Line]] = {}
    for line in lines:
        tools.setdefault(line.tool, []).append(line)
    rows = [
        [
            tool,
            *(as_cell([each.feature for each in own if each.verdict == verdict]) for verdict in VERDICTS),
            as_cell([f"`tests/tools/{each.file}`" for each in own]),
        ]
        for tool, own in tools.items()
    ]
    notes = [[each.tool, each.feature, as_cell(each.notes)] for own in tools.values() for each in own if each.notes]
    return as_rows(rows) + NOTES + as_rows(notes)


def as_cell(texts: list[str]) -> str:
    return " · ".join(dict.fromkeys(texts)).replace("|", r"\|")


def as_rows(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
