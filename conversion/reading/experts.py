# SPDX-License-Identifier: Apache-2.0
"""The fields of a mixture of experts that sources share."""

from typing import Any

from .fields import Fields


def expert_fields(fields: Fields, num_experts: str = "num_experts") -> dict[str, Any]:
    """How many experts there are, how many a token is sent to, and the weight of their balance loss.

    Args:
        num_experts: the source's name of the number of experts.
    """
    fields.take("output_router_logits", bool, False)  # of the source's trainer; a PLT balances whenever it trains
    return {
        "num_experts": fields.take(num_experts, int),
        "num_experts_per_tok": fields.take("num_experts_per_tok", int),
        "router_aux_loss_coef": fields.take("router_aux_loss_coef", float),
    }


def sparse_fields(fields: Fields, width: int, num_experts: str = "num_experts") -> dict[str, Any]:
    """The same, where no layer is without experts, so that `intermediate_size`, which is `width`, is an expert's."""
    return expert_fields(fields, num_experts) | {"moe_intermediate_size": width}


def qwen_expert_fields(fields: Fields) -> dict[str, Any]:
    """The same, the width of an expert, and which layers have experts, as Qwen's configs say it."""
    return expert_fields(fields) | {
        "moe_intermediate_size": fields.take("moe_intermediate_size", int),
        "norm_topk_prob": fields.take("norm_topk_prob", bool),
        "decoder_sparse_step": fields.take("decoder_sparse_step", int),
        "mlp_only_layers": fields.take("mlp_only_layers", list[int], None),
    }
