"""Folders with a publisher's tokenizer in them, and the texts to compare them by."""

import io
import json
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedConfig

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [  # other ones than the module checks by itself
    *(LIBRARY / "textwrap.py").read_text(encoding="utf-8").split("\n\n"),
    "  def f(x):\n\t\treturn   x**2 + 3.14 - 0xFF\r\n",
    " \n \n  a  b ",
    "çà et là; Ωμέγα; тест; 数字１２３; שלום; 👩🏽\u200d🚀 🏳️\u200d🌈; e\u0301; \u00a0; ▁",
    "<0x0A> <0xFF> 1234567890 00 1e10",
    " ",
    "x",
]
HOSTILE = "from pathlib import Path\nPath({!r}).touch()\nclass OwnTokenizer: pass\n"
OWN_CLASS = {
    "tokenizer_class": "OwnTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
}


def special(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | flags


ADDED = {  # as the config of a slow tokenizer lists them; 600 is the size of the vocabulary
    "0": special("<unk>", special=True),
    "1": special("<s>", special=True),
    "2": special("</s>", special=True),
    "600": special("<|im|>", special=True),
    "601": special("<tool>", special=False, normalized=True),
}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
EXACT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
SYMBOLS = {"user_defined_symbols": ["<|fim|>", "▁▁", "\t"], "allow_whitespace_only_pieces": True}
OVERLAPPING = {"user_defined_symbols": ["<|fim|>", "\t", "⟦⟧⟨", "⟩⟪", "⟦", "⟧", "⟨⟩⟪"]}
SENTENCEPIECE = {
    "bpe": EXACT | {"model_type": "bpe", "split_digits": True},
    "bpe symbols": EXACT | SYMBOLS | {"model_type": "bpe"},
    "bpe symbols, no space in front": EXACT | SYMBOLS | {"model_type": "bpe", "add_dummy_prefix": False},
    "bpe as sentencepiece trains it": {"model_type": "bpe"},
    "bpe control": EXACT | {"model_type": "bpe", "control_symbols": ["<|end|>"], "pad_id": 3},
    "unigram": EXACT | {"model_type": "unigram"},
    "unigram symbols": EXACT | OVERLAPPING | {"model_type": "unigram"},
    "unigram as sentencepiece trains it": {"model_type": "unigram"},
}


@pytest.fixture
def source(tmp_path):
    """A folder with the publisher's Python, which leaves a file behind when it runs."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenization_own.py", "configuration_own.py"):
        (folder / name).write_text(HOSTILE.format(str(folder / "ran")))  # wherever it is copied to first
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.C"}})
    )
    yield folder
    assert not (folder / "ran").exists()
    assert not list(tmp_path.glob("target/*.py"))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def write_files(folder, **files):
    """Files by name, `__` for the dot: JSON for dicts."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        content = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def load(folder):
    """As users do in a process where transformers does not know the model type."""
    return AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), trust_remote_code=False)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def byte_level():
    """The tokenizer.json of a trained BPE with GPT-2's splitting."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(LIBRARY.glob("*.py"))[:8]], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def train():
    """Train a sentencepiece model once; its bytes."""
    library = pytest.importorskip("sentencepiece", reason="needs the extra `convert`")
    pytest.importorskip("google.protobuf", reason="needs the extra `convert`")
    lines = [line for name in ("argparse", "ast", "bdb") for line in (LIBRARY / f"{name}.py").read_text().splitlines()]
    trained = {}

    def trained_model(name, **options):
        if name not in trained:
            data = io.BytesIO()
            library.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=data,
                num_threads=1,
                minloglevel=2,
                **{"vocab_size": 600} | SENTENCEPIECE.get(name, {}) | options,
            )
            trained[name] = data.getvalue()
        return trained[name]

    return trained_model


def library_of(data):
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=data)
