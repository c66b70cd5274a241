"""Peak memory and time of a conversion, beside a plain copy of the same files.

    python benchmarks/convert.py --gigabytes 4

builds an Ouro checkpoint of random bfloat16 weights in four shards, copies it, converts it exactly and to a PLT with
`plt convert`, and prints one table. Converting an Ouro rewrites a shard, because its exit gate is dropped.
"""

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tabulate import tabulate
from tqdm.auto import tqdm

HIDDEN, INTERMEDIATE, HEADS, VOCAB = 2048, 5632, 16, 16384
SHARDS = 4


def build(folder: Path, gigabytes: float) -> None:
    """An Ouro checkpoint of about that size."""
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
    names, weight_map = list(shapes), {}
    for number in tqdm(range(SHARDS), desc="Building", unit="shard"):
        part = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16) / math.sqrt(HIDDEN) for name in part}
        save_file(tensors, folder / f"part-{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
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
        raise SystemExit(f"{' '.join(command)} failed.")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint (default: 4)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        # in a process of its own: the peak of a process counts in what its parent held when it started
        builder = multiprocessing.get_context("spawn").Process(target=build, args=(source, args.gigabytes))
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
        rows = []
        for name, command in commands.items():
            seconds, peak = run(*command)
            rows.append([name, round(seconds, 1), round(peak, 2)])
    print(f"\n{sum(sizes):.2f} GB in {SHARDS} shards of at most {max(sizes):.2f} GB")
    print(tabulate(rows, headers=["command", "seconds", "peak RSS, GB"], tablefmt="github"))


if __name__ == "__main__":
    main()
