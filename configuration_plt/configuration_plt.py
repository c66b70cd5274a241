# SPDX-License-Identifier: Apache-2.0
"""Configuration of the Parallel Loop Transformer."""

import math
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from huggingface_hub.dataclasses import strict, validated_field
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.utils import is_torch_available

AUTO_MAP = {
    "AutoConfig": "configuration_plt.PLTConfig",
    "AutoModel": "modeling_plt.PLTModel",
    "AutoModelForCausalLM": "modeling_plt.PLTForCausalLM",
    "AutoModelForQuestionAnswering": "modeling_plt.PLTForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_plt.PLTForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_plt.PLTForTokenClassification",
}


def check_count(value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"must be an integer of at least 1, got {value}.")


def check_finite(value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {value}.")


def check_not_negative(value: int) -> None:
    if value < 0:
        raise ValueError(f"must be an integer of at least 0, got {value}.")


def count_from_zero(default: int) -> Any:
    """A field that counts something of which there may be none."""
    return validated_field(check_not_negative, default=default)


def count(default: int | None) -> Any:
    """A field that counts something; also an edit and an override in `from_pretrained` are checked."""
    return validated_field(check_count, default=default)


def scale(default: float | None) -> Any:
    """A factor, checked as a count is."""
    return validated_field(check_finite, default=default)


class Stage(NamedTuple):
    """Consecutive layers, how often they run, and what their later loops see of their own keys.

    Loop 0 sees all its keys. A later loop sees `"all"` keys of its own (vanilla loop), loop 0's and `"nothing"` of its
    own (shared KV), or loop 0's and a `"window"` of its own, between which a gate mixes (PLT).
    """

    layers: range
    loops: range
    later_see: Literal["all", "window", "nothing"]

    @property
    def shares_keys(self) -> bool:
        """Whether later loops read loop 0's keys and values."""
        return len(self.loops) > 1 and self.later_see != "all"

    @property
    def has_gate(self) -> bool:
        """Whether the layers hold a gate: there is a later loop, and it mixes two attentions."""
        return self.shares_keys and self.later_see == "window"

    def full_loops(self, loops: range) -> range:
        """The loops among these that attend to all their own keys: loop 0, and the others if nothing is shared."""
        return loops if self.later_see == "all" else range(loops.start, min(loops.stop, 1))

    def windowed_loops(self, loops: range) -> range:
        """The loops among these that attend to a window of their own keys."""
        return range(max(loops.start, 1), loops.stop if self.later_see == "window" else 0)


# fields that nothing reads without experts
OF_EXPERTS = (
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "shared_expert_intermediate_size",
    "shared_expert_gate",
    "output_router_logits",
)

SEEN = {"own": "all", "gated_window": "window", "shared": "nothing"}  # what `loop_attention` lets later loops see


def other_loops(trained: int, num_loops: int) -> dict[str, int | None]:
    """The fields of a config for another number of loops than its weights are for."""
    return {"num_loops": num_loops, "trained_loops": None if num_loops == trained else trained}


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
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    num_loops: int = count(2)  # how often the shared layers run; 1 is a plain decoder
    loop_shift: bool = True  # later loops read the previous token's state, so all loops of a token run in one pass
    loop_attention: Literal["gated_window", "shared", "own"] = "gated_window"  # the keys that later loops attend to
    sliding_window: int = count(64)  # keys a later loop sees in its own KV, current token included
    gate_input: Literal["hidden", "query"] = (
        "hidden"  # the gate reads the layer input (own norm), or each head's query
    )
    embedding_scale: float | int = scale(1.0)  # weight of the embedding in the input of later loops
    # weight of the previous loop's state in the input of later loops. A normed state has size 1, a new embedding
    # `initializer_range`; that is the default, with which both weigh the same when training starts
    hidden_scale: float | int | None = scale(None)
    loop_norm: bool = True  # the final norm follows every loop; otherwise the last one only
    learned_scales: bool = False  # the two scales are parameters, and these values their start

    # the first and the last layers may run once: prelude and coda; those between are the core, which loops
    num_prelude_layers: int = count_from_zero(0)
    num_coda_layers: int = count_from_zero(0)
    # a later loop starts from the two scaled and added, or from a matrix of both, of the state's columns first
    loop_input: Literal["sum", "adapter"] = "sum"
    # what loop 0's matrix has for a state: it has no matrix, or zeros, or what the prelude puts out
    initial_state: Literal["none", "zeros", "prelude"] = "none"
    coda_norm: bool = False  # the final norm also before the coda (Huginn)
    # the loops that the weights are for, if `num_loops` was overridden at load; what fewer loops do not read is kept
    trained_loops: int | None = count(None)

    vocab_size: int = count(32000)
    hidden_size: int = count(4096)
    intermediate_size: int = count(11008)
    num_hidden_layers: int = count(32)  # layers with weights, not layers times loops
    num_attention_heads: int = count(32)
    num_key_value_heads: int | None = count(None)
    head_dim: int | None = count(None)
    hidden_act: str = "silu"
    max_position_embeddings: int = count(2048)
    initializer_range: float | int = scale(0.02)
    rms_norm_eps: float | int = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    attention_bias: bool = False
    attention_output_bias: bool | None = None  # bias of `o_proj`; as `attention_bias` if None (Qwen2 has none)
    attention_dropout: float | int = 0.0
    mlp_bias: bool = False
    # RMSNorm of query and key before the rotation: of each head (Qwen3), or of all heads together (OLMoE)
    qk_norm: Literal["none", "head", "whole"] | bool = "none"  # false and true, in older folders, are none and head
    # RMSNorms of attention and MLP: of what they read (Llama); also of what they put out, before it is added (Ouro);
    # of that alone (OLMo-2); or of what they read and of the sum (Huginn)
    norm_placement: Literal["pre", "sandwich", "output", "residual"] = "pre"
    embedding_multiplier: float | int = scale(1.0)  # of the embeddings, before the first layer

    # mixture of experts, as in Qwen3MoeConfig and Qwen2MoeConfig; all that follow need experts
    num_experts: int = count_from_zero(0)  # in a sparse layer; 0: no layer is sparse
    num_experts_per_tok: int | None = count(None)  # to which a token is sent
    moe_intermediate_size: int | None = count(None)  # of an expert; `intermediate_size` is that of layers without
    norm_topk_prob: bool = False  # the weights of a token's experts are divided by their sum
    decoder_sparse_step: int = count(1)  # layers step - 1, 2 step - 1, ... are sparse
    mlp_only_layers: list[int] | None = None  # which of them are not
    shared_expert_intermediate_size: int | None = count(None)  # of one more expert, which every token has
    shared_expert_gate: bool = True  # which a sigmoid weighs
    output_router_logits: bool = False
    # weight of the balance loss in training; 0.001, or 0 without experts: TRL asks for their logits where it is not 0
    router_aux_loss_coef: float | int | None = scale(None)

    # no field: a switch of the run, which models show; release 0.1 saved it, and what is saved as False is heeded
    one_pass = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        if self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = 0.001 if self.num_experts else 0.0
        if self.hidden_scale is None:
            self.hidden_scale = self.initializer_range
        if isinstance(self.qk_norm, bool):
            self.qk_norm = "head" if self.qk_norm else "none"
        if kwargs.pop("sandwich_norm", False):  # older folders
            self.norm_placement = "sandwich"
        self.refuse_misspelled(kwargs)
        # transformers keeps one plan per class; ours depends on the fields
        self.base_model_tp_plan = self.tensor_parallel_plan()  # type: ignore[misc]
        # the complete map, so that a saved folder serves every Auto class whichever class saved it
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; an override of `num_loops` leaves the number of the folder in `trained_loops`."""
        if "num_loops" in kwargs:
            saved = config_dict.get("trained_loops") or config_dict.get("num_loops", cls.num_loops)
            kwargs = other_loops(saved, kwargs["num_loops"]) | kwargs
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields, which are what is saved: without `one_pass`."""
        return {name: value for name, value in super().to_dict().items() if name != "one_pass"}

    def refuse_misspelled(self, others: dict[str, Any]) -> None:
        """Refuse a keyword that is no field but nearly the name of one; others are kept, as everywhere."""
        own = set(self.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
        for name in others:
            near = get_close_matches(name, own, n=1, cutoff=0.9)
            if near:
                raise ValueError(f"`{name}` is no field of PLTConfig; is `{near[0]}` meant?")

    @property
    def layer_types(self) -> list[str]:
        """Loop 0 attends to everything: without this, `sliding_window` would be read as a window for every loop."""
        return ["full_attention"] * self.num_hidden_layers

    @layer_types.setter
    def layer_types(self, value: list[str] | None) -> None:
        if value is not None and list(value) != self.layer_types:
            raise ValueError(f"`layer_types` must be {self.num_hidden_layers} times 'full_attention', got {value}.")

    def tensor_parallel_plan(self) -> dict[str, str]:
        """How tensor parallelism splits the layers: by heads, those of the gate included, and by width in an MLP."""
        plan = {name: style for name, style in Qwen3MoeConfig.base_model_tp_plan.items() if ".mlp." in name}
        if self.shared_expert_intermediate_size is not None:
            plan |= {f"layers.*.mlp.shared_expert.{name}_proj": "colwise" for name in ("gate", "up")}
            plan["layers.*.mlp.shared_expert.down_proj"] = "rowwise"
        split, merge = "colwise", "rowwise"
        if self.qk_norm == "whole":
            split, merge = "colwise_gather_output", "rowwise_split_input"  # every process norms all heads
        own = dict.fromkeys((f"{name}_proj" for name in "qkv"), split) | {"o_proj": merge}
        if self.gated_layers and self.qk_norm != "whole":
            own |= dict.fromkeys(("plt_gate.weight", "plt_gate.bias"), "colwise")
        if self.qk_norm == "head":
            own |= dict.fromkeys(("q_norm", "k_norm"), "replicated_with_grad_allreduce")
        return plan | {f"layers.*.self_attn.{name}": style for name, style in own.items()}

    @property
    def base_model_ep_plan(self) -> dict[str, Any] | None:  # type: ignore[override]  # written into a file, were it none
        """How expert parallelism sends tokens to the processes that hold their experts."""
        return Qwen3MoeConfig.base_model_ep_plan if self.num_experts else None

    def is_sparse(self, layer_idx: int) -> bool:
        """Whether a layer has experts."""
        return (
            self.num_experts > 0
            and (layer_idx + 1) % self.decoder_sparse_step == 0
            and layer_idx not in (self.mlp_only_layers or ())
        )

    @property
    def looped_stage(self) -> Stage:
        """The layers that run in all loops: all but prelude and coda."""
        layers = range(self.num_prelude_layers, self.num_hidden_layers - self.num_coda_layers)
        return Stage(layers, range(self.num_loops), SEEN[self.loop_attention])  # type: ignore[arg-type]  # of a `Literal`

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order in which they run: prelude, looped layers, coda."""
        core = self.looped_stage
        prelude = Stage(range(core.layers.start), range(1), "all")
        coda = Stage(range(core.layers.stop, self.num_hidden_layers), range(1), "all")
        return tuple(stage for stage in (prelude, core, coda) if stage.layers)

    @property
    def has_coda(self) -> bool:
        """Whether layers follow the loops."""
        return self.num_coda_layers > 0

    def stage_of(self, layer_idx: int) -> Stage:
        """The stage that a layer belongs to."""
        return next(stage for stage in self.stages if layer_idx in stage.layers)

    @property
    def has_gate(self) -> bool:
        """Whether a loop is run that reads gates."""
        return self.looped_stage.has_gate

    @property
    def most_loops(self) -> int:
        """How many loops the weights are for, or are run if that is more.

        What later loops alone read is kept in a model that is loaded with one loop.
        """
        return max(self.num_loops, self.trained_loops or 1)

    @property
    def gated_layers(self) -> range:
        """The layers that hold a gate."""
        has_gates = self.most_loops > 1 and self.loop_attention == "gated_window"
        return self.looped_stage.layers if has_gates else range(0)

    @property
    def has_learned_scales(self) -> bool:
        """Whether the model holds the two scales of a later loop's input as parameters."""
        return self.most_loops > 1 and self.learned_scales

    @property
    def has_adapter(self) -> bool:
        """Whether the model holds the matrix of a loop's input."""
        return self.loop_input == "adapter" and (self.most_loops > 1 or self.initial_state != "none")

    def validate_hidden_act(self) -> None:
        """Check that transformers has the activation, where torch is: activations are part of it."""
        if not is_torch_available():
            return
        from transformers.activations import ACT2FN

        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"`hidden_act` must be an activation of transformers, as 'silu', got {self.hidden_act!r}."
            )

    def validate_architecture(self) -> None:
        """Check that sizes fit together; `@strict` calls all `validate_*` methods."""
        if isinstance(self.qk_norm, bool):
            raise ValueError(
                f"`qk_norm` must be 'none', 'head' or 'whole' in an edit or an override, got {self.qk_norm}."
            )
        for name in ("num_key_value_heads", "attention_output_bias", "hidden_scale", "router_aux_loss_coef"):
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` may be None only when a config is made, not in an edit or an override.")
        if self.head_dim is None:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` unless `head_dim` is given, got "
                f"{self.hidden_size} and {self.num_attention_heads}."
            )
        if self.head_dim % 2 != 0:
            raise ValueError(f"`head_dim` must be even, because rotary embeddings turn pairs, got {self.head_dim}.")
        assert self.num_key_value_heads is not None  # set in `__post_init__`
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"`num_attention_heads` must be a multiple of `num_key_value_heads`, got {self.num_attention_heads} "
                f"and {self.num_key_value_heads}."
            )

    def validate_core(self) -> None:
        """Check that a layer is left to loop, and that fields of prelude, core and coda have a reader."""
        outside = self.num_prelude_layers + self.num_coda_layers
        if outside >= self.num_hidden_layers:
            raise ValueError(
                f"`num_prelude_layers` and `num_coda_layers` must leave a layer to loop, got "
                f"{self.num_prelude_layers} and {self.num_coda_layers} of {self.num_hidden_layers}."
            )
        if self.coda_norm and not self.has_coda:
            raise ValueError("`coda_norm=True` needs `num_coda_layers`, got 0.")
        if self.initial_state != "none" and self.loop_input != "adapter":
            raise ValueError(
                f'`initial_state="{self.initial_state}"` needs `loop_input="adapter"`, got {self.loop_input!r}.'
            )
        if self.loop_input == "adapter":
            unread = {"learned_scales": False, "embedding_scale": 1.0, "hidden_scale": self.initializer_range}
            for name, default in unread.items():
                if (value := getattr(self, name)) != default:
                    raise ValueError(
                        f'`{name}` is read with `loop_input="sum"` only and must be {default} with an adapter, got '
                        f"{value}."
                    )

    def validate_trained_loops(self) -> None:
        """Check that weights that more loops need are there, if the config was loaded with more."""
        if self.trained_loops is None or self.num_loops == 1 or self.trained_loops > 1:
            return
        if needed := self.needed_by_later_loops():
            raise ValueError(
                f"`num_loops` must be 1, got {self.num_loops}: the folder was saved with one loop, and later ones "
                f"need {' and '.join(needed)}, which it does not hold. `plt convert FOLDER TARGET --to-plt --loops "
                f"{self.num_loops}` adds them."
            )

    def needed_by_later_loops(self) -> list[str]:
        """What a model of several loops holds that one of a single loop does not."""
        needed = {
            "gates": self.loop_attention == "gated_window",
            "learned scales": self.learned_scales,
            "an adapter": self.loop_input == "adapter" and self.initial_state == "none",
        }
        return [name for name, is_needed in needed.items() if is_needed]

    def validate_balance(self) -> None:
        """Check that a weight of the balance loss has experts to balance."""
        if self.num_experts == 0 and self.router_aux_loss_coef:
            raise ValueError(
                f"`router_aux_loss_coef` needs experts, got {self.router_aux_loss_coef} with `num_experts=0`."
            )

    def validate_experts(self) -> None:
        """Check that a token has as many experts as it is sent to, and that fields of experts have a reader."""
        if self.num_experts == 0:
            for name in OF_EXPERTS:
                if (value := getattr(self, name)) != self.__dataclass_fields__[name].default:
                    raise ValueError(f"`{name}` needs experts, got {value} with `num_experts=0`.")
            return
        for name in ("num_experts_per_tok", "moe_intermediate_size"):
            if getattr(self, name) is None:
                raise ValueError(f"`num_experts={self.num_experts}` needs `{name}`, got None.")
        assert self.num_experts_per_tok is not None  # as just checked
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"`num_experts_per_tok` must be at most `num_experts`, got {self.num_experts_per_tok} and "
                f"{self.num_experts}."
            )
        layers = range(self.num_hidden_layers)
        if not set(self.mlp_only_layers or ()) <= set(layers):
            raise ValueError(f"`mlp_only_layers` must be layers below {len(layers)}, got {self.mlp_only_layers}.")
        if not any(self.is_sparse(layer_idx) for layer_idx in layers):
            raise ValueError(
                f"`num_experts={self.num_experts}` needs a sparse layer, got none of {len(layers)} with "
                f"`decoder_sparse_step={self.decoder_sparse_step}` and `mlp_only_layers={self.mlp_only_layers}`."
            )
        if self.shared_expert_intermediate_size is None and not self.shared_expert_gate:
            raise ValueError("`shared_expert_gate=False` needs `shared_expert_intermediate_size`, got None.")

    def validate_scales(self) -> None:
        """Check scales, epsilons and dropout."""
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
