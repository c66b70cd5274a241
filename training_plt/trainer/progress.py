# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it trains: speed, sample text, and at its end a plot of the loss."""

import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIZES = {"cpu": 1024, "other": 8192}  # rows of the matrices that are multiplied
ROUNDS = 5


class Speed(TrainerCallback):
    """Adds `tokens_per_second` and `mfu` to what is logged, since the log, evaluation or checkpoint before.

    MFU is the share of the devices' operations that the model needs: the operations of forward and backward, all loops
    counted and recomputation left out, over those of a large matrix product in the same time. Needs
    `include_num_input_tokens_seen`; fill counts as tokens.
    """

    def on_train_begin(  # type: ignore[override]  # Trainer gives what follows by name
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any, **kwargs: Any
    ) -> None:
        self.operations_per_token = operations_per_token(model)
        self.peak = args.world_size * measure_peak(args.device, dtype_of(args, model))
        self.mark(state)

    def mark(self, state: TrainerState) -> None:
        self.time, self.tokens = time.perf_counter(), state.num_input_tokens_seen

    def on_log(  # type: ignore[override]
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float], **kwargs: Any
    ) -> None:
        if "loss" not in logs:
            return
        tokens, seconds = state.num_input_tokens_seen - self.tokens, time.perf_counter() - self.time
        self.mark(state)
        if tokens == 0:  # a log right after an evaluation
            return
        speed = tokens / seconds
        measured = {"tokens_per_second": round(speed, 1), "mfu": speed * self.operations_per_token / self.peak}
        logs.update(measured)  # what other callbacks print
        state.log_history[-1].update(measured)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.mark(state)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.mark(state)


def operations_per_token(model: Any) -> int:
    """Of forward and backward, by the model's own count, which takes the layers once for each loop."""
    return model.floating_point_ops({model.main_input_name: torch.zeros(1, 1)})


def dtype_of(args: TrainingArguments, model: PreTrainedModel) -> torch.dtype:
    """What the run multiplies in."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else model.dtype


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the fastest of some rounds."""
    size = SIZES["cpu" if device.type == "cpu" else "other"]
    generator = torch.Generator(device).manual_seed(0)  # of its own, so that the run draws the same numbers without it
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


class SampleText(TrainerCallback):
    """Completes a prompt after each evaluation, greedily, and prints it."""

    def __init__(self, prompt: str, max_new_tokens: int = 40):
        self.prompt, self.max_new_tokens = prompt, max_new_tokens

    def on_evaluate(  # type: ignore[override]
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any, processing_class: Any, **kwargs: Any
    ) -> None:
        inputs = processing_class(self.prompt, return_tensors="pt", add_special_tokens=False).to(args.device)
        was_training = model.training
        model.eval()
        output = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, use_cache=True)
        model.train(was_training)
        if state.is_world_process_zero:
            print(f"step {state.global_step}: {processing_class.decode(output[0])!r}")


class LossPlot(TrainerCallback):
    """Writes `loss.png` into the folder of the run when training ends."""

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            plot_losses(state.log_history).savefig(Path(args.output_dir) / "loss.png", dpi=120)


def plot_losses(log_history: list[dict[str, float]]) -> Figure:
    """Training and held-out loss of what Trainer logs, and the latter of earlier loops, against steps."""
    names = {"loss": "training", "eval_loss": "held out"}
    logged = {name for entry in log_history for name in entry}
    loops = sorted(name for name in logged if re.fullmatch(r"eval_loop_\d+_loss", name))
    names |= {name: f"held out, loop {name.split('_')[2]}" for name in loops}
    lines = pd.DataFrame(log_history, columns=["step", *names]).rename(columns=names)
    points = lines.melt("step", var_name="texts", value_name="loss, nats per token").dropna()
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sns.lineplot(points, x="step", y="loss, nats per token", hue="texts", style="texts", markers=True, ax=axes)
    axes.grid(alpha=0.3)
    return figure
