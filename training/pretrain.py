# SPDX-License-Identifier: Apache-2.0
r"""Train a looped model from scratch, on packed texts, with Trainer.

    python -m training_plt.pretrain --output_dir runs/tiny --max_steps 200 --learning_rate 3e-3
    accelerate launch -m training_plt.pretrain --config plt-1.2b --tokenizer HuggingFaceTB/SmolLM2-135M --bf16 \
        --dataset HuggingFaceFW/fineweb-edu --dataset_config sample-10BT --streaming --block_size 4096 \
        --max_steps 10000 --output_dir runs/plt-1.2b

The first takes minutes on a CPU. Arguments are those of `TrainingArguments`, with the optimizer of arXiv 2606.18023 as
the default, and a few more; a YAML file of them may come first. Needs the extra `train`.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from .arguments import parse, refusing
from .cards import write_card
from .losses import add_earlier_loops
from .muon import MuonAndAdamW
from .new_model import ModelArguments, build_config
from .packing import PackingCollator, pack
from .progress import LossPlot, SampleText, Speed, operations_per_token
from .resume import KeepSettings, find_checkpoint, refuse_other_settings
from .texts import TextArguments, load_texts
from .tokenizer import load_tokenizer, train_tokenizer
from .trainer_arguments import PretrainingArguments


def settings_of(
    config: PLTConfig, model: ModelArguments, texts: TextArguments, training: TrainingArguments
) -> dict[str, Any]:
    """What a resumed run must not change: the model, the texts, and the entries of a step."""
    fields = config.to_diff_dict()
    for name in ("transformers_version", "dtype", "use_cache", "architectures"):
        fields.pop(name, None)
    entries = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    chosen = {name: getattr(model, name) for name in ("tokenizer", "bpe_size", "earlier_loops_weight", "muon")}
    return {"config": fields, **chosen, **vars(texts), "entries of a step": entries, "seed": training.seed}


def prepare(
    model_arguments: ModelArguments, text_arguments: TextArguments, training: TrainingArguments
) -> tuple[Trainer, Path | None]:
    """A trainer of a new model, and the checkpoint that it resumes from; everything that can be refused is.

    Raises:
        ValueError, OSError, NotImplementedError: an argument, a file or a folder is not what it must be.
    """
    checkpoint = find_checkpoint(training)
    train, held_out = load_texts(text_arguments)
    tokenizer = choose_tokenizer(model_arguments, train, checkpoint)
    config = build_config(model_arguments, tokenizer)
    if text_arguments.block_size > config.max_position_embeddings:
        raise ValueError(
            f"`--block_size` must be at most the {config.max_position_embeddings} of `max_position_embeddings`, got "
            f"{text_arguments.block_size}."
        )
    settings = settings_of(config, model_arguments, text_arguments, training)
    if checkpoint is not None:
        refuse_other_settings(checkpoint, settings)
    entries, held_out_entries = (pack(each, tokenizer, text_arguments.block_size) for each in (train, held_out))
    if text_arguments.streaming:
        if training.max_steps <= 0:
            raise ValueError("`--streaming` needs `--max_steps`: the length of the texts is not known.")
        entries = entries.shuffle(seed=training.seed, buffer_size=1000)  # of one read they are sorted by length

    set_seed(training.seed)
    config._attn_implementation = model_arguments.attn_implementation
    model = PLTForCausalLM(config)
    if model_arguments.earlier_loops_weight:
        if training.label_smoothing_factor:
            raise NotImplementedError("`--earlier_loops_weight` does not go with `--label_smoothing_factor`.")
        add_earlier_loops(model, model_arguments.earlier_loops_weight)
    trainer = Trainer(
        model,
        training,
        data_collator=PackingCollator(text_arguments.block_size, tokenizer.eos_token_id),
        train_dataset=entries,
        eval_dataset=held_out_entries,
        processing_class=tokenizer,
        callbacks=[Speed(), SampleText(model_arguments.prompt), LossPlot(), KeepSettings(settings)],
        optimizers=(choose_optimizer(model, model_arguments, training), None),
    )
    return trainer, checkpoint


def choose_tokenizer(
    arguments: ModelArguments, texts: Dataset | IterableDataset, checkpoint: Path | None
) -> PreTrainedTokenizerBase:
    if checkpoint is not None:
        return load_tokenizer(str(checkpoint))
    if arguments.tokenizer is not None:
        return load_tokenizer(arguments.tokenizer)
    if isinstance(texts, IterableDataset):
        raise ValueError("`--streaming` needs a `--tokenizer`: one is trained on texts that are read in advance only.")
    return train_tokenizer(texts, arguments.bpe_size)


def choose_optimizer(
    model: PLTForCausalLM, arguments: ModelArguments, training: TrainingArguments
) -> MuonAndAdamW | None:
    """None leaves the choice to Trainer.

    Raises:
        NotImplementedError: Muon with sharded weights.
    """
    if not arguments.muon:
        return None
    if training.fsdp_plugin_args is not None or training.deepspeed:
        raise NotImplementedError("`--muon` needs whole matrices, and does not go with FSDP or DeepSpeed.")
    return MuonAndAdamW(model, training)


def held_out_loss(trainer: Trainer) -> float:
    """Of the model as it is now, in nats per token, evaluated unless it has just been."""
    for entry in trainer.state.log_history:
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry["eval_loss"]
    return trainer.evaluate()["eval_loss"]


def save(trainer: Trainer, command: str, texts: TextArguments) -> None:
    """The model, its tokenizer, its code and its card in the folder of the run."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.model.config.use_cache = True  # Trainer switches it off
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    model, config, state = trainer.model, trainer.model.config, trainer.state
    losses = [entry for entry in state.log_history if "loss" in entry]
    facts = {
        "parameters": f"{model.num_parameters():,}",
        "loops": config.num_loops,
        "texts": texts.dataset or f"the standard library of Python {sys.version.split()[0]}",
        "tokens, fill included": f"{state.num_input_tokens_seen:,}",
        "operations": f"{state.num_input_tokens_seen * operations_per_token(model):.3g}",
        "steps": state.global_step,
        "last training loss": f"{losses[-1]['loss']:.4f}" if losses else "not logged",
        "held-out loss, nats per token": f"{held_out_loss(trainer):.4f}",
        "optimizer": "Muon and AdamW" if isinstance(trainer.optimizer, MuonAndAdamW) else trainer.args.optim.value,
        "learning rate": f"{trainer.args.learning_rate}, {trainer.args.lr_scheduler_type.value}",
        "seed": trainer.args.seed,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    write_card(Path(trainer.args.output_dir), "A Parallel Loop Transformer, pretrained", command, facts)


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    classes = (ModelArguments, TextArguments, PretrainingArguments)
    with refusing():
        model, texts, training = parse(__doc__, classes, given)
        trainer, checkpoint = prepare(model, texts, training)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    loss = held_out_loss(trainer)
    save(trainer, shlex.join(["python", "-m", "training_plt.pretrain", *given]), texts)
    if trainer.is_world_process_zero():
        print(f"held-out loss {loss:.4f}, saved in {training.output_dir}")


if __name__ == "__main__":
    main()
