# SPDX-License-Identifier: Apache-2.0
"""The config and the tokenizer of a saved PLT, checked before anything large is loaded."""

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

import modeling_plt  # noqa: F401, makes the Auto classes know PLT
from configuration_plt import PLTConfig


def load_config(model: str, revision: str = "main") -> PLTConfig:
    """The config of a folder or hub id.

    Raises:
        ValueError: there is no model, or another one than this package's.
    """
    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The model must be a folder or hub id of a saved PLT, got {model}: {first_line(error)}"
        ) from None
    if not isinstance(config, PLTConfig):
        raise ValueError(
            f"The model must be a PLT (`plt convert` makes one of several others), got {model} with the `model_type` "
            f"{config.model_type!r}."
        )
    return config


def load_tokenizer(model: str, config: PLTConfig, revision: str = "main") -> PreTrainedTokenizerBase:
    """The tokenizer of the same folder or hub id.

    Raises:
        ValueError: there is none, or it has ids that the model has no embedding for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model must come with its tokenizer, got {model} without: {first_line(error)}") from None
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= highest < config.vocab_size:
        raise ValueError(
            f"The tokenizer must have ids from 0 to {config.vocab_size - 1}, as the model has embeddings, got "
            f"{'none' if highest < 0 else f'ids up to {highest}'}: {model}."
        )
    return tokenizer


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
