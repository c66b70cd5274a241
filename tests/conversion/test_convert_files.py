"""The other files of a source are checked before weights are written; what is wrong is said in one sentence."""

import json
import os
import random
import shutil

import pytest
import torch
from converting import DATA, assert_refused, copy_source, plt_convert
from safetensors.torch import load_file, save_file
from tokenizer_folders import write_files

import conversion_plt.convert
from conversion_plt.error_text import bytes_of, named, one_line, shown, some
from conversion_plt.reading.pickle_weights import read_pickle
from conversion_plt.tokenizers.tokenizer import write_tokenizer
from conversion_plt.tokenizers.vocabulary import check_vocabulary
from modeling_plt import PLTForCausalLM

NESTED = "[" * 100_000
SPARSE = {"a": 1_000_000_000}


@pytest.fixture
def ouro(tmp_path):
    return copy_source("ouro", tmp_path / "ouro")


@pytest.fixture
def unwritten(monkeypatch):
    """No weights may be written."""
    monkeypatch.setattr(conversion_plt.convert, "write_folder", None)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "3",
        "{",
        '{"max_new_tokens": ',
        NESTED,
        '{"max_new_tokens": -5}',
        '{"max_new_tokens": "many"}',
        '{"early_stopping": []}',
        '{"cache_implementation": "nope"}',
        '{"watermarking_config": {"nope": 1}}',
        '{"watermarking_config": 3}',
        '{"num_return_sequences": 3}',
        '{"eos_token_id": "</s>"}',
        '{"eos_token_id": [2, null]}',
        '{"eos_token_id": [1000000000000000000000000000000]}',
        '{"pad_token_id": true}',
        '{"suppress_tokens": 5, "forced_bos_token_id": 1}',
        '{"streamer": 1}',
        '{"self": 1}',
        '{"config_dict": 1, "validate": 2}',
    ],
    ids=lambda text: text[:40],
)
def test_generation_settings_that_do_not_load_are_refused(ouro, capsys, unwritten, text):
    (ouro / "generation_config.json").write_text(text)
    assert "generation_config.json" in assert_refused(capsys, ouro)


def test_generation_settings_that_load_are_copied_byte_for_byte(ouro, tmp_path):
    text = (
        '{"eos_token_id": [2, 75],\n "temperature": 0.6, "do_sample": true, "pad_token_id": -1, "_commit_hash": "x"}'
    )
    (ouro / "generation_config.json").write_text(text)
    plt_convert(ouro, tmp_path / "target")
    assert (tmp_path / "target" / "generation_config.json").read_text() == text
    assert PLTForCausalLM.from_pretrained(tmp_path / "target").generation_config.eos_token_id == [2, 75]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json", "vocab.json"])
def test_json_that_is_nested_too_deep_is_refused(ouro, capsys, name):
    if name == "model.safetensors.index.json":
        (ouro / "model.safetensors").unlink()
    for text in (NESTED, '{"a": ' * 200 + "1" + "}" * 200):
        (ouro / name).write_text(text)
        assert f"{name} must nest lists and objects at most 100 levels deep, got more." in assert_refused(capsys, ouro)


def expected_tensors():
    return load_file(DATA / "ouro" / "expected.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input_ids": None}, "must hold `input_ids` and `logits`, got `logits`"),
        ({"logits": None}, "must hold `input_ids` and `logits`, got `input_ids`"),
        ({"input_ids": lambda ids: ids.float()}, "`input_ids` in"),
        ({"input_ids": lambda ids: ids[0]}, "must be integers [rows, tokens], got torch.int64"),
        ({"input_ids": lambda ids: ids[:, :0]}, "must be integers [rows, tokens]"),
        ({"input_ids": lambda ids: ids + 97}, "must be between 0 and 96, got"),
        ({"input_ids": lambda ids: ids - 97}, "must be between 0 and 96, got"),
        ({"input_ids": lambda ids: ids[:1]}, "`logits` in"),
        ({"logits": lambda logits: logits[:, :-1]}, "`logits` in"),
        ({"logits": lambda logits: logits[..., :-1]}, "must be floats"),
        ({"logits": lambda logits: logits.long()}, "must be floats"),
        ({"logits": lambda logits: logits * float("nan")}, "Logits differ"),
    ],
)
def test_a_file_of_expected_logits_is_checked(ouro, tmp_path_factory, capsys, request, change, message):
    if message != "Logits differ":
        request.getfixturevalue("unwritten")
    tensors = expected_tensors()
    for name, function in change.items():
        tensors[name] = tensors[name] if function is None else function(tensors[name]).contiguous()
        if function is None:
            del tensors[name]
    file = tmp_path_factory.mktemp("file") / "expected"
    save_file(tensors, file)
    assert message in assert_refused(capsys, ouro, "--expected", file)


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "missing"])
def test_a_file_of_expected_logits_that_is_none_is_refused(ouro, tmp_path_factory, capsys, unwritten, kind):
    file = tmp_path_factory.mktemp("file") / "expected"
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_text("text" if kind == "text" else "")
    assert str(file) in assert_refused(capsys, ouro, "--expected", file)


def test_integers_of_32_bits_are_ids_too(ouro, tmp_path):
    tensors = expected_tensors()
    save_file(tensors | {"input_ids": tensors["input_ids"].int()}, tmp_path / "expected")
    plt_convert(ouro, tmp_path / "target", "--expected", tmp_path / "expected")


@pytest.mark.parametrize("content", [b"\xff\xfe", b""], ids=["no text", "empty"])
def test_a_text_that_cannot_be_measured_on_is_refused(ouro, tmp_path_factory, capsys, content):
    file = tmp_path_factory.mktemp("file") / "text"
    file.write_bytes(content)
    write_files(ouro, vocab__json={"a": 0, "b": 1}, merges__txt="#version: 0.2\n")
    assert assert_refused(capsys, ouro, "--to-plt", "--text", file)


PICKLES = {
    "no file": None,
    "empty": lambda: {},
    "a list": lambda: [torch.ones(3)],
    "a tensor": lambda: torch.ones(3),
    "numbers as names": lambda: {0: torch.ones(3)},
    "no tensors": lambda: {"a": 3},
    "sparse": lambda: {"a": torch.eye(3).to_sparse()},
    "compressed": lambda: {"a": torch.eye(3).to_sparse_csr()},
    "meta": lambda: {"a": torch.ones(3, device="meta")},
    "integers": lambda: {"a": torch.ones(3, dtype=torch.int64)},
    "one number for many": lambda: {"a": torch.zeros(1).expand(10**6, 10**6)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_of_anything_but_dense_tensors_under_names_is_refused(ouro, capsys, name):
    (ouro / "model.safetensors").unlink()
    if PICKLES[name] is None:
        (ouro / "pytorch_model.bin").touch()
    else:
        torch.save(PICKLES[name](), ouro / "pytorch_model.bin")
    assert "pytorch_model.bin" in assert_refused(capsys, ouro, "--allow-pickle")


def test_a_damaged_pickle_is_a_value_error(tmp_path):
    file = tmp_path / "file.bin"
    torch.save({"a": torch.ones(30)}, file)
    intact = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(intact), (60,), generator=generator).tolist():
        file.write_bytes(intact[:position] + bytes([intact[position] ^ 16]) + intact[position + 1 :])
        try:
            read_pickle(file)
        except ValueError as error:
            assert "file.bin" in str(error)


def test_weights_without_a_tensor_are_refused(ouro, capsys):
    save_file({}, ouro / "model.safetensors")
    assert "must hold weights" in assert_refused(capsys, ouro)


def test_licenses_are_files_of_the_source(ouro, tmp_path, capsys):
    (tmp_path / "secret").write_text("secret")
    (ouro / "LICENSES").mkdir()
    (ouro / "LICENSE.link").symlink_to(tmp_path / "secret")
    (ouro / "LICENSE.device").symlink_to("/dev/null")
    (ouro / "LICENSE.nowhere").symlink_to("nowhere")
    (ouro / "LICENSE.loop").symlink_to("LICENSE.loop")
    (ouro / "LICENSE.inside").symlink_to("LICENSE")
    (ouro / "LICENSE").write_text("the license")
    with open(ouro / "NOTICE", "wb") as file:
        file.truncate(10_000_001)
    plt_convert(ouro, tmp_path / "target")
    copied = {path.name for pattern in ("LICENSE*", "NOTICE*") for path in (tmp_path / "target").glob(pattern)}
    assert copied == {"LICENSE", "LICENSE.inside"}
    output = capsys.readouterr().out
    for sentence in (
        "`LICENSES` was not copied: it is not a file.",
        f"`LICENSE.link` was not copied: it is a link out of the source, to {tmp_path / 'secret'}.",
        "`LICENSE.device` was not copied: it is not a file.",
        "`LICENSE.nowhere` was not copied: it is not a file.",
        "`LICENSE.loop` was not copied: it is not a file.",
        "`NOTICE` was not copied: it is of 10.0 MB",
    ):
        assert sentence in output and sentence in (tmp_path / "target" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["a folder", "a link out of the folder", "a device", "a pipe"])
def test_files_of_a_tokenizer_are_files_of_the_source(source, target, byte_level, kind):
    write_files(source, tokenizer__json=byte_level, tokenizer_config__json={"tokenizer_class": "TokenizersBackend"})
    template = source / "chat_template.jinja"
    if kind == "a folder":
        template.mkdir()
    elif kind == "a pipe":
        os.mkfifo(template)
    else:
        (source.parent / "secret").write_text("secret")
        template.symlink_to(source.parent / "secret" if kind != "a device" else "/dev/null")
    with pytest.raises(ValueError, match="`chat_template.jinja` must be a file in the source's folder"):
        write_tokenizer(source, target)


@pytest.mark.parametrize("index", [1_000_000_000, 5000, -1, 1.0, "0", True, None])
@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_ids_far_beyond_the_number_of_tokens_are_refused(source, target, byte_level, file, index):
    vocabulary = {"a": 0, "b": index}
    if file == "vocab.json":
        write_files(source, vocab__json=vocabulary, merges__txt="#version: 0.2\n")
    else:
        content = json.loads(byte_level)
        content["model"]["vocab"] = vocabulary
        write_files(source, tokenizer__json=content)
    with pytest.raises(ValueError, match=rf"{file} has 2 tokens and must give ids from 0 to 1003, got"):
        write_tokenizer(source, target)


def test_a_vocabulary_with_holes_for_added_tokens_is_accepted(tmp_path):
    write_files(tmp_path, vocab__json={"a": 0, "b": 3, "c": 1002})
    check_vocabulary(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": 1},
        {"tokenizer_class": ["GPT2Tokenizer"]},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"0": "a"}},
        {"added_tokens_decoder": {"0": {}}},
        {"added_tokens_decoder": {"0": {"content": 3}}},
        {"added_tokens_decoder": {"0": {"content": "a", "lstrip": "no"}}},
        {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}},
        {"added_tokens_decoder": {"7": {"content": "new"}}},
        {"eos_token": 5},
        {"model_max_length": "long", "padding_side": 3},
    ],
    ids=lambda settings: str(settings)[:50],
)
def test_settings_of_a_tokenizer_of_the_wrong_kind_are_a_value_error(source, target, settings):
    write_files(source, vocab__json={"a": 0, "b": 1}, merges__txt="#version: 0.2\n", tokenizer_config__json=settings)
    with pytest.raises(ValueError):
        write_tokenizer(source, target)


def test_auto_maps_of_any_kind_can_be_named(source, target):
    for auto_map in ("tokenization_own.Own", ["a.B", None], 5, {"AutoTokenizer": 3}, {"AutoTokenizer": []}):
        write_files(source, tokenizer_config__json={"auto_map": auto_map})
        (sentence,) = write_tokenizer(source, target)
        assert "Add " in sentence
        shutil.rmtree(target)


@pytest.mark.parametrize("kind", ["bpe symbols", "unigram as sentencepiece trains it"])
def test_a_damaged_sentencepiece_model_is_a_value_error_or_loads(source, target, train, kind):
    intact, refusals = train(kind), 0
    for seed in range(70):
        rng, data = random.Random(seed), bytearray(intact)
        for _ in range(rng.choice([1, 2, 4])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        name = rng.choice(["LlamaTokenizer", "OwnTokenizer"])
        write_files(source, tokenizer__model=bytes(data), tokenizer_config__json={"tokenizer_class": name})
        try:
            assert "rebuilt from tokenizer.model" in write_tokenizer(source, target)[0]
        except ValueError:
            refusals += 1
    assert 0 < refusals < 70


def test_a_tokenizer_with_more_tokens_than_the_model_is_not_measured_with(ouro, capsys):
    tokens = {f"w{number}": number for number in range(200)}
    write_files(
        ouro,
        tokenizer__json={
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": tokens, "unk_token": "w150"},
        },
    )
    assert "ids below the `vocab_size` of 97, got 150" in assert_refused(capsys, ouro, "--to-plt")


def test_messages_stay_short_and_in_one_line():
    assert one_line(ValueError("a\nb\r\n  c\x1b[31m\x00 d")) == "a b c?[31m? d"
    assert one_line(KeyError()) == "KeyError" and len(one_line(ValueError("x" * 10_000))) == 1000
    assert len(shown("x" * 10_000)) <= 100 and len(shown([["x" * 1000] * 1000] * 1000)) <= 100
    assert named("x" * 1000).endswith("...`") and named("a") == "`a`"
    assert some(["a"] * 7) == "`a`, `a`, `a`, `a`, `a` and 2 more" and some([]) == "none"
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 134_932: "134.9 kB", 15 * 10**9: "15.0 GB"}
    assert {size: bytes_of(size) for size in sizes} == sizes and bytes_of(10**16) == "10000.0 TB"
