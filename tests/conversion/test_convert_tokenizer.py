"""A converted tokenizer gives the ids of the original, loads without the publisher's Python, and never runs it."""

import json
import sys

import pytest
from clean_process import run_in_clean_process
from tiny import tiny_config
from tokenizer_folders import NAMED, OWN_CLASS, TEXTS, content, library_of, load, special, write_files
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

from conversion_plt.tokenizers.tokenizer import write_tokenizer

TEMPLATE = "{% for m in messages %}<|im|>{{ m.role }}\n{{ m['content'] }}{% endfor %}"


def settings(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


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
    assert "Add `GPT2Tokenizer`" in sentence and not content(target)


def test_with_a_tokenizer_json_the_extra_is_not_needed(source, target, byte_level, monkeypatch):
    write_files(source, tokenizer__json=byte_level, tokenizer__model=b"\x0a\x00 not looked at")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert "tokenizer.json copied" in write_tokenizer(source, target)[0]


@pytest.mark.parametrize("name", ["own.tiktoken", "tokenizer.model", "tiktoken.model"])
def test_what_cannot_be_rebuilt_is_named(source, target, name):
    (source / name).write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    write_files(source, tokenizer_config__json=OWN_CLASS | {"chat_template": TEMPLATE})
    (sentence,) = write_tokenizer(source, target)
    assert "Add `tokenization_own.OwnTokenizer`" in sentence
    assert f"{name}" in sentence and "tokenization_own.py" in sentence
    assert content(target) == {"chat_template.jinja": TEMPLATE.encode()}


def test_the_publishers_python_alone_is_named(source, target):
    (sentence,) = write_tokenizer(source, target)
    assert "Add the publisher's class" in sentence and "tokenization_own.py" in sentence


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


@pytest.mark.slow
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
