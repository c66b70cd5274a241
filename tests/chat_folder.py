# SPDX-License-Identifier: Apache-2.0
"""A saved PLT that people could chat with, had it learnt anything: weights, tokenizer, chat template."""

import sysconfig
from pathlib import Path

import pytest
from tiny import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """A trained BPE whose every token is text, so that a stream never waits for the rest of a character."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    text = (Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py").read_text(encoding="ascii")
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        padding_side="left",
        chat_template=TEMPLATE,
    )


def save_chat_folder(folder: Path) -> None:
    tokenizer = ascii_tokenizer()
    model = tiny_model(
        num_loops=3,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    save_chat_folder(folder)
    return folder
