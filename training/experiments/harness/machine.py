# SPDX-License-Identifier: Apache-2.0
"""What a run was made with."""

import subprocess
from functools import cache
from pathlib import Path

import torch

from benchmarks_plt.setting import device_name, versions

ROOT = Path(__file__).parents[3]
CODE = ("configuration_plt", "modeling_plt", "benchmarks/rows.py", "training/experiments")


@cache  # the processor is asked in a process of its own
def machine() -> dict:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device_name(device), "threads": torch.get_num_threads(), **versions()}


@cache  # as the process began: it goes on with the code that it has loaded
def commit() -> str:
    """The commit of the code, with `+` where it has been edited since; empty outside of a repository."""
    if not (ROOT / ".git").exists():
        return ""
    head = git("rev-parse", "HEAD")
    return head + "+" if head and git("status", "--porcelain", "--", *CODE) else head


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
