# SPDX-License-Identifier: Apache-2.0
"""Which tools work with a PLT: `pytest tests/tools --write-tools docs/tools.md` writes what the tests proved."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from chat_folder import chat_folder  # noqa: F401, a fixture

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
        item.user_properties += [("proves", mark.kwargs) for mark in item.iter_markers("proves")]


@pytest.fixture
def refused(record_property: Callable) -> Callable[..., AbstractContextManager]:
    """`pytest.raises` that keeps the sentence for the table."""

    @contextmanager
    def raises(error: type[Exception], match: str) -> Iterator[None]:
        with pytest.raises(error, match=match) as caught:
            yield
        record_property("sentence", " ".join(str(caught.value).split()))

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
    tests: dict[tuple[str, str], list[pytest.TestReport]] = {}
    notes: dict[tuple[str, str], str] = {}
    for report in reports:
        sentences = [value for key, value in report.user_properties if key == "sentence"]
        for line in [value for key, value in report.user_properties if key == "proves"]:
            name = line["tool"], line["what"]
            tests.setdefault(name, []).append(report)
            notes |= dict.fromkeys(
                [name] if sentences or "note" in line else [], "".join(sentences) or line.get("note")
            )
    for (tool, what), ran in tests.items():
        if all(test.passed for test in ran):
            yield [f"{tool} {version(tool)}", what, *verdict(ran, notes.get((tool, what), "")), evidence(ran)]


def verdict(tests: list[pytest.TestReport], note: str) -> tuple[str, str]:
    if any(key == "sentence" for test in tests for key, _ in test.user_properties):
        return "refused", note.replace("|", r"\|")
    return "works, with a note" if note else "works", note


def evidence(tests: list[pytest.TestReport]) -> str:
    names = dict.fromkeys(test.nodeid.removeprefix("tests/tools/").partition("[")[0] for test in tests)
    return "<br>".join(f"`{name}`" for name in names)
