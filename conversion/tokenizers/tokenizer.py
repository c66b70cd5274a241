# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: copied if transformers can load them, rebuilt if they need the publisher's Python.

That Python is neither run nor copied. A `tokenizer.json` decides the ids, as it did in transformers 4: many classes of
transformers 5 take only the vocabulary from it and split text in their own way.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedConfig, TokenizersBackend
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from ..error_text import named, shown
from ..reading.checkpoint import read_json
from ..target.copied_files import home
from .sentencepiece_model import build_sentencepiece, check_sentencepiece, find_sentencepiece
from .vocabulary import check_vocabulary

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import

TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
FLAGS = ("single_word", "lstrip", "rstrip", "special")  # of an added token
FOREIGN = ("tokenization*.py", "*.tiktoken", "tekken.json")

TEXTS = (  # tokenizers that encode all of these alike count as the same; the first is also decoded again
    "def fib(n):\n    if n < 2:\n        return n\n\n\treturn fib(n - 1) + fib(n - 2)  # naïve, ≈1.618ⁿ steps 🐌\n",
    "The Fibonacci sequence begins with 0, 1, 1, 2, 3, 5, 8, 13 and passes 1000000 at 1346269.",
    " one space before,  two   three    four, one after ",
    "x[0x1F]+=3.14e-7;y='<0x0A>'\r\n\n\nHTTPServer.snake_case, don't, it's, ALL CAPS",
    "Straße, Ελληνικά, русский, العربية, हिन्दी, ภาษาไทย, 日本語, 한국어",
    "🙂👩\u200d👩\u200d👧🇨🇭 ﬁ½²™ Å A\u030a ｗｉｄｅ\u3000… “quotes” — ▁ ▁▁x\u200b\u00a0y",
    "",
)


def write_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy or rebuild the tokenizer so that it loads from `target` alone; returns what was done and assumed.

    Raises:
        ValueError: a file is corrupt, or what was rebuilt gives other ids than the sentencepiece library.
        ImportError: a sentencepiece model must be rebuilt and the extra `convert` is not installed.
    """
    settings = read_settings(source / "tokenizer_config.json")
    own_class = named_class(settings)
    check_vocabulary(source)
    target.mkdir(parents=True, exist_ok=True)
    copy(source, target, TEMPLATES)
    if "chat_template" not in settings:
        write_template(read_settings(source / "chat_template.json"), target)
    if (source / "tokenizer.json").is_file():
        done = "tokenizer.json copied"
        copy(source, target, SETTINGS + VOCABULARIES)
        notes = name_class(target)
    elif (model := find_sentencepiece(source)) and own_class in (None, TokenizersBackend, LlamaTokenizer):
        done = f"tokenizer.json rebuilt from {model[0]}, with the ids of the sentencepiece library"
        notes = rebuild_sentencepiece(source, target, settings, model[1])
    elif own_class is not None and (files := vocabulary_files(own_class, source)):
        done = f"tokenizer.json made from {' and '.join(files)} by transformers' {own_class.__name__}"
        load(own_class, source).save_pretrained(target)
        notes = name_class(target)
    elif all((source / name).is_file() for name in ("vocab.json", "merges.txt")):
        done = "tokenizer.json rebuilt from vocab.json and merges.txt"
        notes = rebuild_byte_level(source, target, settings)
    else:
        write_template(settings, target)
        return [say_what_is_needed(source, settings)]
    return [f"Tokenizer: {done}; {prove(target)}", *notes]


def read_settings(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def write_settings(settings: dict, path: Path) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Copy files byte for byte; ValueError if one is not a file of the source, or is a `.json` without JSON."""
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        if path.suffix == ".json":
            read_json(path)
        elif not path.is_file() or not path.resolve().is_relative_to(home(source)):
            raise ValueError(f"`{path.name}` must be a file in the source's folder, got {os.path.realpath(path)}.")
        copied = target / path.relative_to(source)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copied)


def write_template(settings: dict, target: Path) -> None:
    """Put a chat template where every tokenizer looks for it; it is copied as text and not rendered."""
    template, path = settings.get("chat_template"), target / "chat_template.jinja"
    if isinstance(template, str) and not path.exists():
        path.write_text(template, encoding="utf-8")


def named_class(settings: dict) -> type[TokenizersBackend] | None:
    """The class of transformers that `tokenizer_config.json` names, if it does not name the publisher's or none."""
    name = settings.get("tokenizer_class") or ""
    if not isinstance(name, str):
        raise ValueError(f"`tokenizer_class` in tokenizer_config.json must be text, got {shown(name)}.")
    found = tokenizer_class_from_name(name)
    is_usable = "auto_map" not in settings and isinstance(found, type) and issubclass(found, TokenizersBackend)
    return found if is_usable else None


def publisher_class(settings: dict) -> str:
    """How messages name the publisher's class."""
    mapped = settings.get("auto_map")
    mapped = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped
    names = [*(mapped if isinstance(mapped, list) else [mapped]), settings.get("tokenizer_class")]
    texts = [name for name in names if name and isinstance(name, str)]
    return named(texts[0]) if texts else "the publisher's class"


@contextmanager
def fitting(kind: type, folder: Path) -> Iterator[None]:
    """ValueError if the block, in which `kind` loads and runs the files in `folder`, fails."""
    try:
        yield
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ValueError(f"The tokenizer files in {folder} do not load as `{kind.__name__}`: {error}") from error


def load(kind: type[TokenizersBackend], folder: Path, **ends: Any) -> TokenizersBackend:
    """A tokenizer of one of transformers' classes; ValueError if the files in `folder` do not fit it."""
    with fitting(kind, folder):
        return kind.from_pretrained(folder, local_files_only=True, **ends)


def name_class(target: Path) -> list[str]:
    """Make `tokenizer_config.json` name `TokenizersBackend` if the class it names does not follow `tokenizer.json`."""
    settings = read_settings(target / "tokenizer_config.json")
    reference = load(TokenizersBackend, target)
    own_class, defaults = named_class(settings), {}
    reason = "it named no class"
    if settings.keys() & {"auto_map", "tokenizer_class"}:
        reason = f"{publisher_class(settings)} is not one of transformers' classes for it, and was not run"
    if own_class is not None:
        reason = f"transformers' {own_class.__name__} does not follow it"
        try:
            tokenizer = load(own_class, target)
        except ValueError:
            tokenizer = reference  # a class for another kind of model: its defaults do not count
        else:
            with fitting(own_class, target):
                is_same = same_ids(tokenizer, reference)
            if is_same:
                return []
        tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if token in reference.vocab}
        defaults = {"padding_side": tokenizer.padding_side, **tokens}
    settings = defaults | settings | {"tokenizer_class": "TokenizersBackend"}
    settings.pop("auto_map", None)
    write_settings(settings, target / "tokenizer_config.json")
    return [f"tokenizer_config.json names TokenizersBackend, which follows tokenizer.json: {reason}."]


def same_ids(tokenizer: TokenizersBackend, reference: TokenizersBackend) -> bool:
    """Whether two tokenizers give the same ids for `TEXTS` and around every added token."""
    texts = (*TEXTS, *(f"x{token}y  {token} z\n" for token in reference.get_added_vocab()))
    return all(tokenizer(text).input_ids == reference(text).input_ids for text in texts)


def vocabulary_files(kind: type[TokenizersBackend], source: Path) -> list[str]:
    """The files that a class reads instead of `tokenizer.json`, if all exist; without them it would load empty."""
    names = [name for key, name in kind.vocab_files_names.items() if key != "tokenizer_file"]
    return names if all((source / name).is_file() for name in names) else []


def say_what_is_needed(source: Path, settings: dict) -> str:
    """The sentence about a tokenizer that was not written."""
    files = sorted({path.name for pattern in SETTINGS + VOCABULARIES + FOREIGN for path in source.glob(pattern)})
    if not files:
        return "Tokenizer: the source has none."
    return (
        f"Tokenizer: not written, because nothing here can be rebuilt. Add {publisher_class(settings)} and its files "
        f"yourself; the source has {', '.join(files)}."
    )


def prove(target: Path) -> str:
    """Load the tokenizer as its users will, encode and decode a text, and return a sentence about the result."""
    unknown = PreTrainedConfig()  # an unknown `model_type`, so that tokenizer_config.json names the class
    with fitting(AutoTokenizer, target):
        tokenizer = AutoTokenizer.from_pretrained(
            target, config=unknown, local_files_only=True, trust_remote_code=False
        )
        decoded = tokenizer.decode(tokenizer(TEXTS[0]).input_ids, skip_special_tokens=True)
    result = "exact" if decoded == TEXTS[0] else f"not exact: {decoded!r}"
    return f"{len(tokenizer):,} tokens; round trip of the sample text {result}."


def rebuild_byte_level(source: Path, target: Path, settings: dict) -> list[str]:
    """Write a byte-level BPE; how the publisher splits text into words can only be assumed."""
    try:
        model = models.BPE.from_file(str(source / "vocab.json"), str(source / "merges.txt"))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise ValueError(f"{source} must hold a BPE in `vocab.json` and `merges.txt`: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    tokenizer.decoder = decoders.ByteLevel()
    save_rebuilt(tokenizer, source, target, settings)
    return [
        f"Assumed, because {publisher_class(settings)} was not run: text is split by GPT-2's pattern and not "
        "normalized. Compare the ids with the publisher's before you trust them."
    ]


def rebuild_sentencepiece(source: Path, target: Path, settings: dict, proto: "ModelProto") -> list[str]:
    """Write the tokenizer of a sentencepiece model; ValueError if it gives other ids than the library."""
    is_llama = named_class(settings) is LlamaTokenizer
    if is_llama and settings.get("add_prefix_space") is False:
        proto.normalizer_spec.add_dummy_prefix = False
    names = {index: token.content for index, token in added_tokens(source, settings).items()}
    tokenizer = build_sentencepiece(proto, names, once=is_llama and settings.get("legacy") is False)
    check_sentencepiece(tokenizer, proto, TEXTS)
    ends = [end for end in ("bos", "eos", "unk", "pad") if getattr(proto.trainer_spec, f"{end}_id") >= 0]
    tokens = {f"{end}_token": getattr(proto.trainer_spec, f"{end}_piece") for end in ends}
    save_rebuilt(tokenizer, source, target, tokens | settings)
    notes = []
    if not is_llama:
        space = ", with a space in front" if proto.normalizer_spec.add_dummy_prefix else ""
        if space and settings.get("add_prefix_space") is False:
            space += " although `add_prefix_space` is false"
        notes.append(
            f"Assumed, because {publisher_class(settings)} was not run: text between special tokens is split as "
            f"sentencepiece does{space}."
        )
    if "add_bos_token" not in settings:
        notes.append("Assumed: no token is put first, because tokenizer_config.json has no `add_bos_token`.")
    return notes


def added_tokens(source: Path, settings: dict) -> dict[int, AddedToken]:
    """Tokens added to the vocabulary, by id, from `tokenizer_config.json` or, in old folders, `added_tokens.json`.

    Raises:
        ValueError: an id is not a count, or a token has no text or a flag that is neither true nor false.
    """
    if "added_tokens_decoder" not in settings:
        listed = {
            index: {"content": content} for content, index in read_settings(source / "added_tokens.json").items()
        }
    else:
        listed = settings["added_tokens_decoder"]
    if not isinstance(listed, dict):
        raise ValueError(f"`added_tokens_decoder` must be an object, got {shown(listed)}.")
    return {count_of(index): added_token(token) for index, token in listed.items()}


def count_of(index: object) -> int:
    """An id that is written as an integer or as the text of one; ValueError if it is not."""
    if not str(index).isdecimal() or len(str(index)) > 10:
        raise ValueError(f"An added token must have a count as its id, got {shown(index)}.")
    return int(str(index))


def added_token(token: object) -> AddedToken:
    """A token from JSON; ValueError if it is not one."""
    fields: dict = token if isinstance(token, dict) else {}
    flags = {name: fields[name] for name in FLAGS if name in fields}
    if not isinstance(fields.get("content"), str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(f"An added token must be an object with `content` and flags, got {shown(token)}.")
    # matched in the raw text whatever its flag says, as the slow tokenizers that need Python do
    return AddedToken(fields["content"], **flags, normalized=False)


def save_rebuilt(tokenizer: Tokenizer, source: Path, target: Path, settings: dict) -> None:
    """Write `tokenizer` with its added, special, first and last tokens; ValueError if one cannot keep its id."""
    for index, token in sorted(added_tokens(source, settings).items()):
        tokenizer.add_tokens([token])
        if (got := tokenizer.token_to_id(token.content)) != index:
            raise ValueError(f"{named(token.content)} must have the id {index} that {source} gives it, got {got}.")
    tokenizer.save(str(target / "tokenizer.json"))
    kept = {name: settings[name] for name in settings.keys() - {"auto_map", "added_tokens_decoder"}}
    write_settings(kept | {"tokenizer_class": "TokenizersBackend"}, target / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        copy(source, target, ("special_tokens_map.json",))
    ends = {name: bool(settings.get(name)) for name in ("add_bos_token", "add_eos_token")}
    load(TokenizersBackend, target, **ends).save_pretrained(target)
