# SPDX-License-Identifier: Apache-2.0
"""The machine, versions and method of a measurement."""

import platform

import torch
from cpuinfo import get_cpu_info

from measuring_plt.models import Setup, empty_model
from measuring_plt.rows import PLAIN
from measuring_plt.turns import WARMUP_ROUNDS
from measuring_plt.versions import versions

METHOD = (
    f"random weights; {WARMUP_ROUNDS} warm-up round, then in each round every row once, the device synchronised "
    "before and after; medians over rounds, and medians of each round's ratio to the plain row"
)


def describe(command: str, size: str, setup: Setup) -> dict:
    """A run, for the JSON file; `fields` are those of PLTConfig that all rows share."""
    decoding = "static cache and a compiled step" if setup.compiled else "dynamic cache, eager"
    return {
        "command": command,
        "size": size,
        "parameters": empty_model(setup, PLAIN).num_parameters(),  # of the plain row
        "fields": setup.fields,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "device": device_name(setup.device),
        "cpu_threads": torch.get_num_threads(),
        "attn_implementation": setup.attn_implementation,
        **versions(),
        "decoding": decoding + (f", packed weights ({setup.packed}) but in llama" if setup.packed else ""),
        "method": METHOD,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{get_cpu_info().get('brand_raw', platform.machine())} ({torch.backends.cpu.get_cpu_capability()})"


def headline(setting: dict) -> str:
    """One line, for plots."""
    parameters = f"{setting['parameters'] / 1e6:.3g}M parameters"
    return "{size} ({0}), {dtype}, {device}, {cpu_threads} CPU threads".format(parameters, **setting)
