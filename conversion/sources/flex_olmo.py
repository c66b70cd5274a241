# SPDX-License-Identifier: Apache-2.0
"""FlexOlmo: OLMo-2 with experts in every layer."""

from typing import Any

from ..reading.experts import sparse_fields
from ..reading.fields import Fields
from ..source import PLAIN_DECODER, Source
from . import olmo2


def read_fields(fields: Fields) -> dict[str, Any]:
    taken = olmo2.read_fields(fields)
    return (
        taken
        | sparse_fields(fields, taken["intermediate_size"])
        | {
            "norm_topk_prob": fields.take("norm_topk_prob", bool),
        }
    )


SOURCE = Source(
    model_type="flex_olmo",
    title="FlexOlmo",
    becomes=PLAIN_DECODER,
    read_fields=read_fields,
    renames=olmo2.OUTPUT_NORMS,
    reference_class="FlexOlmoForCausalLM",
)
