# SPDX-License-Identifier: Apache-2.0
"""The parts of `check_on_gpu`, most important first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One that runs in a process of its own.

    Attributes:
        module: which has `rows(scale)`, an iterator of `Row`. It is imported in that process alone.
        needs: a package without which nothing can be checked.
    """

    module: str
    needs: str = "torch"


HERE = "serving_plt.vllm.gpu_checks"
ENVIRONMENT = Part(f"{HERE}.environment")  # always the first
PARTS = {
    "tokens": Part(f"{HERE}.tokens"),
    "vllm-tokens": Part(f"{HERE}.served_tokens", needs="vllm"),
    "vllm-models": Part(f"{HERE}.served_models", needs="vllm"),
    "latency": Part(f"{HERE}.latency"),
    "vllm-latency": Part(f"{HERE}.served_latency", needs="vllm"),
    "flash": Part(f"{HERE}.flash"),
    "first-token": Part(f"{HERE}.first_token"),
    "memory": Part(f"{HERE}.memory"),
}
