"""A converted tokenizer gives the ids of the original, loads without the publisher's Python, and never runs it."""

import io
import json
import sys
import sysconfig
from pathlib import Path

import pytest
from test_checkpoint import run_in_clean_process
from tiny import tiny_config
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedConfig, Qwen2Tokenizer

from conversion_plt.tokenizer import write_tokenizer

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
TEMPLATE = "{% for m in messages %}<|im|>{{ m.role }}\n{{ m['content'] }}{% endfor %}"
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


def settings(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


@pytest.fixture(scope="module")
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


def with_digits_apart(byte_level):
    """As many published ones do, under the name of a class that does not."""
    tokenizer = Tokenizer.from_str(byte_level)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
    )
    return tokenizer


def assert_follows(folder, original):
    loaded = load(folder)
    for text in [*TEXTS, "a<|im|> b<|endoftext|>c"]:
        assert loaded(text).input_ids == original.encode(text).ids, text
    return loaded


def test_a_source_without_a_tokenizer_says_so(source, target):
    (source / "tokenization_own.py").unlink()
    assert write_tokenizer(source, target) == ["Tokenizer: the source has none."]
    assert not content(target)


def test_a_tokenizer_that_transformers_loads_is_copied_byte_for_byte(source, target, byte_level):
    (source / "additional_chat_templates").mkdir()
    write_files(
        source,
        tokenizer__json=with_digits_apart(byte_level).to_str(),
        tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"},
        special_tokens_map__json={"eos_token": "<|endoftext|>"},
        added_tokens__json={"<|im|>": 1},
        vocab__json=json.loads(byte_level)["model"]["vocab"],
        merges__txt="#version: 0.2\n",
        tokenizer__model=b"\x0a\x00 not looked at",
        chat_template__jinja=TEMPLATE,
        README__md="# not a tokenizer",
    )
    write_files(source / "additional_chat_templates", tools__jinja="tools: " + TEMPLATE)
    sentences = write_tokenizer(source, target)
    assert sentences == ["Tokenizer: tokenizer.json copied; 500 tokens; round trip of the sample text exact."]
    left = {"README.md", "config.json", "configuration_own.py", "tokenization_own.py"}
    assert content(target) == {name: data for name, data in content(source).items() if name not in left}
    loaded = assert_follows(target, with_digits_apart(byte_level))
    assert loaded.chat_template == {"default": TEMPLATE, "tools": "tools: " + TEMPLATE}


def test_a_class_that_follows_tokenizer_json_keeps_its_name(source, target, byte_level):
    model = json.loads(byte_level)["model"]
    Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]).save_pretrained(source)
    assert len(write_tokenizer(source, target)) == 1
    assert content(target) == {
        name: data for name, data in content(source).items() if "token" in name and "py" not in name
    }
    assert type(load(target)) is Qwen2Tokenizer


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"])
def test_a_class_with_a_splitting_of_its_own_gives_way_to_tokenizer_json(source, target, byte_level, name):
    """GPT2Tokenizer joins digits again, LlamaTokenizer splits at spaces only."""
    write_files(
        source,
        tokenizer__json=with_digits_apart(byte_level).to_str(),
        tokenizer_config__json={"tokenizer_class": name, "model_max_length": 77, "chat_template": TEMPLATE},
    )
    _, sentence = write_tokenizer(source, target)
    assert "names TokenizersBackend" in sentence and name.removesuffix("Fast") in sentence
    loaded = assert_follows(target, with_digits_apart(byte_level))
    assert (loaded.model_max_length, loaded.chat_template, len(loaded)) == (77, TEMPLATE, 500)
    if name.startswith(
        "GPT2"
    ):  # what the class sets without being told; LlamaTokenizer's </s> is not in the vocabulary
        assert (loaded.eos_token, loaded.bos_token, loaded.padding_side) == ("<|endoftext|>", "<|endoftext|>", "right")
    else:
        assert (loaded.eos_token, loaded.padding_side) == (None, "left")


def test_a_class_that_differs_around_added_tokens_only_gives_way_too(source, target):
    """LlamaTokenizer puts a space in front of the text; this file puts one after every added token as well."""
    pieces = ["<unk>", "<s>", "</s>", "<|im|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=[("▁", "a")], extra_special_tokens=["<|im|>"])
    tokenizer.save_pretrained(source)
    original = tokenizer.backend_tokenizer
    original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    write_files(source, tokenizer__json=original.to_str())
    assert "LlamaTokenizer does not follow it" in write_tokenizer(source, target)[1]
    assert load(target)("<|im|>a").input_ids == original.encode("<|im|>a").ids == [3, vocab["▁a"]]


@pytest.mark.parametrize(
    "named",
    [
        OWN_CLASS,
        {"tokenizer_class": "OwnTokenizer"},
        {"auto_map": OWN_CLASS["auto_map"], "tokenizer_class": "GPT2Tokenizer"},
    ],
    ids=["auto_map", "unknown class", "auto_map with a known class"],
)
def test_the_publishers_class_gives_way_to_tokenizer_json(source, target, byte_level, named):
    rest = {"eos_token": "<|endoftext|>", "model_max_length": 77, "clean_up_tokenization_spaces": False}
    write_files(source, tokenizer__json=with_digits_apart(byte_level).to_str(), tokenizer_config__json=named | rest)
    _, sentence = write_tokenizer(source, target)
    assert "OwnTokenizer" in sentence and "was not run" in sentence
    assert settings(target) == rest | {"tokenizer_class": "TokenizersBackend"}
    assert_follows(target, with_digits_apart(byte_level))
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "written", [{}, {"tokenizer_config__json": {"eos_token": "<|endoftext|>"}}], ids=["no file", "no class"]
)
def test_a_tokenizer_json_of_no_class_gets_one(source, target, byte_level, written):
    write_files(source, tokenizer__json=byte_level, **written)
    assert "it named no class" in write_tokenizer(source, target)[1]
    assert settings(target)["tokenizer_class"] == "TokenizersBackend"
    assert_follows(target, Tokenizer.from_str(byte_level))


def test_a_class_for_another_kind_of_model_gives_way(source, target):
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    write_files(
        source, tokenizer__json=tokenizer.to_str(), tokenizer_config__json={"tokenizer_class": "Qwen2Tokenizer"}
    )
    assert "Qwen2Tokenizer does not follow it" in write_tokenizer(source, target)[1]
    assert load(target)("ab").input_ids == [1, 2]


def test_a_round_trip_that_is_not_exact_is_told(source, target, byte_level):
    tokenizer = Tokenizer.from_str(byte_level)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("def", "DEF")])
    write_files(
        source, tokenizer__json=tokenizer.to_str(), tokenizer_config__json={"tokenizer_class": "TokenizersBackend"}
    )
    (sentence,) = write_tokenizer(source, target)
    assert "round trip of the sample text not exact: 'DEF fib(n)" in sentence


def write_vocab_and_merges(byte_level, folder):
    model = json.loads(byte_level)["model"]
    write_files(folder, vocab__json=model["vocab"], merges__txt="\n".join(" ".join(pair) for pair in model["merges"]))


@pytest.mark.parametrize("kind", [Qwen2Tokenizer, GPT2Tokenizer])
def test_transformers_makes_what_its_own_class_reads_from_vocabulary_files(source, target, byte_level, kind):
    write_vocab_and_merges(byte_level, source)
    added = {"0": special("<|endoftext|>", special=True), "500": special("<|new|>", special=True)}
    write_files(
        source,
        tokenizer_config__json={
            "tokenizer_class": kind.__name__,
            "added_tokens_decoder": added,
            "additional_special_tokens": ["<|new|>"],
            "chat_template": TEMPLATE,
        },
    )
    (sentence,) = write_tokenizer(source, target)
    assert f"made from vocab.json and merges.txt by transformers' {kind.__name__}; 501 tokens" in sentence
    original, loaded = kind.from_pretrained(source), load(target)
    assert type(loaded) is kind and (target / "tokenizer.json").is_file()
    assert loaded.chat_template == TEMPLATE and "<|new|>" in loaded.all_special_tokens
    for text in [*TEXTS, "a<|new|> b<|endoftext|>c"]:
        assert loaded(text).input_ids == original(text).input_ids, text


def test_a_byte_level_bpe_of_the_publishers_class_is_rebuilt_with_gpt2s_splitting(source, target, byte_level):
    write_vocab_and_merges(byte_level, source)
    named = {"bos_token": "<|im|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "add_bos_token": True}
    added = {"0": special("<|endoftext|>", special=True), "1": special("<|im|>", special=True)}
    added["500"] = special("<|pad|>", special=True)
    write_files(
        source, tokenizer_config__json=OWN_CLASS | named | {"added_tokens_decoder": added, "chat_template": TEMPLATE}
    )
    sentence, assumed = write_tokenizer(source, target)
    assert "rebuilt from vocab.json and merges.txt; 501 tokens; round trip of the sample text exact" in sentence
    assert "`tokenization_own.OwnTokenizer` was not run" in assumed and "GPT-2's pattern" in assumed
    assert "auto_map" not in settings(target)
    loaded, original = load(target), Tokenizer.from_str(byte_level)
    for text in [*TEXTS, "a<|im|> b<|endoftext|>c"]:
        assert loaded(text).input_ids == [1, *original.encode(text).ids], text
    assert [loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, len(loaded)] == [1, 0, 500, 501]
    assert loaded.chat_template == TEMPLATE


def test_a_class_without_its_vocabulary_is_not_made_empty(source, target):
    write_files(source, tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer"}, vocab__json={"a": 0})
    (sentence,) = write_tokenizer(source, target)
    assert "Bring `GPT2Tokenizer`" in sentence and not content(target)


# ---- sentencepiece ----

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


@pytest.fixture(scope="module")
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


def edited(data, edit):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(data)
    edit(proto)
    return proto.SerializeToString()


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_a_rebuilt_sentencepiece_tokenizer_gives_the_ids_of_the_library(source, target, train, name):
    library = library_of(train(name))
    ends = {"add_bos_token": True, "add_eos_token": "bpe" in name}
    write_files(source, own__model=train(name), tokenizer_config__json=OWN_CLASS | ends | NAMED)
    sentence, assumed = write_tokenizer(source, target)
    assert "rebuilt from own.model, with the ids of the sentencepiece library; 600 tokens" in sentence
    assert "`tokenization_own.OwnTokenizer` was not run" in assumed
    assert ("with a space in front" in assumed) == ("no space" not in name)
    loaded = load(target)
    after = [2] if "bpe" in name else []
    alone = ["<|fim|>"] if "unigram" in name else []  # a BPE loses the space in front of nothing but a symbol
    for text in [*TEXTS, *alone, "a<|fim|>b  <|fim|> \t<|fim|>", "<|fim|>x", "    x\n\n", "⟦⟧⟨⟩⟪"]:
        ids = library.encode(text)
        assert loaded(text).input_ids == [1, *ids, *after], text
        if 0 not in ids:  # the library shows unknown characters as ⁇
            assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == library.decode(ids), text
    assert [loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id] == [1, 2, 0, 2]


def in_slices(library, text, *, space_once):
    """Ids as slow tokenizers make them: added tokens first, then sentencepiece on what stands between them."""
    ids = []
    for index, part in enumerate(text.replace("<|im|>", "\0<|im|>\0").replace("<tool>", "\0<tool>\0").split("\0")):
        if part in ("<|im|>", "<tool>"):
            ids.append(600 if part == "<|im|>" else 601)
        elif part and index and space_once:  # without the space, through a piece that is taken away again
            ids += library.encode("\n" + part)[len(library.encode("\n")) :]
        else:
            ids += library.encode(part)
    return ids


@pytest.mark.parametrize(
    ("named", "space_once"),
    [
        (OWN_CLASS, False),
        (OWN_CLASS | {"legacy": False}, False),
        ({"tokenizer_class": "LlamaTokenizer"}, False),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": True}, False),
        ({"tokenizer_class": "LlamaTokenizerFast", "legacy": False}, True),
    ],
    ids=["own", "own legacy=False", "llama", "llama legacy", "llama legacy=False"],
)
def test_text_after_an_added_token_begins_as_it_did(source, target, train, named, space_once):
    library = library_of(train("bpe"))
    write_files(
        source, tokenizer__model=train("bpe"), tokenizer_config__json=named | NAMED | {"added_tokens_decoder": ADDED}
    )
    sentences = write_tokenizer(source, target)
    assert "602 tokens" in sentences[0]
    assert sentences[-1] == "Assumed: no token goes in front, as tokenizer_config.json does not say `add_bos_token`."
    loaded = load(target)
    for text in [*TEXTS, "<|im|>user\nhi<tool>x<tool> y  <|im|>", "a <|im|><|im|> b", " <tool>"]:
        assert loaded(text).input_ids == in_slices(library, text, space_once=space_once), text
    assert loaded.decode([600, 5, 601], skip_special_tokens=True).endswith("<tool>")
    assert "<|im|>" not in loaded.decode([600, 5, 601], skip_special_tokens=True)


def test_llama_without_a_space_in_front(source, target, train):
    write_files(
        source,
        tokenizer__model=train("bpe"),
        tokenizer_config__json={"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "add_bos_token": True},
    )
    assert len(write_tokenizer(source, target)) == 1
    library = library_of(edited(train("bpe"), lambda proto: setattr(proto.normalizer_spec, "add_dummy_prefix", False)))
    loaded = load(target)
    for text in TEXTS:
        assert loaded(text).input_ids == [1, *library.encode(text)], text


def test_a_setting_that_the_publishers_class_may_not_follow_is_told(source, target, train):
    write_files(source, tokenizer__model=train("bpe"), tokenizer_config__json=OWN_CLASS | {"add_prefix_space": False})
    assert "although `add_prefix_space` is false" in write_tokenizer(source, target)[1]


def test_pieces_are_merged_by_score_and_not_by_id(source, target, train):
    def reverse(proto):
        normal = [index for index, piece in enumerate(proto.pieces) if piece.type == 1]
        pieces = [(proto.pieces[index].piece, proto.pieces[index].score) for index in normal]
        for index, (piece, score) in zip(normal, reversed(pieces), strict=True):
            proto.pieces[index].piece, proto.pieces[index].score = piece, score

    data = edited(train("bpe"), reverse)
    write_files(source, tokenizer__model=data)
    write_tokenizer(source, target)
    loaded, library = load(target), library_of(data)
    for text in TEXTS:
        assert loaded(text).input_ids == library.encode(text), text


def test_a_byte_that_is_written_out_stays_text(source, target, train):
    """Also if pieces are there to make the name of a byte from."""

    def lengthen(proto):
        normal = [piece for piece in proto.pieces if piece.type == 1 and len(piece.piece) > 1]
        for piece, name in zip(normal, ["<0", "<0x", "<0x0", "<0x0A"], strict=False):
            piece.piece = name

    data = edited(train("bpe"), lengthen)
    write_files(source, tokenizer__model=data)
    write_tokenizer(source, target)
    assert load(target)("<0x0A>").input_ids == library_of(data).encode("<0x0A>")
    assert load(target).convert_tokens_to_ids("<0x0A>") not in load(target)("<0x0A>").input_ids


def test_without_a_config_the_special_tokens_are_those_of_the_model(source, target, train):
    write_files(source, a__model=train("unigram"), tokenizer__model=train("bpe control"))
    assert "rebuilt from tokenizer.model" in write_tokenizer(source, target)[0]
    loaded = load(target)
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token, loaded.pad_token) == (
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
    )
    assert loaded("a<|end|>").input_ids[-1] == loaded.convert_tokens_to_ids("<|end|>") == 4
    assert loaded.decode(loaded("a<|end|>").input_ids, skip_special_tokens=True) == "a"


def test_a_placeholder_takes_the_name_that_the_config_gives_it(source, target, train):
    data = train("bpe control")
    added = ADDED | {"4": special("<|call|>", special=True)}
    write_files(source, tokenizer__model=data, tokenizer_config__json=OWN_CLASS | {"added_tokens_decoder": added})
    write_tokenizer(source, target)
    loaded = load(target)
    assert loaded("<|call|>").input_ids == [4] and len(loaded) == 602
    assert loaded("<|end|>").input_ids == library_of(data).encode("<|end|>")


def test_added_tokens_of_old_folders_travel(source, target, train):
    write_files(
        source,
        tokenizer__model=train("bpe"),
        tokenizer_config__json=OWN_CLASS,
        added_tokens__json={"<tool>": 601, "<|im|>": 600},
        special_tokens_map__json={
            "bos_token": special("<s>"),
            "eos_token": "<|im|>",
            "additional_special_tokens": ["<|im|>"],
        },
    )
    write_tokenizer(source, target)
    loaded, library = load(target), library_of(train("bpe"))
    for text in [*TEXTS, "<|im|>user\nhi<tool>x"]:
        assert loaded(text).input_ids == in_slices(library, text, space_once=False), text
    assert (loaded.eos_token_id, loaded.bos_token_id) == (600, 1)
    assert loaded.decode([600, 601], skip_special_tokens=True) == "<tool>"


def test_ids_that_cannot_be_kept_are_an_error(source, target, train):
    added = ADDED | {"700": special("<|far|>", special=True)}
    write_files(source, tokenizer__model=train("bpe"), tokenizer_config__json={"added_tokens_decoder": added})
    with pytest.raises(ValueError, match=r"`<\|far\|>` must have the id 700 .* got 602"):
        write_tokenizer(source, target)


def test_other_ids_than_the_librarys_are_an_error_that_shows_the_text(source, target, train):
    write_files(source, tokenizer__model=train("suffix", model_type="unigram", treat_whitespace_as_suffix=True))
    with pytest.raises(ValueError, match=r"must encode 'def fib\(n\)"):
        write_tokenizer(source, target)


@pytest.mark.parametrize("module", ["sentencepiece", "google.protobuf"])
def test_without_the_extra_the_error_names_it(source, target, train, monkeypatch, module):
    write_files(source, tokenizer__model=train("bpe"))
    for name in [name for name in sys.modules if name.split(".")[0] == "sentencepiece"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"parallel-loop-transformer\[convert\]"):
        write_tokenizer(source, target)


def test_with_a_tokenizer_json_the_extra_is_not_needed(source, target, byte_level, monkeypatch):
    write_files(source, tokenizer__json=byte_level, tokenizer__model=b"\x0a\x00 not looked at")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert "tokenizer.json copied" in write_tokenizer(source, target)[0]


@pytest.mark.parametrize("name", ["own.tiktoken", "tokenizer.model", "tiktoken.model"])
def test_what_cannot_be_rebuilt_is_named(source, target, name):
    (source / name).write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    write_files(source, tokenizer_config__json=OWN_CLASS | {"chat_template": TEMPLATE})
    (sentence,) = write_tokenizer(source, target)
    assert "Bring `tokenization_own.OwnTokenizer`" in sentence
    assert f"{name}" in sentence and "tokenization_own.py" in sentence
    assert content(target) == {"chat_template.jinja": TEMPLATE.encode()}


def test_a_sentencepiece_model_of_words_is_named(source, target, train):
    write_files(source, tokenizer__model=train("word", model_type="word"))
    (sentence,) = write_tokenizer(source, target)
    assert "tokenizer.model" in sentence and not content(target)


def test_the_publishers_python_alone_is_named(source, target):
    (sentence,) = write_tokenizer(source, target)
    assert "Bring the publisher's class" in sentence and "tokenization_own.py" in sentence


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["copied", "rebuilt"])
def test_a_chat_template_travels_from_wherever_it_is(source, target, byte_level, file, kind):
    config = dict(OWN_CLASS)
    if kind == "copied":
        write_files(source, tokenizer__json=byte_level)
    else:
        write_vocab_and_merges(byte_level, source)
    if file == "tokenizer_config.json":
        config["chat_template"] = TEMPLATE
    else:
        text = TEMPLATE if file.endswith("jinja") else json.dumps({"chat_template": TEMPLATE})
        (source / file).write_text(text)
    write_files(source, tokenizer_config__json=config)
    write_tokenizer(source, target)
    chat = [{"role": "user", "content": "hi"}]
    assert load(target).apply_chat_template(chat, tokenize=False) == "<|im|>user\nhi"


def test_several_chat_templates_travel(source, target, byte_level):
    templates = [{"name": "default", "template": TEMPLATE}, {"name": "tools", "template": "tools"}]
    write_files(source, tokenizer__json=byte_level, tokenizer_config__json=OWN_CLASS | {"chat_template": templates})
    write_tokenizer(source, target)
    assert load(target).chat_template == {"default": TEMPLATE, "tools": "tools"}


DAMAGED = {
    "tokenizer.json": [b"{", b"[]", b'{"model": {"type": "BPE"}}', b"\xff\xfe\x00"],
    "tokenizer_config.json": [b'{"a": ', b'"text"'],
    "special_tokens_map.json": [b"{]"],
    "added_tokens.json": [b"[1]"],
    "chat_template.json": [b"not json"],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, cases in DAMAGED.items() for data in cases])
def test_damaged_json_is_an_error_that_names_the_file(source, target, byte_level, name, data):
    write_files(source, tokenizer__json=byte_level, tokenizer_config__json={"tokenizer_class": "TokenizersBackend"})
    (source / name).write_bytes(data)
    with pytest.raises(ValueError, match=name if data[:1] != b"{" or len(data) < 9 else "tokenizer files"):
        write_tokenizer(source, target)


def test_a_damaged_sentencepiece_model_is_an_error_that_names_the_file(source, target, train):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"
    for data in (train("bpe")[:1000], pointer, b""):
        write_files(source, tokenizer__model=data)
        with pytest.raises(ValueError, match=r"tokenizer\.model must be a sentencepiece model"):
            write_tokenizer(source, target)


@pytest.mark.parametrize("named", [OWN_CLASS, {"tokenizer_class": "Qwen2Tokenizer"}], ids=["own", "known"])
def test_damaged_merges_are_an_error_that_names_the_folder(source, target, byte_level, named):
    write_vocab_and_merges(byte_level, source)
    write_files(source, merges__txt="#version: 0.2\nqqq zzz\n", tokenizer_config__json=named)
    with pytest.raises(ValueError, match=str(source)):
        write_tokenizer(source, target)


CLEAN_PROCESS = """
import json, sys
sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = sys.modules["conversion_plt"] = None
sys.modules["sentencepiece"] = None
from transformers import AutoTokenizer

for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = json.load(open(folder + "/texts.json"))
    json.dump([tokenizer(text).input_ids for text in texts], open(folder + "/ids.json", "w"))
"""


def test_a_converted_folder_loads_in_a_process_that_knows_neither_package_nor_sentencepiece(
    source, tmp_path, train, byte_level
):
    copied, rebuilt, library = tmp_path / "target", tmp_path / "rebuilt", library_of(train("bpe"))
    write_files(source, tokenizer__json=with_digits_apart(byte_level).to_str(), tokenizer_config__json=OWN_CLASS)
    write_tokenizer(source, copied)
    (source / "tokenizer.json").unlink()
    write_files(
        source, tokenizer__model=train("bpe"), tokenizer_config__json=OWN_CLASS | {"add_bos_token": True} | NAMED
    )
    write_tokenizer(source, rebuilt)
    for folder in (copied, rebuilt):
        tiny_config().save_pretrained(folder)
        write_files(folder, texts__json=json.dumps(TEXTS))
    run_in_clean_process(CLEAN_PROCESS, copied, rebuilt, cwd=tmp_path)
    original = with_digits_apart(byte_level)
    assert json.loads((copied / "ids.json").read_text()) == [original.encode(text).ids for text in TEXTS]
    assert json.loads((rebuilt / "ids.json").read_text()) == [[1, *library.encode(text)] for text in TEXTS]
    for folder in (copied, rebuilt):
        (folder / "configuration_plt.py").unlink()  # the config's own; `source` looks for the publisher's
