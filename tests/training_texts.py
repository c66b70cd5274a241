"""A few texts to train on, a tokenizer for them, and the fields of a tiny model."""

import json
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from training_plt.data.tokenizer import train_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 4,
}
TEXTS = [
    f"def {name}(x):\n    return {body}\n"
    for name, body in [("add", "x + 1"), ("a", "x"), ("double", "x * 2 if x > 0 else -x"), ("f", ""), ("neg", "-x")]
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """An id for every byte, one for the end, and one for pads."""
    return train_tokenizer(Dataset.from_dict({"text": TEXTS}), vocab_size=257)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The same, with a template that writes the messages one after another."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return tokenizer


def as_flags(values: dict[str, object], *more: object) -> list[str]:
    """The command line of a quiet run on a CPU, from values by the names of their flags, and what follows them."""
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [*words, "--use_cpu", "--disable_tqdm", "true", *map(str, more)]


def write_texts(file: Path) -> None:
    """40 documents of 1 to 4 functions each."""
    documents = ["".join(TEXTS[: number % 4 + 1]).replace("x", "xyz"[number % 3]) for number in range(40)]
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
