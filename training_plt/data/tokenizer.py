# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a run: one that exists, or a small one that is trained on the texts."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from conversion_plt.error_text import first_line

from .byte_level_bpe import END, train_byte_level_bpe


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of a folder or of the hub.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        place = name if Path(name).is_dir() else f"{name}, which is no folder, and of the hub"
        raise ValueError(
            f"The tokenizer must be a hub id or a folder with one, got {place}: {first_line(error)}"
        ) from None


def train_tokenizer(texts: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, the same one every time, and one more token for pads."""
    tokenizer = train_byte_level_bpe(texts["text"], vocab_size)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token="<|pad|>")
