"""Two processes compute what one computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import on_path
from three_stages import ADAPTER
from tiny import EXPERTS, tiny_model

pytestmark = pytest.mark.slow
WORKERS = Path(__file__).with_name("distributed_workers.py")

KINDS = {
    "hidden gate": {},
    "query gate": {"gate_input": "query"},
    "norms and biases": {"qk_norm": "head", "attention_bias": True, "num_loops": 2},
    "no gate": {"loop_attention": "own"},
    "experts": EXPERTS,
    "norm of all heads": {"qk_norm": "whole"},
    "a core with an adapter": ADAPTER | {"num_hidden_layers": 3, "num_coda_layers": 1},
    "tied": {"tie_word_embeddings": True, "num_loops": 1},
}


def run_two(task, folder, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", WORKERS, task, folder]
    environment = os.environ | {"PYTHONPATH": on_path(WORKERS.parents[1])}  # what tests share
    result = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-5000:]


def test_tensor_parallelism_splits_heads_and_gates(tmp_path):
    for name, overrides in KINDS.items():
        tiny_model(**({"num_loops": 3, "vocab_size": 62} | overrides)).save_pretrained(tmp_path / "models" / name)
    run_two("tensor_parallel", tmp_path / "models", tmp_path)


def test_expert_parallelism_splits_experts(tmp_path):
    tiny_model(num_loops=3, vocab_size=62, **EXPERTS | {"num_experts": 6}).save_pretrained(
        tmp_path / "models" / "even"
    )
    run_two("expert_parallel", tmp_path / "models", tmp_path)


def test_replicas_of_shards_accumulate_gradients(tmp_path):
    """Loop 0 has no use for the gate; a gradient that arrives alone would not fit the others of its layer."""
    for num_loops in (1, 2, 3):
        tiny_model(num_loops=num_loops).save_pretrained(tmp_path / "models" / str(num_loops))
    run_two("hybrid_sharding", tmp_path / "models", tmp_path)
