# SPDX-License-Identifier: Apache-2.0
"""The commit, versions and machine of a run."""

from functools import cache

import torch

from measuring_plt.versions import commit_of, versions

from ...setting import device_name

CODE = ("configuration_plt", "modeling_plt", "measuring_plt/rows.py", "training/experiments")


@cache  # the processor is asked in a process of its own
def machine() -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device_name(device), "threads": torch.get_num_threads(), **versions()}


@cache  # as the process began: it goes on with the code that it has loaded
def commit() -> str:
    """The commit of the code, with `+` where it has been edited since; empty outside of a repository."""
    return commit_of(*CODE)
