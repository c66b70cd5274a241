"""What CONTRIBUTING.md says about a new experiment is enough to add one."""

import dataclasses
import re
from pathlib import Path

import pytest

from laboratory import tasks
from laboratory.tasks.harness.definition import Run
from laboratory.tasks.harness.train import measure

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    name, text = re.search(r"`laboratory/tasks/(\w+)\.py`\.\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL).groups()
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.setattr(tasks, "names", lambda: [name])
    return tasks.load(name)


def test_the_makefile_runs_every_experiment():
    listed = re.search(r"^EXPERIMENTS \?= (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    assert sorted(listed.split()) == tasks.names()


def test_its_answers_are_right(experiment):
    examples = experiment.task.test()
    for bits, labels in zip(examples.input_ids.tolist()[:20], examples.labels.tolist(), strict=False):
        for place in range(1, len(bits)):
            assert labels[place] == 2 + sum(bits[:place]) % 2


@pytest.mark.parametrize("seed", [0, 1])
def test_it_runs(experiment, seed):
    task = dataclasses.replace(experiment.task, num_tests=8)
    short = dataclasses.replace(experiment, task=task, steps=2, batch_size=4)
    result = measure(Run(short, short.cells[1], 1e-3, seed))
    assert {score["group"] for score in result["scores"]} == set(range(1, 25))
