# SPDX-License-Identifier: Apache-2.0
"""Configuration of the Parallel Loop Transformer."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

AUTO_MAP = {
    "AutoConfig": "configuration_plt.PLTConfig",
    "AutoModel": "modeling_plt.PLTModel",
    "AutoModelForCausalLM": "modeling_plt.PLTForCausalLM",
}

COUNTS = (
    "num_loops",
    "sliding_window",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@strict
class PLTConfig(PreTrainedConfig):
    """A Llama-family decoder whose layers run `num_loops` times with the same weights (arXiv 2510.24824).

    Fields without a comment mean what they mean in `LlamaConfig`. Sizes are counts, scales are plain factors.

    The paper's ablation is four settings of this class: `loop_shift=False, loop_attention="own"` (vanilla loop),
    `loop_shift=True, loop_attention="own"` (+ shift), `loop_attention="shared"` (+ shared KV) and the default
    `loop_attention="gated_window"` (PLT).

    Raises:
        StrictDataclassFieldValidationError: a field has the wrong type, or a value that is not among its choices.
        StrictDataclassClassValidationError: a value is out of range, or two fields exclude each other.
    """

    model_type = "plt"
    keys_to_ignore_at_inference = ["past_key_values"]

    num_loops: int = 2  # passes over the shared layers; 1 is a plain decoder
    loop_shift: bool = True  # later loops read the previous token's state, so all loops of a token run in one pass
    loop_attention: Literal["gated_window", "shared", "own"] = "gated_window"  # what later loops attend to
    sliding_window: int = 64  # keys a later loop sees in its own KV, current token included
    gate_input: Literal["hidden", "query"] = "hidden"  # the gate reads the normed layer input, or each head's query
    embedding_scale: float | int = 1.0  # weight of the embedding in the input of later loops
    hidden_scale: float | int = 1.0  # weight of the previous loop's state in the input of later loops
    loop_norm: bool = True  # the final norm follows every loop; otherwise the last one only
    one_pass: bool = True  # the loops of a new token are rows of one pass; False: one after another, the same logits
    learned_scales: bool = False  # the two scales are parameters, and these values their start

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32  # layers with weights, not layers times loops
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float | int = 0.02
    rms_norm_eps: float | int = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool = False
    attention_output_bias: bool | None = None  # bias of `o_proj`; as `attention_bias` if None (Qwen2 has none)
    attention_dropout: float | int = 0.0
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head's query and key before the rotation (Qwen3)
    sandwich_norm: bool = False  # RMSNorm also of what attention and MLP add to the residual stream (Ouro)

    def __post_init__(self, **kwargs):
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        # the complete map, so that a saved folder serves every Auto class whichever class saved it
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    @property
    def layer_types(self) -> list[str]:
        """Loop 0 attends to everything: without this, `sliding_window` would be read as a window for every loop."""
        return ["full_attention"] * self.num_hidden_layers

    @property
    def has_gate(self) -> bool:
        """Whether the layers hold a gate: there is a later loop, and it mixes two attentions."""
        return self.num_loops > 1 and self.loop_attention == "gated_window"

    @property
    def has_learned_scales(self) -> bool:
        """Whether the model holds the two scales of a later loop's input as parameters."""
        return self.num_loops > 1 and self.learned_scales

    def validate_architecture(self):
        """Check that counts are counts and that sizes fit together; `@strict` calls all `validate_*` methods."""
        for name in COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {getattr(self, name)}.")
        if self.head_dim is None:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` unless `head_dim` is given, got "
                f"{self.hidden_size} and {self.num_attention_heads}."
            )
        if self.head_dim % 2 != 0:
            raise ValueError(f"`head_dim` must be even, because rotary embeddings turn pairs, got {self.head_dim}.")
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"`num_attention_heads` must be a multiple of `num_key_value_heads`, got {self.num_attention_heads} "
                f"and {self.num_key_value_heads}."
            )

    def validate_scales(self):
        """Check the numbers that are not counts."""
        for name in ("embedding_scale", "hidden_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"`{name}` must be a finite number, got {getattr(self, name)}.")
        if self.num_loops > 1 and self.embedding_scale == 0 and self.hidden_scale == 0:
            raise ValueError(
                "`embedding_scale` and `hidden_scale` are both 0, which leaves later loops without an input; "
                "at least one must differ from 0."
            )
        for name in ("rms_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be a finite number above 0, got {getattr(self, name)}.")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"`attention_dropout` must be in [0, 1), got {self.attention_dropout}.")
