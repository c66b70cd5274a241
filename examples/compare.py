"""Held-out loss, time per decoded token and cache size of saved models, measured side by side.

    python examples/compare.py --models runs/demo/plain runs/demo/loop runs/demo/plt --output runs/demo

prints the table and writes it as `comparison.md` and `comparison.json`. The models take turns within every round of
the timing, so that a busy machine slows all of them alike; the ratio is to the first model.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from datasets import load_dataset
from tabulate import tabulate
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH = 128  # tokens of a held-out row, as in training
CONTEXT = 512  # tokens in the cache when decoding starts
ROUNDS = 15
TOKENS = 16  # decoded per model and round


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", required=True, help="folders as `train.py` saves them; a plain one first"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the table")
    return parser.parse_args()


def held_out_rows(folder: str) -> torch.Tensor:
    """Token ids `[rows, LENGTH]` of the texts that the model was not trained on.

    Raises:
        ValueError: they are too short to decode behind.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = load_dataset("json", data_files=str(Path(folder) / "held_out.jsonl"), split="train")["text"]
    ids = torch.cat([tokenizer(text, return_tensors="pt").input_ids[0] for text in texts])
    if len(ids) < CONTEXT:
        raise ValueError(f"`held_out.jsonl` of {folder} must have at least {CONTEXT} tokens, got {len(ids)}.")
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


@torch.inference_mode()
def mean_loss(model, rows: torch.Tensor) -> float:
    """Mean cross entropy per token, in nats."""
    batches = rows.split(16)
    losses = [model(batch, labels=batch).loss.item() * len(batch) for batch in tqdm(batches, desc="Held-out loss")]
    return sum(losses) / len(rows)


@torch.inference_mode()
def decode(model, cache, token: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds per token for `TOKENS` greedy steps from a filled cache, and the last token."""
    start = time.perf_counter()
    for _ in range(TOKENS):
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return (time.perf_counter() - start) / TOKENS, token


@torch.inference_mode()
def measure_decoding(models: dict, prompt: torch.Tensor) -> dict[str, list[float]]:
    """Seconds per token of each model in each round; the first round warms up and does not count."""
    caches = {name: model(prompt, use_cache=True).past_key_values for name, model in models.items()}
    tokens = dict.fromkeys(models, prompt[:, -1:])
    seconds = {name: [] for name in models}
    for _ in tqdm(range(1 + ROUNDS), desc="Decoding"):
        for name, model in models.items():
            elapsed, tokens[name] = decode(model, caches[name], tokens[name])
            seconds[name].append(elapsed)
    return {name: values[1:] for name, values in seconds.items()}


def main() -> None:
    args = parse_args()
    models = {
        Path(folder).name: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        for folder in args.models
    }
    rows = held_out_rows(args.models[0])
    prompt = rows.view(1, -1)[:, :CONTEXT]
    seconds = measure_decoding(models, prompt)
    first = seconds[next(iter(models))]
    table = []
    for name, model in models.items():
        with torch.inference_mode():
            cache = model(prompt, use_cache=True).past_key_values
        loss = mean_loss(model, rows)
        ratios = [own / other for own, other in zip(seconds[name], first, strict=True)]
        table.append(
            {
                "model": name,
                "loops": model.config.num_loops,
                "parameters": model.num_parameters(),
                "held-out loss": round(loss, 3),
                "perplexity": round(math.exp(loss), 2),
                "ms per token": round(1000 * statistics.median(seconds[name]), 2),
                "time ratio": round(statistics.median(ratios), 2),
                f"KV-cache bytes at {CONTEXT}": cache.nbytes,
            }
        )
    text = tabulate(table, headers="keys", tablefmt="github")
    dtype = str(model.dtype).removeprefix("torch.")
    note = f"{torch.get_num_threads()} CPU threads, {dtype}, batch 1; decoding starts behind {CONTEXT} tokens"
    (args.output / "comparison.md").write_text(f"{text}\n\n{note}\n")
    (args.output / "comparison.json").write_text(json.dumps({"rows": table, "setting": note}, indent=2) + "\n")
    print(f"\n{text}\n\n{note}")


if __name__ == "__main__":
    main()
