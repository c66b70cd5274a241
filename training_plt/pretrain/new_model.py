# SPDX-License-Identifier: Apache-2.0
"""Which model is trained: a saved one, or a new one, whose shape its tokenizer completes."""

import sys
from dataclasses import dataclass, field

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase

from configuration_plt import PLTConfig
from configuration_plt.assignments import parse_assignments

from .presets import PRESETS, read_fields

FAR = 10  # times the weight of a new embedding; published shapes are below 4


@dataclass
class ModelArguments:
    """Which model is trained.

    Raises:
        ValueError: a saved model is given, and the shape of a new one too.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Folder or hub id of a saved PLT whose weights are trained on, in place of new ones."},
    )
    preset: str = field(
        default="tiny",
        metadata={"help": f"Shape of a new model: {', '.join(PRESETS)}, or a JSON file of fields of PLTConfig."},
    )
    set: list[str] = field(
        default_factory=list, metadata={"help": "Fields of PLTConfig on top of the preset, each as FIELD=VALUE."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Folder or hub id of a tokenizer; by default, a byte-level BPE is trained on the texts."},
    )
    bpe_size: int = field(default=1024, metadata={"help": "Vocabulary of the BPE that is trained, without the pad."})
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "Kernel of attention.", "choices": ["sdpa", "eager", "flex_attention"]}
    )
    earlier_loops_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the earlier loops' losses, summed, in the loss; 0 trains the last loop only."},
    )
    muon: bool = field(
        default=False, metadata={"help": "Optimize the layers' matrices by Muon, and the rest by AdamW."}
    )
    decay_gates_and_scales: bool = field(
        default=False, metadata={"help": "Decay gates and learned scales, too, as release 0.1 did."}
    )
    prompt: str = field(default="def ", metadata={"help": "Text that the model completes after each evaluation."})

    def __post_init__(self) -> None:
        given = [
            name
            for name in ("preset", "tokenizer", "bpe_size")
            if getattr(self, name) != getattr(ModelArguments, name)
        ]
        given += ["set"] * bool(self.set)
        if self.model is not None and given:
            flag = given[0].replace("_", "-")
            raise ValueError(f"`--model` brings its shape and its tokenizer with it, got `--{flag}` too.")
        if self.muon and self.decay_gates_and_scales:
            raise ValueError("`--decay-gates-and-scales` is for AdamW alone, got `--muon` too.")


def warn_of_scale(config: PLTConfig) -> None:
    """Say so if later loops of a new model would hardly see which token they are at."""
    assert config.hidden_scale is not None  # filled in
    embedding = config.embedding_scale * config.initializer_range
    if config.num_loops > 1 and config.hidden_scale > FAR * embedding:
        print(
            f"warning: a new model with a `hidden_scale` of {config.hidden_scale} learns late: it drowns embeddings "
            f"of {embedding:.3g}; unset, it is the `initializer_range` of {config.initializer_range}.",
            file=sys.stderr,
        )


def build_config(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase | None) -> PLTConfig:
    """The config of the preset or file, with the size and the special tokens of the tokenizer, where there is one yet.

    Raises:
        ValueError: a field is wrong, or there are fewer embeddings than tokens.
    """
    completed, size = {}, 0
    if tokenizer is not None:
        size = max(tokenizer.get_vocab().values()) + 1
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        completed = {"vocab_size": size} | {name: getattr(tokenizer, name) for name in tokens}
    try:
        given = read_fields(arguments.preset) | parse_assignments(arguments.set)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("`") else f"`--set` {error}") from None
    unknown = given.keys() - PLTConfig.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"`--preset` must hold fields of PLTConfig, got {', '.join(sorted(unknown))}.")
    try:
        config = PLTConfig(**(completed | given))
    except StrictDataclassError as error:
        raise ValueError(f"`--preset`: {error}") from None
    if config.vocab_size < size:
        raise ValueError(f"`vocab_size` must be at least the {size} of the tokenizer, got {config.vocab_size}.")
    return config
