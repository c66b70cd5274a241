# SPDX-License-Identifier: Apache-2.0
"""The installed versions, and the commit of this package."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "package": version("parallel-loop-transformer"),
        "python": platform.python_version(),
    }


def commit_of(*paths: str) -> str:
    """The commit of these files, with `+` where they have been edited since; empty outside of a repository."""
    if not (ROOT / ".git").exists():
        return ""
    head = git("rev-parse", "HEAD")
    return head + "+" if head and git("status", "--porcelain", "--", *paths) else head


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
