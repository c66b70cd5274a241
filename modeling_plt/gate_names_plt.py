# SPDX-License-Identifier: Apache-2.0
"""The second published name of a gate's weights, which is read as ours and never written."""

from typing import Any, Self

from transformers import PreTrainedModel

PUBLISHED_GATE, GATE = r"\.loop_gate_proj\.", ".plt_gate."


class ReadsBothGateNames(PreTrainedModel):
    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any) -> Self:
        """As in transformers, with the gates under either name."""
        return super().from_pretrained(*args, key_mapping={PUBLISHED_GATE: GATE} | (key_mapping or {}), **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which would write names as they were read: the gates get ours."""
        if used := getattr(self, "_weight_conversions", None):
            self._weight_conversions = [rename for rename in used if GATE not in rename.target_patterns]
        super().save_pretrained(*args, **kwargs)
