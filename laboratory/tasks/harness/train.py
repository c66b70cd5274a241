# SPDX-License-Identifier: Apache-2.0
"""One run: train a model, and score it on the test.

B batch, T tokens, V vocabulary.
"""

import math
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from modeling_plt import PLTForCausalLM
from training_plt.diagnose.routing import Routing

from ...setting import commit, machine
from .definition import Run
from .examples import NO_ANSWER, Examples, as_batch

NUM_LOSSES = 20  # kept of a run
NUM_ROUTED = 100  # sequences whose experts are looked at


def measure(run: Run) -> dict:
    """Train and test a model; everything there is to know of the run, for JSON."""
    started = time.perf_counter()
    set_seed(run.seed)
    model = build(run)
    task, experiment = run.experiment.task, run.experiment
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            training_arguments(run, folder),
            train_dataset=task.train(run.steps * experiment.batch_size, run.seed),
            data_collator=as_batch,
            preprocess_logits_for_metrics=correct_and_nats,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        test = task.validation() if run.asks_validation else task.test()
        predicted = torch.from_numpy(trainer.predict(test).predictions)
    return (
        run.settings()
        | routing_of(model, test)
        | {
            "parameters": model.num_parameters(),
            "scores": scores(predicted, test),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "seconds": round(time.perf_counter() - started, 1),
            "commit": commit(),
            "machine": machine(),
        }
    )


@torch.inference_mode()
def routing_of(model: PLTForCausalLM, test: Examples) -> dict[str, Any]:
    """Of a mixture of experts, the active parameters, and on some of the test its experts' overlap and load."""
    routing = Routing(model.config)
    if not routing.layers:
        return {}
    input_ids = test.input_ids[:NUM_ROUTED].long().to(model.device)
    routing.add(model.model.eval()(input_ids, output_router_logits=True).router_logits)
    return {"active_parameters": model.num_active_parameters()} | routing.results()


def build(run: Run) -> PLTForCausalLM:
    model = PLTForCausalLM(run.config())
    if run.cell.smears:
        model.get_input_embeddings().register_forward_hook(smear)
    for name, parameter in model.named_parameters():
        if run.cell.frozen and run.cell.frozen in name:
            parameter.requires_grad_(False)
    return model


def smear(module: nn.Module, args: Any, embeddings: Tensor) -> Tensor:
    """Embeddings `[B, T, D]` plus the one before each, its channels moved by D / 2 + 1: no parameter, no loop.

    A hook of the embeddings. It hands every token the one before it, as the shift does for later loops.
    """
    before = pad(embeddings, (0, 0, 1, 0))[:, :-1]
    return embeddings + before.roll(embeddings.shape[-1] // 2 + 1, dims=-1)


def training_arguments(run: Run, folder: str) -> TrainingArguments:
    """AdamW as published for such tasks (arXiv 2510.25741, section 6.2), with a cosine schedule.

    Weights that `Trainer` knows for neither a norm nor a bias decay, gates too, as in all results so far.
    """
    return TrainingArguments(
        folder,
        max_steps=run.steps,
        per_device_train_batch_size=run.experiment.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=run.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(run.steps // 10, 1),
        weight_decay=0.1,
        adam_beta2=0.98,
        seed=run.seed,
        logging_steps=max(run.steps // NUM_LOSSES, 1),
        save_strategy="no",
        remove_unused_columns=False,  # batches are complete, and have no columns to look at
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
    )


def correct_and_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each answer is right, and its cross entropy: `[B, T, V]`, `[B, T]` -> `[B, T - 1, 2]`."""
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=NO_ANSWER, reduction="none")
    return torch.stack((logits.argmax(-1).eq(labels).float(), nats), dim=-1)


def scores(predicted: Tensor, test: Examples) -> list[dict]:
    """Accuracy and bits per answer of each group, from `correct_and_nats` of the whole test `[N, T - 1, 2]`."""
    asked = test.labels[:, 1:] != NO_ANSWER
    groups, predicted = test.groups[:, 1:][asked], predicted[asked].double()
    table = []
    for group in groups.unique().tolist():
        accuracy, nats = predicted[groups == group].mean(dim=0).tolist()
        count = int((groups == group).sum())
        table.append({"group": group, "count": count, "accuracy": accuracy, "bits": nats / math.log(2)})
    return table
