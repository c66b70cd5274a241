"""Tiny models whose every weight matters, so that a wrong gate, window or shift shows in the logits."""

import torch

from configuration_plt import PLTConfig
from measuring_plt.rows import LOOP, PLT, SHARED, SHIFT
from modeling_plt import PLTForCausalLM

ABLATION_ROWS = {"loop": LOOP, "shift": SHIFT, "shared": SHARED, "gated_window": PLT}

EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "shared_expert_intermediate_size": 16,
}
CORE = {"num_prelude_layers": 1, "num_coda_layers": 1}
FAMILIES = {"dense": {}, "experts": EXPERTS, "core": CORE}
family = "dense"  # of the models made here; `tests/conftest.py` runs whole modules over several


def tiny_config(**overrides) -> PLTConfig:
    fields = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "sliding_window": 4,
        "embedding_scale": 0.9,
        "hidden_scale": 0.6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    fields |= FAMILIES[family] | overrides
    if family == "core" and not CORE.keys() & overrides:  # the layers that are asked for are those that loop
        fields["num_hidden_layers"] += sum(CORE.values())
    unknown = set(fields) - set(PLTConfig.__dataclass_fields__)
    if unknown:
        raise TypeError(f"PLTConfig has no fields {sorted(unknown)}.")
    config = PLTConfig(**fields)
    if config.num_experts:
        config._experts_implementation = "batched_mm"  # the default has no float64
    return config


def every_expert() -> dict:
    """Fields for a test whose numbers a token's choice of experts must not move: it is sent to all of them."""
    return {"num_experts_per_tok": EXPERTS["num_experts"]} if family == "experts" else {}


def when_loaded() -> dict:
    """How far logits of a loaded folder may be off: experts then run another kernel, which sums in another order."""
    return {"rtol": 0, "atol": 5e-5 if family == "experts" else 0}


def num_active(model: PLTForCausalLM, *modules: torch.nn.Module) -> int:
    """How many parameters of some modules a token is computed with: of stacked experts, those that it is sent to."""
    config, parameters = model.config, [parameter for module in modules for parameter in module.parameters()]
    stacked = sum(parameter.numel() for parameter in parameters if parameter.dim() == 3)
    idle = stacked - stacked * config.num_experts_per_tok // config.num_experts if stacked else 0
    return sum(parameter.numel() for parameter in parameters) - idle


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that the loops, the gate and the window all move the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif "plt_gate" in name or name.endswith("bias"):
                parameter.copy_(0.7 * noise)
            else:
                parameter.copy_(noise * (1.5 / parameter.shape[-1]) ** 0.5)
    return model


def tiny_model(seed: int = 0, attn_implementation: str = "sdpa", one_pass: bool = True, **overrides) -> PLTForCausalLM:
    config = tiny_config(**overrides)
    config._attn_implementation = attn_implementation
    model = randomize(PLTForCausalLM(config), seed).eval()
    model.one_pass = one_pass
    return model


def tiny_ids(batch_size: int, length: int, seed: int = 1) -> torch.Tensor:
    """Token ids `[batch_size, length]` without the special ones."""
    return torch.randint(3, 61, (batch_size, length), generator=torch.Generator().manual_seed(seed))
