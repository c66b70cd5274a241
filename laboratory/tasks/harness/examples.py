# SPDX-License-Identifier: Apache-2.0
"""Sequences with questions, in memory.

N sequences, T tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

NO_ANSWER = -100  # the label that torch's cross entropy leaves out


class Examples(Dataset):
    """Token ids, labels and groups, each `[N, T]`.

    A label stands where its answer would, so that the logits one position earlier are asked for it, as in every causal
    language model; `NO_ANSWER` elsewhere. The group of a label is the number that its score is reported under, such as
    the distance of what had to be found.
    """

    def __init__(self, input_ids: Tensor, labels: Tensor, groups: Tensor):
        # small integers: a run's sequences are all in memory
        self.input_ids, self.labels, self.groups = (part.to(torch.int16) for part in (input_ids, labels, groups))

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch; torch asks for it whole, and building it item by item would take longer than a training step."""
        return {"input_ids": self.input_ids[indices].long(), "labels": self.labels[indices].long()}

    def without(self, others: "Examples") -> "Examples":
        """Those whose sequence is not among the others."""
        left_out = set(keys(others.input_ids))
        kept = [number for number, key in enumerate(keys(self.input_ids)) if key not in left_out]
        return Examples(self.input_ids[kept], self.labels[kept], self.groups[kept])


def keys(input_ids: Tensor) -> list[bytes]:
    """A key of each sequence, equal for equal sequences."""
    return [row.tobytes() for row in input_ids.numpy()]


def as_batch(batch: Any) -> dict[str, Tensor]:
    """The collator of `Examples`, whose batches are complete; transformers takes a collator of lists only."""
    return batch
