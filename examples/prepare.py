"""Prepare text for training: a tokenizer, and rows of its tokens to train on and to hold out.

    python examples/prepare.py --output runs/data
    python examples/prepare.py --output runs/data --dataset texts.jsonl --tokenizer Qwen/Qwen3-0.6B

takes the source of Python's standard library, or a dataset with a column `text`. Needs the extra `train`.
"""

import argparse
from itertools import chain
from pathlib import Path

from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from training_plt.data.texts import TextArguments, load_texts
from training_plt.data.tokenizer import load_tokenizer, train_tokenizer

LENGTH = 128  # tokens a row
NUM_HELD_OUT = 12  # texts


def pack(batch: dict, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Rows of exactly `LENGTH` tokens: the texts one after another, each ended by the end token."""
    tokens = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
    stream = list(chain.from_iterable([*text, tokenizer.eos_token_id] for text in tokens))
    rows = [stream[start : start + LENGTH] for start in range(0, len(stream) - LENGTH + 1, LENGTH)]
    return {"input_ids": rows, "labels": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for what `train.py` reads")
    parser.add_argument("--dataset", help="a hub id, a folder, or a file such as texts.jsonl")
    parser.add_argument("--tokenizer", help="a hub id or a folder; by default, one is trained on the texts")
    args = parser.parse_args()
    try:
        train, held_out = load_texts(TextArguments(args.dataset, held_out=NUM_HELD_OUT))
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else train_tokenizer(train, vocab_size=1024)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    splits = DatasetDict(train=train, test=held_out)
    rows = splits.map(pack, batched=True, fn_kwargs={"tokenizer": tokenizer}, remove_columns=["text"])
    rows.save_to_disk(args.output / "rows")
    held_out.to_json(args.output / "held_out.jsonl")
    tokenizer.save_pretrained(args.output)
    print(f"Next: python examples/train.py --data {args.output} --output runs/plt")


if __name__ == "__main__":
    main()
