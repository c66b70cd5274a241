"""Prepare text for training: a tokenizer, and rows of its tokens to train on and to hold out.

    python examples/prepare.py --output runs/data
    python examples/prepare.py --output runs/data --dataset texts.jsonl --tokenizer Qwen/Qwen3-0.6B

takes the source of Python's standard library, or a dataset with a column `text`. Needs the extra `train`.
"""

import argparse
import sysconfig
from itertools import chain
from pathlib import Path

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LENGTH = 128  # tokens a row
NUM_HELD_OUT = 12  # texts
KINDS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def standard_library() -> Dataset:
    """The modules of the running Python, each a text, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
    paths = [path for path in sorted(root.rglob("*.py")) if not left_out & set(path.relative_to(root).parts[:-1])]
    return Dataset.from_dict({"text": [path.read_text(encoding="utf-8", errors="replace") for path in paths]})


def train_tokenizer(texts: Dataset) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1024 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, alphabet = "<|end|>", pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=[end], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts["text"], trainer, length=len(texts))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token=end)


def pack(batch: dict, tokenizer: PreTrainedTokenizerFast) -> dict:
    """Rows of exactly `LENGTH` tokens: the texts one after another, each ended by the end token."""
    tokens = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
    stream = list(chain.from_iterable([*text, tokenizer.eos_token_id] for text in tokens))
    rows = [stream[start : start + LENGTH] for start in range(0, len(stream) - LENGTH + 1, LENGTH)]
    return {"input_ids": rows, "labels": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for what `train.py` reads")
    parser.add_argument("--dataset", help=f"a hub id, or a file that ends in {', '.join(KINDS)}")
    parser.add_argument("--tokenizer", help="a hub id or a folder; by default, one is trained on the texts")
    args = parser.parse_args()
    if args.dataset is None:
        texts = standard_library()
    else:
        kind = KINDS.get(Path(args.dataset).suffix)
        files = {"path": kind, "data_files": args.dataset} if kind else {"path": args.dataset}
        texts = load_dataset(**files, split="train")
    if "text" not in texts.column_names or len(texts) <= NUM_HELD_OUT:
        got = f"{len(texts)} with the columns {texts.column_names}"
        parser.error(f"--dataset must have more than {NUM_HELD_OUT} rows with a column `text`, got {got}")
    splits = texts.train_test_split(test_size=NUM_HELD_OUT, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else train_tokenizer(splits["train"])
    rows = splits.map(pack, batched=True, fn_kwargs={"tokenizer": tokenizer}, remove_columns=texts.column_names)
    rows.save_to_disk(args.output / "rows")
    splits["test"].to_json(args.output / "held_out.jsonl")
    tokenizer.save_pretrained(args.output)
    print(f"Next: python examples/train.py --data {args.output} --output runs/plt")


if __name__ == "__main__":
    main()
