# SPDX-License-Identifier: Apache-2.0
"""A saved PLT: its config and its tokenizer, checked before anything large is loaded, and its weights."""

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from configuration_plt import PLTConfig
from conversion_plt.error_text import first_line
from modeling_plt import PLTForCausalLM


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


def load_tokenizer_of(model: str, vocab_size: int, revision: str = "main") -> PreTrainedTokenizerBase:
    """The tokenizer of the same folder or hub id.

    Raises:
        ValueError: there is none, or it has ids that the model has no embedding for.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model must come with its tokenizer, got {model} without: {first_line(error)}") from None
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= highest < vocab_size:
        raise ValueError(
            f"The tokenizer must have ids from 0 to {vocab_size - 1}, as the model has embeddings, got "
            f"{'none' if highest < 0 else f'ids up to {highest}'}: {model}."
        )
    return tokenizer


def load_to_train(model: str, config: PLTConfig) -> PLTForCausalLM:
    """The weights, in float32 whatever they are saved in: half precision would lose small steps.

    They are then trained for the loops that run; what one loop does not read is kept.
    """
    if config.num_loops > 1:
        config.trained_loops = None
    return PLTForCausalLM.from_pretrained(model, config=config, dtype=torch.float32)
