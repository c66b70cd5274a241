# SPDX-License-Identifier: Apache-2.0
"""A small PLT of random weights with a tokenizer, of sizes that vLLM has kernels for."""

import sysconfig
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from training_plt.data.byte_level_bpe import END, train_byte_level_bpe

VOCABULARY = 512
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE of bytes, trained on a module of Python, with a chat template."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text(encoding="utf-8")
    tokenizer = train_byte_level_bpe(text.splitlines(), VOCABULARY)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=TEMPLATE)


def tiny_model(**fields: Any) -> PLTForCausalLM:
    """A model of 2 layers, in float32 and eval mode; without `fields` a PLT-2."""
    config = PLTConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 16,
            "initializer_range": 0.2,  # so that its answers are not one token again and again
            "bos_token_id": None,
            "eos_token_id": None,
        }
        | fields
    )
    torch.manual_seed(0)
    return PLTForCausalLM(config).eval()


def save_tiny(folder: Path) -> PLTForCausalLM:
    """A PLT-2, saved with its tokenizer."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
