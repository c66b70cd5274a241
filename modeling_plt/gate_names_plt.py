# SPDX-License-Identifier: Apache-2.0
"""The second published name of a gate's weights, which is read as ours and never written."""

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

PUBLISHED_GATE, GATE = r"\.loop_gate_proj\.", ".plt_gate."


class ReadOnlyRenaming(WeightRenaming):
    """A renaming that saving does not undo: transformers would save every PLT under the other name."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        return WeightRenaming(self._original_target_patterns, self._original_target_patterns)


def read_both_gate_names(model_type: str) -> None:
    """Have `from_pretrained` rename the gates of a checkpoint, for all models of this type."""
    # the installed package and the code of every loaded folder register the same
    register_checkpoint_conversion_mapping(model_type, [ReadOnlyRenaming(PUBLISHED_GATE, GATE)], overwrite=True)
