# SPDX-License-Identifier: Apache-2.0
"""What all runs on packed texts share: their data, and what their cards say."""

import sys
from typing import Any

import torch
import transformers
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, SchedulerType, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from ..data.packing import PackingCollator, pack
from ..data.texts import TextArguments
from ..trainer.progress import operations_per_token
from ..trainer.resume import entries_of_a_step, optimization

TextPair = tuple[Dataset | IterableDataset, Dataset]


def data_of(
    texts: TextPair,
    arguments: TextArguments,
    training: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Texts to train on and to hold out, packed: the arguments of Trainer that concern data.

    Raises:
        ValueError: the texts make less than a block.
    """
    names = ("texts", "held-out texts")
    entries, held_out = (
        pack(each, tokenizer, arguments.block_size, name) for each, name in zip(texts, names, strict=True)
    )
    if arguments.streaming:
        entries = entries.shuffle(seed=training.seed, buffer_size=1000)  # of one read they are sorted by length
    return {
        "train_dataset": entries,
        "eval_dataset": held_out,
        "data_collator": PackingCollator(arguments.block_size, tokenizer.eos_token_id),
        "processing_class": tokenizer,
    }


def fixed_settings(config: PLTConfig, texts: TextArguments, training: TrainingArguments) -> dict[str, Any]:
    """What a resumed run must not change: the model, the texts, and the entries of a step."""
    fields = config.to_diff_dict()
    for name in ("transformers_version", "dtype", "use_cache", "architectures"):
        fields.pop(name, None)
    return {
        "config": fields,
        **vars(texts),
        "entries of a step": entries_of_a_step(training),
        "seed": training.seed,
    } | optimization(training)


def last_evaluation(trainer: Trainer) -> dict[str, float]:
    """What is logged of the held-out texts, of the model as it is now; evaluated unless it has just been."""
    for entry in trainer.state.log_history:
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def count(model: PLTForCausalLM) -> str:
    """The number of parameters, and of those that a token is computed with if they are fewer."""
    total, active = model.num_parameters(), model.num_active_parameters()
    return f"{total:,}" if active == total else f"{total:,}, active {active:,}"


def facts_of(trainer: Trainer, texts: TextArguments) -> dict[str, Any]:
    """What the card says of a run that has been evaluated at its end."""
    args, state = trainer.args, trainer.state
    model: Any = trainer.model
    losses = [entry for entry in state.log_history if "loss" in entry]
    return {
        "parameters": count(model),
        "loops": model.config.num_loops,
        "texts": texts.dataset or f"the standard library of Python {sys.version.split()[0]}",
        "tokens, fill included": f"{state.num_input_tokens_seen:,}",
        "operations": f"{state.num_input_tokens_seen * operations_per_token(model):.3g}",
        "steps": state.global_step,
        "last training loss": f"{losses[-1]['loss']:.4f}" if losses else "not logged",
        "held-out loss, nats per token": f"{last_evaluation(trainer)['eval_loss']:.4f}",
        "optimizer": f"{OptimizerNames(args.optim).value}, weight decay {args.weight_decay}",
        "learning rate": f"{args.learning_rate}, {SchedulerType(args.lr_scheduler_type).value}",
        "seed": args.seed,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
