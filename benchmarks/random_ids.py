# SPDX-License-Identifier: Apache-2.0
"""A prompt of random tokens."""

import torch

from benchmarks_plt.models import Setup


def random_ids(length: int, setup: Setup) -> torch.Tensor:
    """Token ids `[1, length]`, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(setup.fields["vocab_size"], (1, length), generator=generator).to(setup.device)
