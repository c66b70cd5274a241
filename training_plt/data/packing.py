# SPDX-License-Identifier: Apache-2.0
"""Documents packed into batch entries of one length, none of which sees another.

B batch, T tokens of an entry.
"""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

NO_LABEL = -100  # for the loss of transformers


def pack(
    texts: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str = "texts"
) -> Dataset | IterableDataset:
    """Documents of a column `text` as entries of at most `block_size` tokens, for `PackingCollator`.

    Each document is ended by the end token; one longer than a block becomes several documents.

    Returns:
        a dataset with the columns `input_ids` and `seq_lengths`, the tokens of each document.

    Raises:
        ValueError: the tokenizer has no end token, a document is no text, or all documents make less than a block.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer must have an end token (`eos_token`), which ends each document, got none.")
    tokens = texts.map(tokenize, batched=True, fn_kwargs={"tokenizer": tokenizer}, remove_columns=["text"])
    entries = pack_dataset(tokens, block_size, strategy="bfd_split")
    num_tokens = 0
    for entry in entries:
        num_tokens += len(entry["input_ids"])
        if num_tokens >= block_size:
            return entries
    raise ValueError(f"The {name} must hold at least one block of {block_size} tokens, got {num_tokens} in all.")


def tokenize(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    for text in batch["text"]:
        if not isinstance(text, str):
            raise ValueError(f"The column `text` must hold strings, got {text!r}.")
    tokens = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    return {"input_ids": [[*document, tokenizer.eos_token_id] for document in tokens]}


@dataclass
class PackingCollator:
    """A batch of packed entries, with positions that restart at every document.

    What fills an entry up is a document of its own without labels: the model then needs no mask.
    """

    block_size: int
    pad_token_id: int

    def __call__(self, entries: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Entries of `pack` -> `input_ids`, `position_ids` and `labels`, `[B, T]` each.

        A document's first token has no label, because nothing in the document predicts it; the loss shifts the others.
        """
        laid_out = [self.lay_out(entry["input_ids"], entry["seq_lengths"]) for entry in entries]
        names = ("input_ids", "position_ids", "labels")
        return {name: torch.stack(each) for name, each in zip(names, zip(*laid_out, strict=True), strict=True)}

    def lay_out(self, tokens: list[int], lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """At most T tokens, and how many of them each document has -> `[T]` each."""
        num_missing, columns = self.block_size - len(tokens), torch.arange(self.block_size)
        counts = torch.tensor([*lengths, num_missing])
        position_ids = columns - (counts.cumsum(0) - counts).repeat_interleave(counts)
        input_ids = pad(torch.tensor(tokens), (0, num_missing), value=self.pad_token_id)
        labels = input_ids.masked_fill((position_ids == 0) | (columns >= len(tokens)), NO_LABEL)
        return input_ids, position_ids, labels
