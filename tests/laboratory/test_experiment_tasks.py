"""The tasks of the experiments, against solvers that share no code with them."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from laboratory.tasks import language
from laboratory.tasks.capo import Capo
from laboratory.tasks.harness import python_text
from laboratory.tasks.harness.examples import NO_ANSWER
from laboratory.tasks.hops import Hops
from laboratory.tasks.mano import Mano
from laboratory.tasks.reach import Reach
from laboratory.tasks.swaps import Swaps

ROOT = Path(__file__).parents[2]
TASKS = {
    "hops": Hops(num_tests=64),
    "reach": Reach(num_tests=64),
    "mano": Mano(num_tests=256),
    "swaps": Swaps(num_tests=64),
}
KEPT = {"train": "train/again.py", "test": "test/new.py"}  # what each of the packages below gives


def hop(letters: list[int], start: int, hops: int) -> int | None:
    """Where so many hops lead, by the definition: the greatest j <= i with v[j - 1] = v[i]."""
    for _ in range(hops):
        places = [j for j in range(1, start + 1) if letters[j - 1] == letters[start]]
        if not places:
            return None
        start = max(places)
    return start


@pytest.mark.parametrize("task", [Hops(num_tests=20, length=30), Reach(num_tests=20, alphabet=5, length=30)], ids=str)
def test_answers_of_hops_are_those_of_the_definition(task):
    examples = task.test()
    for ids, labels, groups in zip(*(part.tolist() for part in vars(examples).values()), strict=True):
        letters = ids[1:]
        hops = ids[0] - task.alphabet + 1
        for position, (label, group) in enumerate(
            zip(labels[2:], groups[2:], strict=True)
        ):  # of the next label's place
            place = hop(letters, position, hops)
            assert label == (NO_ANSWER if place is None else letters[place])
            if place is not None and isinstance(task, Reach):
                assert group <= position - place < 2 * group
            if place is not None and isinstance(task, Hops):
                assert group == hops
        assert labels[:2] == [NO_ANSWER] * 2
        assert all(a != b for a, b in zip(letters, letters[1:], strict=False))


def test_every_number_of_hops_and_every_octave_is_asked():
    test = Hops().test()
    assert set(test.groups[test.labels != NO_ANSWER].tolist()) == {1, 2, 3, 4}
    test = Reach().test()
    assert set(test.groups[test.labels != NO_ANSWER].tolist()) == {1, 2, 4, 8, 16}


def infix(words: list[str]) -> str:
    """A prefix expression with its operators between their sides."""
    stack = []  # from right to left, as prefix notation is read without a tree
    for word in reversed(words):
        stack.append(f"({stack.pop()} {word} {stack.pop()})" if word in "+-*" else word)
    (whole,) = stack
    return whole


def is_expression(words: list[str]) -> bool:
    """Whether one more operand than operators comes up at the end, and not earlier."""
    wanted = [1]
    for word in words:
        wanted.append(wanted[-1] + (1 if word in "+-*" else -1))
    return wanted[-1] == 0 and 0 not in wanted[:-1]


def test_answers_of_mano_are_the_values_of_the_longest_parts_that_end_there():
    task = Mano(num_tests=300, modulus=11, max_operations=5)
    names = [*map(str, range(11)), "+", "-", "*", "<bos>"]
    assert len(names) == task.vocab_size
    for examples in (task.test(), task.train(300, seed=1)):
        for ids, labels, groups in zip(*(part.tolist() for part in vars(examples).values()), strict=True):
            words = [names[token] for token in ids]
            assert words[0] == "<bos>"
            length = next(end for end in range(2, len(words)) if is_expression(words[1:end])) - 1
            for end in range(1, length + 1):
                parts = [words[start : end + 1] for start in range(1, end) if is_expression(words[start : end + 1])]
                if parts:
                    longest = infix(max(parts, key=len))
                    assert labels[end + 1] == eval(longest) % 11
                    assert groups[end + 1] == sum(longest.count(sign) for sign in "+-*")
                else:
                    assert labels[end + 1] == NO_ANSWER
            assert labels[length + 1] != NO_ANSWER and set(labels[length + 2 :]) <= {NO_ANSWER}
            assert set(ids[length + 1 :]) == {0}


def test_the_test_of_mano_has_two_operations_or_more():
    most = TASKS["mano"].test().groups.max(dim=1).values
    assert most.min() == 2 and most.max() == TASKS["mano"].max_operations
    assert TASKS["mano"].train(500, seed=1).groups.max(dim=1).values.min() == 1


@pytest.mark.parametrize("name", TASKS)
def test_no_sequence_of_the_test_is_trained_on(name):
    task = TASKS[name]
    test = {tuple(row) for row in task.test().input_ids.tolist()}
    train = [tuple(row) for row in task.train(2000, seed=1).input_ids.tolist()]
    assert len(train) > 1900 and not test & set(train)


def test_what_is_in_the_test_is_taken_out_of_the_training():
    task = Mano(num_tests=2000, modulus=2, max_operations=2)  # few expressions, so that most are in the test
    drawn = task.generate(1000, torch.Generator().manual_seed(1))
    test = {tuple(row) for row in task.test().input_ids.tolist()}
    train = [tuple(row) for row in task.train(1000, seed=1).input_ids.tolist()]
    assert train == [row for row in map(tuple, drawn.input_ids.tolist()) if row not in test]
    assert 0 < len(train) < 1000


@pytest.mark.parametrize("name", TASKS)
def test_seeds_draw_other_training_sequences_and_the_same_test(name):
    task = TASKS[name]
    one, again, other = (task.train(50, seed).input_ids for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one[:40], other[:40])
    assert torch.equal(task.test().input_ids, task.test().input_ids)


def test_capo_has_nobody_left_to_choose_a_learning_rate_on():
    with pytest.raises(NotImplementedError, match="none are left"):
        Capo().validation()


def test_people_of_capo_have_a_name_each_and_are_all_trained_on():
    task = Capo(num_people=50, num_names=6)
    test, train = task.test(), task.train(120, seed=1)
    names = {tuple(row[:3]) for row in test.input_ids.tolist()}
    assert len(names) == 50
    people = {tuple(row) for row in test.input_ids.tolist()}
    assert {tuple(row) for row in train.input_ids.tolist()} == people and len(train) == 120
    assert (test.labels[:, :3] == NO_ANSWER).all()
    assert torch.equal(test.labels[:, 3:], test.input_ids[:, 3:])
    assert test.groups[0].tolist()[3:] == [0, 1, 2, 3]
    assert test.input_ids[:, 3:].min() >= 6 and test.input_ids.max() < task.vocab_size


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installed packages: one to train on, one held out that has a copy and a near copy of the first one's file."""
    lines = [f"value_{number} = {number}" for number in range(40)]
    texts = {
        "train/own.py": "\n".join(lines),
        "train/again.py": "\n".join(lines),
        "test/copy.py": "\n".join(lines),
        "test/near.py": "\n".join([*lines[5:], "one = 1", "two = 2"]),
        "test/new.py": "\n".join(f"other_{number} = {number}" for number in range(40)),
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(python_text, "files_of", lambda package: sorted((tmp_path / package.name).iterdir()))

    hashes = {name: hashlib.sha256(texts[file].encode()).hexdigest() for name, file in KEPT.items()}

    def pin(**sha256: str) -> None:
        """Pin what the packages give, or these hashes."""
        pinned = [
            {"split": name, "name": name, "version": "1.0", "sha256": digest}
            for name, digest in (hashes | sha256).items()
        ]
        monkeypatch.setattr(python_text, "pinned", lambda: {"packages": pinned, "bytes": {}, "sha256": {}})
        python_text.read_documents.cache_clear()
        language.tokens_of.cache_clear()

    texts["pin"] = pin
    pin()
    yield texts
    python_text.read_documents.cache_clear()
    language.tokens_of.cache_clear()


def test_copies_and_near_copies_are_left_out(packages):
    documents = python_text.read_documents()
    assert [document.decode() for document in documents["train"]] == [packages["train/again.py"]]
    assert [document.decode() for document in documents["test"]] == [packages["test/new.py"]]


def test_a_text_that_is_not_the_pinned_one_is_refused_by_the_name_of_its_package(packages):
    packages["pin"](test="0" * 64)
    with pytest.raises(ValueError, match="files of test 1.0 must be those of the pinned text.*000000000000, got"):
        python_text.read_documents()


def test_releases_that_are_missing_are_named_as_pip_takes_them(packages, monkeypatch):
    monkeypatch.setattr(python_text, "files_of", lambda package: None)
    python_text.read_documents.cache_clear()
    with pytest.raises(ValueError, match=r"pip install --no-deps --target runs/text train==1.0 test==1.0`"):
        python_text.read_documents()


def test_a_release_is_found_by_its_version_where_it_was_fetched_or_is_installed(tmp_path, monkeypatch):
    fetched = tmp_path / "one-1.5.dist-info"
    fetched.mkdir()
    (fetched / "METADATA").write_text("Name: one\nVersion: 1.5+cpu\n")
    (fetched / "RECORD").write_text("one/a.py,,\none/tests/b.py,,\n")
    for file in ("one/a.py", "one/tests/b.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("1")
    monkeypatch.setattr(python_text, "folders", lambda: [str(tmp_path)])
    package = python_text.Package("train", "one", "1.5", "")
    assert python_text.files_of(package) == [tmp_path / "one/a.py"]
    assert python_text.files_of(dataclasses.replace(package, version="1.6")) is None
    assert python_text.files_of(dataclasses.replace(package, name="two")) is None
    installed = python_text.Package("train", "torch", torch.__version__, "")
    monkeypatch.undo()
    assert python_text.files_of(installed)


def test_another_python_is_refused_by_its_version():
    with pytest.raises(ValueError, match=r"needs the library of Python 3\.1\.4, this is Python 3\."):
        python_text.files_of(python_text.Package("train", "python", "3.1.4", ""))


def test_the_pinned_text_is_that_of_every_published_run():
    files = [file for name in ("language", "window") for file in (ROOT / "results" / name).glob("*.json")]
    tasks = [json.loads(file.read_text())["task"] for file in files]
    assert len(tasks) > 60 and all(task == language.Language().describe() for task in tasks)


def test_language_is_asked_byte_by_byte(packages):
    task = language.Language(length=20, num_tests=3)
    text = packages["test/new.py"].encode()
    test = task.test()
    assert test.input_ids[0].tolist() == [language.START, *text[:19]]
    assert len(test) == 3 and torch.equal(test.labels, test.input_ids)
    trained = packages["train/again.py"].encode()
    for row in task.train(50, seed=1).input_ids.tolist():
        assert bytes(row[1:]) in trained and (row[0] == language.START or bytes(row) in trained)


def test_a_package_gives_no_more_than_its_share():
    assert list(python_text.capped([b"123", b"456", b"789"], 5)) == [b"123", b"45"]


def test_answers_of_swaps_are_where_the_first_object_is():
    task = Swaps(num_tests=50, length=9)
    names = [*task.pairs, *range(task.num_boxes)]
    assert len(names) == task.vocab_size == 15
    for examples in (task.test(), task.validation(), task.train(50, seed=1)):
        for ids, labels, groups in zip(*(part.tolist() for part in vars(examples).values()), strict=True):
            boxes = list(range(task.num_boxes))  # what is in each
            assert labels[0] == NO_ANSWER
            for step, (token, label, group) in enumerate(zip(ids, labels[1:], groups[1:], strict=False)):
                here, there = names[token]
                boxes[here], boxes[there] = boxes[there], boxes[here]
                assert names[label] == boxes.index(0) and group == {0: 4, 1: 8, 2: 12}[step // 4]


def test_rates_are_chosen_on_sequences_that_no_table_shows():
    task = Swaps(num_tests=200, length=3)  # of which there are few
    test = {tuple(row) for row in task.test().input_ids.tolist()}
    validation = {tuple(row) for row in task.validation().input_ids.tolist()}
    assert validation and not test & validation
