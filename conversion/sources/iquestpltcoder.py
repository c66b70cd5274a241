# SPDX-License-Identifier: Apache-2.0
"""LoopCoder-V2: the published PLT (arXiv 2606.18023); weights and config, no modeling code."""

from typing import Any

from conversion_plt.fields import Fields, bias_fields, llama_fields
from conversion_plt.messages import shown
from conversion_plt.source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    window = fields.take("plt_window_size", list[int])
    if len(window) != 2 or window[1] != 0:
        raise ValueError(f"`plt_window_size` must be [keys to the left, 0], got {shown(window)}.")
    scales = {
        "embedding_scale": fields.take("plt_emb_scale", float, None),
        "hidden_scale": fields.take("plt_hidden_scale", float, None),
    }
    return llama_fields(fields) | {
        "num_loops": fields.take("plt_num_loops", int),
        "loop_shift": True,
        "loop_attention": "gated_window",
        "sliding_window": window[0] + 1,  # theirs counts the keys to the left of the token
        "gate_input": "hidden" if fields.take("plt_gate_use_hidden_states", bool) else "query",
        "loop_norm": fields.take("plt_normalize_per_loop", bool),
        **bias_fields(fields),
        **{name: 1.0 if scale is None else scale for name, scale in scales.items()},
    }


SOURCE = Source(
    model_type="iquestpltcoder",
    title="LoopCoder-V2",
    becomes="already a PLT; weight files are copied unchanged",
    read_fields=read_fields,
    renames=((r"\.self_attn\.loop_gate_proj\.", ".self_attn.plt_gate."),),
)
