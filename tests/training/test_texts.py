"""What the training commands read, and what they refuse."""

import json

import datasets
import pytest
from datasets import Dataset, IterableDataset

from training_plt.data.texts import TextArguments, load_texts, standard_library

DOCUMENTS = [f"number {number}\n\n  and its square {number**2}\n" for number in range(6)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(folder, kind):
    """The documents as files of a kind; the path to read them by."""
    folder.mkdir()
    if kind in ("txt", "py"):
        for number, text in enumerate(DOCUMENTS):
            (folder / f"{number}.{kind}").write_text(text)
        return folder
    path = folder / f"texts.{kind}"
    rows = Dataset.from_dict({"text": DOCUMENTS, "id": list(range(len(DOCUMENTS)))})
    writers = {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}
    if kind == "json":
        path.write_text(json.dumps(rows.to_list()))
    else:
        writers[kind](path)
    return path


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("kind", ["txt", "py", "csv", "json", "jsonl", "parquet"])
def test_every_document_is_trained_on_or_held_out(tmp_path, kind, streaming):
    source = write(tmp_path / "texts", kind)
    train, held_out = load_texts(TextArguments(str(source), streaming=streaming, held_out=2))
    assert isinstance(train, IterableDataset) == streaming
    assert len(held_out) == 2
    assert sorted([row["text"] for row in train] + list(held_out["text"])) == DOCUMENTS
    again = load_texts(TextArguments(str(source), streaming=streaming, held_out=2))[1]
    assert list(again["text"]) == list(held_out["text"])


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_of_a_single_document_the_last_tenth_is_held_out(tmp_path, kind, streaming):
    text = "".join(f"line {number}\n" for number in range(1000))
    path = tmp_path / f"input.{kind}"
    path.write_text(text if kind == "txt" else json.dumps({"text": text}) + "\n")
    train, held_out = load_texts(TextArguments(str(path), streaming=streaming))
    parts = [row["text"] for row in train] + list(held_out["text"])
    assert "".join(parts) == text and [len(part) for part in parts] == [len(text) - len(text) // 10, len(text) // 10]
    assert isinstance(train, IterableDataset) == streaming


def test_the_default_is_the_standard_library():
    train, held_out = load_texts(TextArguments())
    assert len(held_out) == 12
    texts = {*train["text"], *held_out["text"]}
    assert texts == set(standard_library()["text"])
    assert any("class TextWrapper" in text for text in texts)


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.jsonl": '{"content": "x"}\n'}, r"must have a column `text` of strings, got the columns \['content'\]"),
        ({"a.jsonl": '{"text": 1}\n'}, "must have a column `text` of strings, got int in it"),
        ({"a.jsonl": ""}, "got none that holds anything"),
        ({"a.csv": "text\n"}, "must hold documents"),
        ({"a.jsonl": "{"}, "must hold documents that can be read, got .*: JSON parse error"),
        ({"a.txt": "x", "b.csv": "text\nx\n"}, "must be files of one kind .* got files of csv and text"),
        ({"a.bin": "x"}, "got none that holds anything"),
        ({"a.txt": "x", "b.txt": "y"}, "more documents than the 2 of `--held-out`, got 2"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_what_holds_no_texts_is_refused(tmp_path, files, message, streaming):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_texts(TextArguments(str(tmp_path), streaming=streaming, held_out=2))


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(ValueError, match="none that holds anything in .*absent.jsonl"):
        load_texts(TextArguments(str(tmp_path / "absent.jsonl")))
    with pytest.raises(OSError):
        load_texts(TextArguments("nobody/nothing"))


@pytest.mark.parametrize("name, value", [("held_out", 0), ("block_size", 1)])
def test_numbers_that_are_too_small_are_refused(name, value):
    flag = name.replace("_", "-")
    with pytest.raises(ValueError, match=f"`--{flag}` must be at least {value + 1}, got {value}"):
        TextArguments(**{name: value})
