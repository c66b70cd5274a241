# SPDX-License-Identifier: Apache-2.0
"""Texts to train on: documents of files, of the hub, or of Python's own library, some of them held out."""

import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

KINDS = {".txt": "text", ".py": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
TENTH = 10
LEFT_OUT = {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3"}  # folders of Python's source


@dataclass
class TextArguments:
    """Which texts a command reads, and how it cuts them."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": f"Texts: a hub id, or a file or a folder of files that end in {', '.join(KINDS)}; a .txt or .py "
            "file is a document, the others have a column `text`; by default the source of Python's standard library."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Part of a hub dataset, as sample-10BT."})
    streaming: bool = field(default=False, metadata={"help": "Read the texts while training, without a copy on disk."})
    held_out: int = field(
        default=12, metadata={"help": "Documents kept for evaluation; of a single one, its last tenth."}
    )
    block_size: int = field(default=512, metadata={"help": "Tokens of a sequence, into which documents are packed."})

    def __post_init__(self) -> None:
        for name, least in (("held_out", 1), ("block_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least {least}, got {getattr(self, name)}.")


def load_texts(arguments: TextArguments) -> tuple[Dataset | IterableDataset, Dataset]:
    """The documents to train on and those held out, each in the column `text`.

    When streaming, the first documents are held out; otherwise they are drawn, the same ones every time. Of a single
    document its end is held out.

    Raises:
        ValueError: there is no such file, it cannot be read, has no column `text`, or has too few documents.
        OSError: there is no such dataset on the hub.
    """
    texts = open_documents(arguments.dataset, arguments.dataset_config, arguments.streaming)
    try:
        first = next(iter(texts), None)
    except ValueError as error:  # when streaming, files are read only now
        raise unreadable(arguments.dataset, error) from None
    if first is None:
        raise ValueError(f"`--dataset` must hold documents, got none in {arguments.dataset}.")
    if not isinstance(first.get("text"), str):
        kind = f"{type(first['text']).__name__} in it" if "text" in first else f"the columns {sorted(first)}"
        raise ValueError(f"`--dataset` must have a column `text` of strings, got {kind}.")
    if len(list(texts.take(2))) == 1:
        return split(first["text"], arguments.streaming)
    train, held_out = hold_out(texts.select_columns("text"), arguments.held_out)
    if next(iter(train), None) is None:
        raise ValueError(
            f"`--dataset` must have more documents than the {arguments.held_out} of `--held-out`, got {len(held_out)}."
        )
    return train, held_out


def hold_out(texts: Dataset | IterableDataset, count: int) -> tuple[Dataset | IterableDataset, Dataset]:
    """All documents but `count` of them, and these."""
    if isinstance(texts, IterableDataset):
        return texts.skip(count), Dataset.from_list(list(texts.take(count)))
    if len(texts) <= count:
        return texts.select([]), texts
    splits = texts.train_test_split(test_size=count, seed=0)
    return splits["train"], splits["test"]


def split(text: str, streaming: bool) -> tuple[Dataset | IterableDataset, Dataset]:
    """One text as two documents, the second of which is its last tenth."""
    start = len(text) - len(text) // TENTH
    train, held_out = (Dataset.from_dict({"text": [part]}) for part in (text[:start], text[start:]))
    return train.to_iterable_dataset() if streaming else train, held_out


def open_documents(source: str | None, config: str | None, streaming: bool) -> Dataset | IterableDataset:
    """All rows of a source; arguments as in `TextArguments`."""
    if source is None:
        texts = standard_library()
        return texts.to_iterable_dataset() if streaming else texts
    path = Path(source)
    if not path.exists() and path.suffix not in KINDS:
        return load_dataset(source, config, split="train", streaming=streaming)
    kind, files = files_of(path)
    options = {"sample_by": "document", "encoding_errors": "replace"} if kind == "text" else {}
    try:
        return load_dataset(kind, data_files=files, split="train", streaming=streaming, **options)
    except (DatasetsError, ValueError) as error:
        raise unreadable(source, error.__cause__ or error) from None


def unreadable(source: str | None, error: BaseException) -> ValueError:
    return ValueError(f"`--dataset` must hold documents that can be read, got {source}: {error}")


def files_of(path: Path) -> tuple[str, list[str]]:
    """The kind of a file, or of all files in a folder, and their paths in order."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in found if file.suffix in KINDS and file.is_file() and file.stat().st_size]
    kinds = sorted({KINDS[file.suffix] for file in files})
    if len(kinds) != 1:
        got = f"files of {' and '.join(kinds)}" if kinds else "none that holds anything"
        raise ValueError(f"`--dataset` must be files of one kind ({', '.join(KINDS)}), got {got} in {path}.")
    return kinds[0], [str(file) for file in files]


def standard_library() -> Dataset:
    """The modules of the running Python, each a document, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = python_files(root.rglob("*.py"), root)
    return Dataset.from_dict({"text": [path.read_text(encoding="utf-8", errors="replace") for path in paths]})


def python_files(files: Iterable[Path], root: Path) -> list[Path]:
    """Those below a folder that are in none that is left out, in order."""
    inside = [file for file in files if file.is_file() and file.is_relative_to(root)]
    return sorted(file for file in inside if not LEFT_OUT & set(file.relative_to(root).parts[:-1]))
