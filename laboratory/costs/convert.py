# SPDX-License-Identifier: Apache-2.0
"""Peak memory and time of a conversion, next to a plain copy of the same files.

Converting an Ouro rewrites a shard, because its exit gate is dropped. The peak of a process counts in what its parent
holds: libraries are imported where they are used, and never before the processes that are measured.
"""

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, INTERMEDIATE, HEADS, VOCAB = 2048, 5632, 16, 16384
SHARDS = 4


def build(folder: Path, gigabytes: float) -> None:
    """An Ouro checkpoint of about that size, of random bfloat16 weights."""
    import torch
    from huggingface_hub import save_torch_state_dict

    layer = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    layer |= {"mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN)}
    layer |= {"mlp.down_proj": (HIDDEN, INTERMEDIATE)}
    norms = ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2")
    layer |= dict.fromkeys(norms, (HIDDEN,))
    layer_bytes = 2 * sum(math.prod(shape) for shape in layer.values())
    num_layers = max(int((gigabytes * 1e9 - 4 * VOCAB * HIDDEN) / layer_bytes), 1)
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(num_layers) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    shapes |= {"model.norm.weight": (HIDDEN,), "model.early_exit_gate.weight": (1, HIDDEN)}
    shapes |= {"model.early_exit_gate.bias": (1,)}
    tensors = {name: torch.randn(shape, dtype=torch.bfloat16) / math.sqrt(HIDDEN) for name, shape in shapes.items()}
    save_torch_state_dict(tensors, folder, max_shard_size=math.ceil(gigabytes * 1e9 / SHARDS))
    config = {
        "model_type": "ouro",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "total_ut_steps": 4,
    }
    (folder / "config.json").write_text(json.dumps(config))


def run(*command: str) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of a process; memory that it maps from files is counted in."""
    os.sync()  # what was written before is not written in this one's time
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise ChildProcessError(f"`{' '.join(command)}` failed.")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def measure_conversion(gigabytes: float) -> None:
    """Build a checkpoint, copy it, convert it exactly and to a PLT; print what each took."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        builder = multiprocessing.get_context("spawn").Process(target=build, args=(source, gigabytes))
        builder.start()
        builder.join()
        sizes = [file.stat().st_size / 1e9 for file in source.glob("*.safetensors")]
        convert = [sys.executable, "-m", "command_plt.main", "convert", str(source)]
        commands = {
            "import torch and transformers": [sys.executable, "-c", "import conversion_plt.convert"],
            "cp": ["cp", "-r", str(source), f"{folder}/copy"],
            "plt convert": [*convert, f"{folder}/exact"],
            "plt convert --to-plt": [*convert, f"{folder}/plt", "--to-plt"],
        }
        records = [(name, *run(*command)) for name, command in commands.items()]
    import pandas as pd

    from ..report import markdown

    print(f"\n{sum(sizes):.2f} GB in {SHARDS} shards of at most {max(sizes):.2f} GB")
    print(markdown(pd.DataFrame(records, columns=["command", "seconds", "peak RSS, GB"]).round(2)))
