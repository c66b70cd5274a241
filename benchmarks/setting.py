# SPDX-License-Identifier: Apache-2.0
"""What numbers were measured on, and how."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from benchmarks_plt.models import Setup, empty_model
from benchmarks_plt.rows import PLAIN
from benchmarks_plt.timing import WARMUP_ROUNDS


@dataclass(frozen=True)
class Setting:
    """A run; `fields` are those of PLTConfig that all rows share."""

    command: str
    size: str
    parameters: int  # of the plain row
    fields: dict
    dtype: str
    device: str
    cpu_threads: int
    attn_implementation: str
    torch: str
    transformers: str
    package: str
    python: str
    decoding: str
    method: str = (
        f"random weights; {WARMUP_ROUNDS} warm-up round, then in each round every row once, the device "
        "synchronised before and after; medians over rounds, and medians of each round's ratio to the plain row"
    )

    @property
    def headline(self) -> str:
        """One line, for plots."""
        return (
            f"{self.size} ({self.parameters / 1e6:.3g}M parameters), {self.dtype}, {self.device}, "
            f"{self.cpu_threads} CPU threads"
        )

    def lines(self) -> list[str]:
        """For people."""
        shape = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        return [
            f"Command: `{self.command}`",
            f"Model: {self.size}, {self.parameters:,} parameters; {shape}",
            f"Machine: {self.device}, {self.cpu_threads} CPU threads",
            f"Numbers: {self.dtype}, attention by {self.attn_implementation}",
            f"Software: torch {self.torch}, transformers {self.transformers}, parallel-loop-transformer "
            f"{self.package}, Python {self.python}",
            f"Decoding: {self.decoding}",
            f"Method: {self.method}",
        ]


def describe(command: str, size: str, setup: Setup) -> Setting:
    return Setting(
        command=command,
        size=size,
        parameters=empty_model(setup, PLAIN).num_parameters(),
        fields=setup.fields,
        dtype=str(setup.dtype).removeprefix("torch."),
        device=device_name(setup.device),
        cpu_threads=torch.get_num_threads(),
        attn_implementation=setup.attn_implementation,
        torch=torch.__version__,
        transformers=transformers.__version__,
        package=version("parallel-loop-transformer"),
        python=platform.python_version(),
        decoding=("static cache and a compiled step" if setup.compiled else "dynamic cache, eager")
        + (", swapped products" if setup.few_rows else ""),
    )


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # on Linux, where `platform` knows no more than the architecture
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in names if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
