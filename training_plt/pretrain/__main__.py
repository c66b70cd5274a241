# SPDX-License-Identifier: Apache-2.0
r"""Train a looped model from scratch, or go on with a saved one, on packed texts, with Trainer.

    plt pretrain --output-dir runs/tiny --max-steps 200 --learning-rate 3e-3
    plt pretrain --preset plt-1.2b --tokenizer HuggingFaceTB/SmolLM2-135M --bf16 \
        --dataset HuggingFaceFW/fineweb-edu --dataset-config sample-10BT --streaming --block-size 4096 \
        --max-steps 10000 --output-dir runs/plt-1.2b

The first takes minutes on a CPU. `--model FOLDER` goes on with the weights that are saved there. Arguments are those
of `TrainingArguments`, with the optimizer of arXiv 2606.18023 as the default, and a few more; a YAML file of them may
come first. Needs the extra `train`.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from configuration_plt import PLTConfig
from conversion_plt.target.card import origin_of
from modeling_plt import PLTForCausalLM

from ..command.arguments import parse, refusing
from ..command.cards import write_card
from ..command.checks import refuse_long_blocks, refuse_what_cannot_run
from ..command.ending import say_what_was_made
from ..command.runs import data_of, facts_of, fixed_settings, last_evaluation
from ..command.saved import load_config, load_to_train, load_tokenizer_of
from ..data.texts import TextArguments, load_texts
from ..data.tokenizer import load_tokenizer, train_tokenizer
from ..trainer.arguments import BALANCE, PretrainingArguments, folder_of, refuse_smoothing
from ..trainer.decay import SpareGatesAndScales, decaying_names
from ..trainer.finite import StopAtNonFinite, stopping
from ..trainer.loop_readouts import EvaluatesLoops
from ..trainer.losses import add_earlier_loops, refuse_weight
from ..trainer.progress import LossPlot, SampleText, Speed
from ..trainer.resume import KeepSettings, find_checkpoint, refuse_other_settings
from ..trainer.save_whole import save_whole
from .muon import MuonAndAdamW
from .new_model import ModelArguments, build_config, warn_of_scale


class PretrainingTrainer(SpareGatesAndScales, EvaluatesLoops):
    """A Trainer that knows of gates, scales and loops."""


def settings_of(
    config: PLTConfig, model: ModelArguments, texts: TextArguments, training: TrainingArguments
) -> dict[str, Any]:
    """What a resumed run must not change."""
    names = ("model", "tokenizer", "bpe_size", "earlier_loops_weight", "muon", "decay_gates_and_scales")
    return fixed_settings(config, texts, training) | {name: getattr(model, name) for name in names}


def prepare(
    model_arguments: ModelArguments, text_arguments: TextArguments, training: TrainingArguments
) -> tuple[Trainer, Path | None]:
    """A trainer of a new or a saved model, and the checkpoint that it resumes from; everything that can be refused is.

    Raises:
        ValueError, OSError, NotImplementedError: an argument, a file or a folder is not what it must be.
    """
    checkpoint = find_checkpoint(training)
    refuse_what_cannot_run(training, model_arguments.attn_implementation)
    tokenizer = choose_tokenizer(model_arguments, checkpoint)
    config = choose_shape(model_arguments, tokenizer)
    refuse_long_blocks(text_arguments.block_size, config)
    refuse_weight(model_arguments.earlier_loops_weight, config.num_loops)
    added = {"`--earlier-loops-weight`": model_arguments.earlier_loops_weight, BALANCE: config.router_aux_loss_coef}
    refuse_smoothing(training, added)
    refuse_endless(text_arguments, training, tokenizer)
    train, held_out = load_texts(text_arguments)
    if tokenizer is None:
        tokenizer = train_tokenizer(train, model_arguments.bpe_size)
        config = choose_shape(model_arguments, tokenizer)
    if model_arguments.model is None and training.process_index == 0:
        warn_of_scale(config)
    settings = settings_of(config, model_arguments, text_arguments, training)
    if checkpoint is not None:
        refuse_other_settings(checkpoint, settings)
    data = data_of((train, held_out), text_arguments, training, tokenizer)

    set_seed(training.seed)
    model = first_weights(model_arguments, config)
    if model_arguments.earlier_loops_weight:
        add_earlier_loops(model, model_arguments.earlier_loops_weight)
    trainer = PretrainingTrainer(
        model,
        training,
        **data,
        callbacks=[StopAtNonFinite(), Speed(), SampleText(model_arguments.prompt), LossPlot(), KeepSettings(settings)],
        optimizers=(choose_optimizer(model, model_arguments, training), None),
    )
    trainer.decay_gates_and_scales = model_arguments.decay_gates_and_scales
    return trainer, checkpoint


def choose_tokenizer(arguments: ModelArguments, checkpoint: Path | None) -> PreTrainedTokenizerBase | None:
    """None if one is to be trained on the texts."""
    if arguments.model is not None:
        return load_tokenizer_of(arguments.model, load_config(arguments.model).vocab_size)
    if checkpoint is not None:
        return load_tokenizer(str(checkpoint))
    return None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)


def choose_shape(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase | None) -> PLTConfig:
    return build_config(arguments, tokenizer) if arguments.model is None else load_config(arguments.model)


def refuse_endless(
    texts: TextArguments, training: TrainingArguments, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Texts that are read while training are not there to be counted, nor to train a tokenizer on."""
    if texts.streaming and tokenizer is None:
        raise ValueError("`--streaming` needs a `--tokenizer`: one is trained on texts that are read in advance only.")
    if texts.streaming and training.max_steps <= 0:
        raise ValueError("`--streaming` needs `--max-steps`: the length of the texts is not known.")


def first_weights(arguments: ModelArguments, config: PLTConfig) -> PLTForCausalLM:
    """Random ones or the saved ones."""
    config._attn_implementation = arguments.attn_implementation
    if arguments.model is None:
        return PLTForCausalLM(config)
    return load_to_train(arguments.model, config)


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
    return MuonAndAdamW(model, training, decaying_names(model))


def save(trainer: Trainer, command: str, model: ModelArguments, texts: TextArguments) -> None:
    """The model, its tokenizer, its code and its card in the folder of the run."""
    save_whole(trainer)
    if not trainer.is_world_process_zero():
        return
    facts = facts_of(trainer, texts)
    if isinstance(trainer.optimizer, MuonAndAdamW):
        facts["optimizer"] = "Muon and AdamW"
    origin: dict[str, Any] = {}
    if model.model is not None:
        facts = {"made from": model.model} | facts
        origin, _ = origin_of(Path(model.model) / "README.md")
    title = "A Parallel Loop Transformer, pretrained"
    write_card(folder_of(trainer.args), title, command, facts, **origin)


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    classes = (ModelArguments, TextArguments, PretrainingArguments)
    with refusing():
        model, texts, training = parse("plt pretrain", __doc__, classes, given)
        trainer, checkpoint = prepare(model, texts, training)
    with stopping():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        loss = last_evaluation(trainer)["eval_loss"]
    save(trainer, shlex.join(["plt", "pretrain", *given]), model, texts)
    if trainer.is_world_process_zero():
        num_loops = facts_of(trainer, texts)["loops"]
        say_what_was_made(
            f"a pretrained model, num_loops={num_loops}, held-out loss {loss:.4f} nats per token",
            folder_of(training),
            f"plt diagnose --model {folder_of(training)} --text FILE --output DIR",
        )


if __name__ == "__main__":
    main()
