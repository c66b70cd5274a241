"""A tokenizer that is rebuilt from a sentencepiece model gives the ids of the sentencepiece library."""

import sys

import pytest
from tokenizer_folders import (
    ADDED,
    NAMED,
    OWN_CLASS,
    SENTENCEPIECE,
    TEXTS,
    content,
    library_of,
    load,
    special,
    write_files,
)
from transformers import TokenizersBackend

from conversion_plt.tokenizers.tokenizer import write_tokenizer


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


def test_transformers_itself_does_not_yet_give_the_ids_of_the_library(source, train):
    """Every model differs in 5.19, those with byte pieces in 5.24. If none does any more, ours is not needed."""
    wrong = []
    for name in SENTENCEPIECE:
        write_files(source, tokenizer__model=train(name), tokenizer_config__json={"add_bos_token": False})
        tokenizer, library = TokenizersBackend.from_pretrained(source), library_of(train(name))
        if any(tokenizer(text).input_ids != library.encode(text) for text in TEXTS):
            wrong.append(name)
    assert wrong


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
    assert sentences[-1] == "Assumed: no token is put first, because tokenizer_config.json has no `add_bos_token`."
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


def test_a_sentencepiece_model_of_words_is_named(source, target, train):
    write_files(source, tokenizer__model=train("word", model_type="word"))
    (sentence,) = write_tokenizer(source, target)
    assert "tokenizer.model" in sentence and not content(target)


def test_a_damaged_sentencepiece_model_is_an_error_that_names_the_file(source, target, train):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"
    for data in (train("bpe")[:1000], pointer, b""):
        write_files(source, tokenizer__model=data)
        with pytest.raises(ValueError, match=r"tokenizer\.model must be a sentencepiece model"):
            write_tokenizer(source, target)
