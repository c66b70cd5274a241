# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a run: one that exists, or a small one that is trained on the texts."""

from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..command.saved import first_line


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
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, alphabet = "<|end|>", pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts["text"], trainer, length=len(texts))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token="<|pad|>")
