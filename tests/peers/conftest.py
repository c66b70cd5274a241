# SPDX-License-Identifier: Apache-2.0
"""Tests of other packages: what fails on a PLT is listed by name, with its error and our reason, and nothing else may.

`expected.toml` has groups of tests; a name may hold a `*`. A listed test that passes or fails otherwise is an error,
and so is a name of no test.
"""

import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

EXPECTED = tomllib.loads((Path(__file__).parent / "expected.toml").read_text())
GROUP = pytest.StashKey[dict]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for file in {item.path.name for item in items}:
        ours = [item for item in items if item.path.name == file]
        for group in EXPECTED.get(file, []):
            for name in group["tests"]:
                found = [item for item in ours if matches(item.name, name)]
                for item in found:
                    item.stash[GROUP] = group
                if not found and not config.option.keyword:
                    raise pytest.UsageError(f"`expected.toml` names `{name}`, which is no test of {file}.")


def matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.replace("[", "("), pattern.replace("[", "("))  # brackets are part of names


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    group = item.stash.get(GROUP, None)
    if group is None or call.when != "call":
        return report
    if report.failed and group["error"] in str(call.excinfo.value):
        report.outcome, report.wasxfail = "skipped", group["reason"]
    elif not report.failed:
        report.longrepr = f"listed in `expected.toml`, but {report.outcome}: {group['reason']}"
        report.outcome = "failed"
    return report
