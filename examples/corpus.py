"""Text and tokenizer of the examples: the Python standard library's own source, unless something else is named."""

import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

NUM_HELD_OUT = 12  # texts that are never trained on
END = "<|end|>"


def standard_library() -> Iterator[dict]:
    """The modules of the running Python, each a text, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(folders):
            yield {"text": path.read_text(encoding="utf-8", errors="replace")}


def load_texts(name: str | None) -> tuple[Dataset, Dataset]:
    """Training texts and 12 held-out ones, of a local .txt, .json, .jsonl, .csv or .parquet file or of a hub id.

    Raises:
        ValueError: the dataset has no column `text`, or too few texts to hold any out.
    """
    if name is None:
        texts = Dataset.from_list(list(standard_library()))
    elif Path(name).is_file():
        suffix = Path(name).suffix.lstrip(".")
        kind = {"txt": "text", "jsonl": "json"}.get(suffix, suffix)
        texts = load_dataset(kind, data_files=name, split="train")
    else:
        texts = load_dataset(name, split="train")
    if "text" not in texts.column_names:
        raise ValueError(f"`--dataset` must have a column `text`, got the columns {texts.column_names}.")
    if len(texts) <= NUM_HELD_OUT:
        raise ValueError(f"`--dataset` must have more than {NUM_HELD_OUT} texts, got {len(texts)}.")
    texts = texts.shuffle(seed=0)
    return texts.select(range(NUM_HELD_OUT, len(texts))), texts.select(range(NUM_HELD_OUT))


def load_tokenizer(name: str | None, texts: Dataset, vocab_size: int = 1024) -> PreTrainedTokenizerBase:
    """A tokenizer from a local folder or a hub id, or a byte-level BPE trained on `texts`."""
    if name is not None:
        return AutoTokenizer.from_pretrained(name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts["text"], trainer, length=len(texts))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)


def pack(texts: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, length: int):
    """Rows of exactly `length` tokens with labels: the texts one after another, each ended by the end token."""

    def rows(batch: dict) -> dict:
        tokens = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        stream = list(chain.from_iterable([*text, tokenizer.eos_token_id] for text in tokens))
        cut = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
        return {"input_ids": cut, "labels": cut}

    return texts.map(rows, batched=True, batch_size=16, remove_columns=texts.column_names)
