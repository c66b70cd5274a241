# SPDX-License-Identifier: Apache-2.0
"""Chats to learn from, checked one by one: rows of `messages`, each with a `role` and a `content`."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

SHOWN = 80  # characters of a wrong row that a message quotes


def load_messages(name: str, split: str) -> Dataset:
    """The chats of a local JSONL file, or a split of a dataset on the hub.

    Raises:
        ValueError: a row has the wrong form, which the message names by its line or number; or there is none.
    """
    is_local = name.endswith(".jsonl") or Path(name).is_file()
    if is_local:
        if Path(name).suffix in (".txt", ".py"):
            raise ValueError(f"`--dataset` must be chats, got {name}; `pretrain --model` goes on with plain text.")
        check_lines(Path(name))
        return load_dataset("json", data_files=name, split="train")
    dataset = load_dataset(name, split=split)
    refuse_empty(name, len(dataset))
    for number, row in enumerate(dataset, start=1):
        check_chat(row, f"{name}, row {number}")
    return dataset


def check_lines(path: Path) -> None:
    """Check each line of a JSONL file, before the file is read into columns, which have no line numbers."""
    num_chats = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                check_chat(parse(line, f"{path}, line {number}"), f"{path}, line {number}")
                num_chats += 1
    refuse_empty(str(path), num_chats)


def parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise ValueError(f"{place}: must be JSON, got {line.strip()[:SHOWN]}") from None


def refuse_empty(name: str, num_chats: int) -> None:
    if num_chats == 0:
        raise ValueError(f"The dataset must have rows of `messages`, got none in {name}.")


def check_chat(row: Any, place: str) -> None:
    """Refuse a row without a chat in which the assistant says something."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(is_message(message) for message in messages):
        got = json.dumps(row, ensure_ascii=False, default=str)[:SHOWN]
        raise ValueError(
            f"{place}: `messages` must be a list of objects with the strings `role` and `content`, got {got}"
        )
    if not any(message["role"] == "assistant" for message in messages):
        roles = [message["role"] for message in messages]
        raise ValueError(f"{place}: `messages` must have one of the role 'assistant' to learn, got the roles {roles}.")


def is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    # an assistant that calls tools need not say anything
    return isinstance(message.get("content"), str) or bool(message.get("tool_calls"))
