# SPDX-License-Identifier: Apache-2.0
"""Attention of a PLT on vLLM's paged KV: shared KV, own window, and the gate between them (paper section 3.2).

T tokens in the step, R loops in the pass, L loops, H query heads, Hkv KV heads, G = H / Hkv, Dh head_dim, D hidden.
"""

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.selector import get_attn_backend

from .configs import ServedConfig
from .head_norm import head_norm
from .pruning import WindowAttention, pruned, reach_of

SCALES = ("q_scale", "k_scale", "v_scale", "prob_scale")  # of quantized keys and values, as checkpoints name them


class Gate(nn.Module):
    """Weight of the shared-KV attention in (0, 1), for each head and token; never quantized."""

    def __init__(self, config: ServedConfig, num_heads: int):
        super().__init__()
        self.reads_query = config.gate_input == "query"
        assert config.head_dim is not None  # the config has set it
        input_size = config.head_dim if self.reads_query else config.hidden_size
        self.weight = nn.Parameter(torch.zeros(num_heads, input_size), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_heads), requires_grad=False)
        for parameter in (self.weight, self.bias):
            set_weight_attrs(parameter, {"weight_loader": load_own_heads})
        if not self.reads_query:
            self.gate_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)  # its weight, for the unit input
            # by which vLLM packs the loaded weight, where it has a kernel for products of few rows
            self.quant_method = UnquantizedLinearMethod()

    def forward(self, unit: Tensor, query: Tensor) -> Tensor:
        """Unit input of the layer `[R * T, D]`, rotated query `[R * T, H, Dh]` -> gate `[R * T, H, 1]`."""
        if self.reads_query:
            logits = (query * self.weight).sum(dim=-1) + self.bias
        else:
            logits = self.quant_method.apply(self, unit * self.gate_norm.weight, self.bias)
        return logits.sigmoid().unsqueeze(-1)


def load_own_heads(parameter: nn.Parameter, loaded: Tensor) -> None:
    """Copy the heads of this process from a tensor `[all heads, ...]`."""
    own = parameter.shape[0]
    parameter.data.copy_(loaded.narrow(0, get_tensor_model_parallel_rank() * own, own))


class PLTAttention(nn.Module):
    """Attention of one decoder layer; every loop calls it with the same weights."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str, layer_idx: int):
        super().__init__()
        processes = get_tensor_model_parallel_world_size()
        assert config.num_key_value_heads is not None and config.head_dim is not None  # the config has set both
        self.num_heads = config.num_attention_heads // processes
        self.num_kv_heads = max(1, config.num_key_value_heads // processes)
        self.head_dim: int = config.head_dim
        quant_config = vllm_config.quant_config
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.attention_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim,
            config.hidden_size,
            bias=bool(config.attention_output_bias),
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.q_norm = head_norm(config, config.num_attention_heads)
        self.k_norm = head_norm(config, config.num_key_value_heads)
        self.rotary_emb = get_rope(config.head_dim, config.max_position_embeddings, True, config.rope_parameters)
        self.plt_gate = Gate(config, self.num_heads) if layer_idx in config.gated_layers else None

        def attend(
            name: str,
            num_heads: int = self.num_heads,
            window: int | None = None,
            shares: str | None = None,
            backend: type[AttentionBackend] | None = None,
        ) -> Attention:
            """vLLM's attention of one loop, or of more heads; with memory of its own unless it shares another's."""
            kind = WindowAttention if backend is not None and shares is None else Attention
            return kind(
                num_heads,
                self.head_dim,
                self.head_dim**-0.5,
                num_kv_heads=self.num_kv_heads,
                cache_config=vllm_config.cache_config,
                quant_config=quant_config,
                per_layer_sliding_window=window,
                kv_sharing_target_layer_name=shares,
                attn_backend=backend,
                prefix=f"{prefix}.{name}",
            )

        self.attn = attend("attn")
        stage, shares = config.stage_of(layer_idx), f"{prefix}.attn"
        # later loops see loop 0's keys: one after another, or with loop 0 as further heads of each KV head
        self.shared_attn = nn.ModuleDict()
        self.together_attn: Attention | None = None
        # and a window of their own, or, in a vanilla loop, all of their own
        self.own_attn = nn.ModuleDict()
        if stage.shares_keys and config.goes_together:
            self.together_attn = attend("together_attn", len(stage.loops) * self.num_heads, shares=shares)
        window = config.sliding_window if stage.later_see == "window" else None
        for loop in stage.loops[1:]:
            of_shared = of_own = None
            if (reach := reach_of(config, vllm_config, loop, layer_idx)) is not None:
                usual = get_attn_backend(
                    self.head_dim, self.attn.dtype, self.attn.kv_cache_dtype, has_sliding_window=True
                )
                of_shared, of_own = pruned(self.attn.attn_backend, reach), pruned(usual, reach)
            if stage.shares_keys:
                self.shared_attn[str(loop)] = attend(f"shared_attn_{loop}", shares=shares, backend=of_shared)
            if stage.later_see != "nothing":
                self.own_attn[str(loop)] = attend(f"own_attn_{loop}", window=window, backend=of_own)
        self.share_scales()

    @property
    def gate_reads_states(self) -> bool:
        return self.plt_gate is not None and not self.plt_gate.reads_query

    def share_scales(self) -> None:
        """Let every loop quantize keys and values by the scales that a checkpoint has for `attn`, if it has any."""
        others = (each for each in self.modules() if isinstance(each, Attention) and each is not self.attn)
        for other in others:
            for name in SCALES:
                if hasattr(self.attn, name):
                    setattr(other, name, getattr(self.attn, name))

    def forward(self, hidden_states: Tensor, unit: Tensor, positions: Tensor, loops: range) -> Tensor:
        """Attend in one pass: normed and unit input of the layer `[R * T, D]`, positions `[R * T]` -> `[R * T, D]`.

        The rows of a loop are together. R is 1, or L where every request has one token. For the unit input see
        `PLTDecoderLayer.norm_input`.
        """
        query, key, value = self.project(hidden_states, positions)
        output = self.attend_shared(query, key, value, loops)
        if loops.stop > 1 and self.own_attn:
            first = query.shape[0] // len(loops) if loops.start == 0 else 0  # rows of loop 0, which has no window
            later = range(max(loops.start, 1), loops.stop)
            own = self.attend_own(query[first:], key[first:], value[first:], later)
            if output is None:  # a later loop of a vanilla loop sees nothing else
                output = own
            else:
                if self.plt_gate is not None:
                    own = self.mix(output[first:], own, query[first:], unit[first:])
                output = torch.cat((output[:first], own)) if first else own
        return self.o_proj(output)[0]

    def project(self, hidden_states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query `[rows, H * Dh]`, rotated key and value `[rows, Hkv * Dh]`."""
        query_size, key_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        states, _ = self.qkv_proj(hidden_states)
        query, key, value = states.split([query_size, key_size, key_size], dim=-1)
        return *self.rotary_emb(positions, self.q_norm(query), self.k_norm(key)), value

    def attend_shared(self, query: Tensor, key: Tensor, value: Tensor, loops: range) -> Tensor | None:
        """Loop 0, and the loops that see its keys, on these keys: `[R * T, H * Dh]`; None if there is no such loop."""
        if loops.start > 0:
            return self.shared_attn[str(loops.start)](query, None, None) if self.shared_attn else None
        num_tokens = query.shape[0] // len(loops)
        if len(loops) == 1 or self.together_attn is None:
            return self.attn(query[:num_tokens], key[:num_tokens], value[:num_tokens])
        return self.attend_together(query, key[:num_tokens], value[:num_tokens], len(loops))

    def attend_together(self, query: Tensor, key: Tensor, value: Tensor, num_loops: int) -> Tensor:
        """Queries of all loops `[L * T, H * Dh]` on loop 0's keys, new ones of `[T, Hkv * Dh]` -> `[L * T, H * Dh]`.

        Keys are written once and read once. The result of the write goes to the read, so that a compiler keeps their
        order. All else comes before both: vLLM cuts its graphs at each, and torch 2.13 cannot compile a part whose
        only input has L * T rows.
        """
        kv_heads, attention = (-1, self.num_kv_heads, self.head_dim), self.together_attn
        assert attention is not None  # `attend_shared` has looked
        by_loop = query.view(num_loops, -1, self.num_kv_heads, self.num_heads // self.num_kv_heads, self.head_dim)
        query = by_loop.permute(1, 2, 0, 3, 4).reshape(-1, attention.num_heads, self.head_dim)
        output = torch.empty_like(query)
        if attention.query_quant is not None and attention.impl.supports_quant_query_input:
            query = attention.query_quant(query.flatten(1), attention._q_scale)[0].view_as(query)
        key, value = key.view(kv_heads), value.view(kv_heads)
        written = torch.ops.vllm.unified_kv_cache_update(key, value, _encode_layer_name(self.attn.layer_name))
        torch.ops.vllm.unified_attention_with_output(
            query, None, None, output, _encode_layer_name(attention.layer_name), kv_cache_dummy_dep=written
        )
        output = output.view(-1, self.num_kv_heads, num_loops, *by_loop.shape[3:])
        return output.permute(2, 0, 1, 3, 4).flatten(2).flatten(0, 1)

    def attend_own(self, query: Tensor, key: Tensor, value: Tensor, loops: range) -> Tensor:
        """Let some later loops attend, each to its own keys: `[loops * T, ...]` -> `[loops * T, H * Dh]`."""
        parts = zip(loops, *(each.chunk(len(loops)) for each in (query, key, value)), strict=True)
        outputs = [self.own_attn[str(loop)](*part) for loop, *part in parts]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def mix(self, shared: Tensor, own: Tensor, query: Tensor, unit: Tensor) -> Tensor:
        """`g * shared + (1 - g) * own` (paper), of rows of later loops, `[rows, H * Dh]`."""
        assert self.plt_gate is not None  # `forward` has looked
        heads = (-1, self.num_heads, self.head_dim)
        gate = self.plt_gate(unit, query.view(heads))
        mixed = torch.lerp(own.view(heads), shared.view(heads), gate)
        return mixed.flatten(1)
