# SPDX-License-Identifier: Apache-2.0
"""The machine, versions and method of a measurement."""

import platform
from functools import cache
from typing import Any

import torch
from cpuinfo import get_cpu_info

from measuring_plt.models import Setup, empty_model
from measuring_plt.rows import PLAIN
from measuring_plt.turns import WARMUP_ROUNDS
from measuring_plt.versions import commit_of, versions

CODE = ("configuration_plt", "conversion", "laboratory", "measuring_plt", "modeling_plt", "training_plt")
METHOD = (
    f"random weights; {WARMUP_ROUNDS} warm-up round, then in each round every row once, the device synchronised "
    "before and after; medians over rounds, and medians of each round's ratio to the plain row"
)


def describe(command: str, size: str, setup: Setup) -> dict:
    """A run, for the JSON file; `fields` are those of PLTConfig that all rows share."""
    decoding = "static cache and a compiled step" if setup.compiled else "dynamic cache, eager"
    plain: Any = empty_model(setup, PLAIN)  # one of ours
    active = {"active parameters": plain.num_active_parameters()} if plain.config.num_experts else {}
    return {
        "command": command,
        "size": size,
        "parameters": plain.num_parameters(),  # of the plain row
        **active,
        "fields": setup.fields,
        "dtype": str(setup.dtype).removeprefix("torch."),
        **machine(setup.device),
        "attn_implementation": setup.attn_implementation,
        "decoding": decoding + (f", packed weights ({setup.packed}) but in llama" if setup.packed else ""),
        "method": METHOD,
    }


def machine(device: torch.device | None = None) -> dict:
    """What runs it; by default on the GPU, if there is one."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device_name(device), "cpu_threads": torch.get_num_threads(), **versions()}


@cache  # as the process began: it goes on with the code that it has loaded
def commit() -> str:
    """The commit of the code, with `+` where it has been edited since; empty outside of a repository."""
    return commit_of(*CODE)


@cache  # the processor is asked in a process of its own
def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{get_cpu_info().get('brand_raw', platform.machine())} ({torch.backends.cpu.get_cpu_capability()})"


def headline(setting: dict) -> str:
    """One line, for plots."""
    parameters = f"{setting['parameters'] / 1e6:.3g}M parameters"
    if "active parameters" in setting:
        parameters += f", active {setting['active parameters'] / 1e6:.3g}M"
    return "{size} ({0}), {dtype}, {device}, {cpu_threads} CPU threads".format(parameters, **setting)
