# SPDX-License-Identifier: Apache-2.0
"""LoopCoder-V2: the published PLT (arXiv 2606.18023); weights and config, no modeling code."""

from typing import Any

from configuration_plt.published_plt import PublishedFields, PublishedPLTConfig
from modeling_plt.names_plt import GATE, PUBLISHED_GATE

from ..reading.fields import Fields, bias_fields, llama_fields
from ..source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    own = fields.take_all(PublishedFields)
    return llama_fields(fields) | bias_fields(fields) | own.translated()


SOURCE = Source(
    model_type=PublishedPLTConfig.model_type,
    title="LoopCoder-V2",
    becomes="already a PLT; weights are copied unchanged",
    read_fields=read_fields,
    renames=((PUBLISHED_GATE, GATE),),
)
