"""What is said about a release in several files is the same in all of them."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def test_the_changelog_and_the_citation_are_of_the_version():
    version = SETUP["metadata"]["version"]
    released = re.findall(r"^## \[([0-9.]+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert released[0] == citation["version"] == version


def test_the_citation_names_the_papers_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    papers = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert [paper["title"] for paper in papers] == re.findall(r"^ +title=\{(.*)\}", readme, re.MULTILINE)
    assert [paper["journal"] for paper in papers] == re.findall(r"^ +journal=\{(.*)\}", readme, re.MULTILINE)
    authors = [
        [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]] for paper in papers
    ]
    listed = re.findall(r"^ +author=\{(.*?)\}", readme, re.MULTILINE | re.DOTALL)
    assert authors == [re.split(r"\s+and\s+", names) for names in listed]


def test_the_workflow_runs_what_ci_runs():
    commands = re.findall(r"^make test.*", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    suites = [f"make test {arguments}".strip() for arguments in matrix["arguments"]]
    assert [*suites, jobs["serve"]["steps"][-1]["run"]] == commands
    oldest = SETUP["options"]["python_requires"].removeprefix(">=")
    classified = re.findall(r"Python :: (\d\.\d+)", SETUP["metadata"]["classifiers"])
    assert {oldest, *classified} <= set(matrix["python"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_their_major_version(workflow):
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    actions = [step["uses"] for job in jobs for step in job.get("steps", []) if "uses" in step]
    assert actions and all(re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action) for action in actions)
