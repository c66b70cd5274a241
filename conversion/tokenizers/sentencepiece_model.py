# SPDX-License-Identifier: Apache-2.0
"""A sentencepiece model as a tokenizer of the `tokenizers` library, with the same ids.

UNTIL transformers builds them with the ids of the library, which a test looks for. Its `LlamaTokenizer` does for no
model in the tests, `TokenizersBackend` for none in 5.19. In 5.24 that is right for plain BPE models, and wrong for
`legacy: false`, for `add_prefix_space: false`, and for unigram models with byte pieces.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.tokenization_utils_base import generate_merges

from ..error_text import shown

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import

# kinds of models and of pieces in sentencepiece_model.proto
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"


def find_sentencepiece(source: Path) -> "tuple[str, ModelProto] | None":
    """Name and content of the unigram or BPE model in a folder, if there is one.

    Raises:
        ValueError: a file is neither a sentencepiece model nor a vocabulary of tiktoken, which has the same suffix.
        ImportError: the extra `convert` is not installed.
    """
    paths = [path for path in source.glob("*.model") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.name != "tokenizer.model", path.name)):
        data = path.read_bytes()
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\s", data):
            continue
        try:
            from google.protobuf.message import DecodeError
            from sentencepiece import SentencePieceProcessor
            from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made at import
        except ImportError as error:
            raise ImportError(f"{path} needs `pip install parallel-loop-transformer[convert]`.") from error
        try:
            proto = ModelProto.FromString(data)
        except DecodeError as error:
            raise ValueError(f"{path} must be a sentencepiece model: {error}") from error
        if not proto.pieces:
            raise ValueError(f"{path} must be a sentencepiece model, got one without pieces.")
        if proto.trainer_spec.model_type in (UNIGRAM, BPE):
            check_proto(path, proto)
            try:
                SentencePieceProcessor(model_proto=data)
            except RuntimeError as error:
                raise ValueError(f"{path} must be a model that sentencepiece loads, got: {error}") from error
            return path.name, proto
    return None


def check_proto(path: Path, proto: "ModelProto") -> None:
    """ValueError if a piece is not text, or the tokenizers library cannot read the map of characters."""
    ends = [getattr(proto.trainer_spec, f"{end}_piece") for end in ("bos", "eos", "unk", "pad")]
    broken = [name for name in (*ends, *(piece.piece for piece in proto.pieces)) if not isinstance(name, str)]
    if broken:
        raise ValueError(f"{path} must have pieces in UTF-8, got {shown(broken[0])}.")
    if proto.normalizer_spec.precompiled_charsmap:
        try:
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
        except Exception as error:  # the tokenizers library raises nothing more specific
            raise ValueError(f"{path} must have a map of characters, got: {error}") from error


def build_sentencepiece(proto: "ModelProto", names: dict[int, str], once: bool) -> Tokenizer:
    """Build the tokenizer, step by step as sentencepiece treats a text.

    Args:
        proto: the model.
        names: added tokens by id; they replace the names of pieces, and the caller adds them.
        once: whether a space is put before the whole text only, and not before every text between added tokens.
    """
    spec = proto.normalizer_spec
    pieces = [(names.get(index, piece.piece), piece) for index, piece in enumerate(proto.pieces)]
    tokenizer = Tokenizer(sentencepiece_model(proto, pieces))
    added = set(names.values())
    controls = [name for name, piece in pieces if piece.type == CONTROL and name not in added]
    symbols = [name for name, piece in pieces if piece.type == USER_DEFINED and name not in added]
    if proto.trainer_spec.model_type == UNIGRAM:
        symbols = []  # their scores suffice
    tokenizer.add_tokens([AddedToken(name, special=True) for name in controls])
    tokenizer.add_tokens([AddedToken(name, normalized=True) for name in symbols])
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    ends = []
    if spec.add_dummy_prefix:
        ends = [decoders.Strip(content=" ", left=1)]
        if once:
            # Metaspace skips a text that begins with its character; at this point none begins with a blank
            blank = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
            space = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([blank, space])
        else:
            # symbols are normalized before they are matched, and must not get a space then
            alone = "|".join(re.escape(symbol) for symbol in symbols)
            steps.append(normalizers.Replace(Regex(rf"\A(?!({alone})\z)"), SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def sentencepiece_model(proto: "ModelProto", pieces: list) -> models.BPE | models.Unigram:
    """The model over (name, piece) pairs; no text becomes a piece that sentencepiece would not make of it."""
    spec = proto.trainer_spec
    if spec.model_type == UNIGRAM:
        # symbols score as in sentencepiece; `<0x0A>` in a text is six characters, not a byte
        scores = {USER_DEFINED: -0.1, UNKNOWN: -1e4, CONTROL: -1e4, BYTE: -1e4}
        vocab = [(name, scores.get(piece.type, piece.score)) for name, piece in pieces]
        return models.Unigram(vocab, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    ids = {name: index for index, (name, _) in enumerate(pieces)}
    unmerged = {name for name, piece in pieces if piece.type not in (NORMAL, UNUSED)}
    # the highest score is merged first, not the lowest id: pieces may have been reordered
    merges = generate_merges(ids, {name: piece.score for name, piece in pieces}, unmerged)
    unknown = pieces[spec.unk_id][0]
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=spec.byte_fallback)


def check_sentencepiece(tokenizer: Tokenizer, proto: "ModelProto", texts: tuple[str, ...]) -> None:
    """Compare ids with the sentencepiece library; ValueError, which shows the text, if they differ."""
    from sentencepiece import SentencePieceProcessor

    library = SentencePieceProcessor(model_proto=proto.SerializeToString())
    for text in texts:
        got, expected = tokenizer.encode(text, add_special_tokens=False).ids, library.encode(text)
        if got != expected:
            raise ValueError(
                f"The rebuilt tokenizer must encode {shown(text)} as {shown(expected)}, got {shown(got)}."
            )
