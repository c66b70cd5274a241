# SPDX-License-Identifier: Apache-2.0
"""Which tools work with a PLT: `make test-all` runs these tests and writes what they proved."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

HEAD = """# Tools around a PLT

Every line was proved by the tests at its end, in `tests/tools`; what is missing here has not been tried, or did not
work. Written by `make test-all`, which runs them: Python {}, torch {}, transformers {}, on a CPU.

| tool | what | verdict | note, or the sentence it is refused with | tests |
|---|---|---|---|---|
"""


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
        lines = proved([report for outcome in outcomes for report in terminalreporter.getreports(outcome)])
        head = HEAD.format(platform.python_version(), version("torch"), version("transformers"))
        path.write_text(head + "".join(f"| {' | '.join(cells)} |\n" for cells in lines))


def proved(reports: list[pytest.TestReport]) -> Iterator[list[str]]:
    """The cells of each line all of whose tests passed."""
    tests: dict[tuple[str, str], list[dict]] = {}
    for report in reports:
        test = {"report": report} | dict(report.user_properties)
        if "proves" in test:
            tests.setdefault((test["proves"]["tool"], test["proves"]["what"]), []).append(test)
    for (tool, what), line in tests.items():
        if all(test["report"].passed for test in line):
            sentences = [test["sentence"] for test in line if "sentence" in test]
            notes = [test["proves"]["note"] for test in line if "note" in test["proves"]]
            verdict = "refused" if sentences else "works, with a note" if notes else "works"
            names = [f"`{test['report'].nodeid.removeprefix('tests/tools/').partition('[')[0]}`" for test in line]
            yield [f"{tool} {version(tool)}", what, verdict, as_cell(sentences or notes), as_cell(names)]


def as_cell(texts: list[str]) -> str:
    return "<br>".join(dict.fromkeys(texts)).replace("|", r"\|")
