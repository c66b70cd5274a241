"""Runs of the training commands in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from checkout import on_path
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("scale_out_worker.py")
KINDS = {
    "copies": {},
    "sharded": {"version": 2, "reshard_after_forward": True, "state_dict_type": "SHARDED_STATE_DICT"},
    "full": {"version": 2, "reshard_after_forward": False, "state_dict_type": "FULL_STATE_DICT"},
}
# plain gradient descent at a rate of 1 moves the weights by their gradients
ONE_STEP = ["--max_steps", 1, "--optim", "sgd", "--learning_rate", 1, "--warmup_steps", 0, "--weight_decay", 0]
ONE_STEP += ["--max_grad_norm", 0, "--save_strategy", "no"]


def sharding(kind) -> list[str]:
    return ["--fsdp", "--fsdp_config", json.dumps(KINDS[kind])] if KINDS[kind] else []


def run_in_two_processes(folder, runs) -> None:
    """Each run is a module of `training_plt` and its flags."""
    (folder / "runs.json").write_text(json.dumps(runs))
    result = in_two_processes(folder, WORKER, folder / "runs.json", timeout=600)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-8000:]


def in_two_processes(folder, worker, *words, timeout):
    """What a script of this folder ended with, and printed."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", worker, *words]
    environment = os.environ | {"PYTHONPATH": on_path(WORKER.parents[1]), "HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def weights(folder):
    return load_file(folder / "model.safetensors")
