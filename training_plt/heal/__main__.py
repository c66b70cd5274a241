# SPDX-License-Identifier: Apache-2.0
r"""Train a converted checkpoint towards the model that it was converted from.

    plt heal --model CONVERTED --teacher SOURCE --output-dir runs/healed --max-steps 500 \
        --learning-rate 1e-3 --block-size 128
    plt heal --model CONVERTED --teacher SOURCE --output-dir runs/healed --bf16 \
        --dataset HuggingFaceFW/fineweb-edu --dataset-config sample-10BT --streaming --block-size 4096 --max-steps 2000

`CONVERTED` is what `plt convert SOURCE CONVERTED --to-plt` writes. `SOURCE` may be anything that transformers loads
without code from the checkpoint; of other publishers' models, the exact conversion without `--to-plt`. Further
arguments are those of `TrainingArguments`; a YAML file of them may come first. Needs the extra `train`.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

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
from ..trainer.arguments import BALANCE, PretrainingArguments, folder_of, refuse_smoothing
from ..trainer.decay import SpareGatesAndScales, is_gate_or_scale
from ..trainer.finite import StopAtNonFinite, stopping
from ..trainer.loop_readouts import EvaluatesLoops
from ..trainer.progress import LossPlot, SampleText, Speed
from ..trainer.resume import KeepSettings, find_checkpoint, refuse_other_settings
from ..trainer.save_whole import save_whole
from .controls import CONTROLS_FILE, WORDS, control_losses
from .distillation import DistillationArguments, add_teacher


@dataclass
class HealArguments(DistillationArguments):
    """What is healed, and how."""

    model: str = field(kw_only=True, metadata={"help": "Folder or hub id of a model converted with `--to-plt`."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder or hub id of the source; without it, the text is the only teacher."}
    )
    new_rate: float = field(
        default=10.0,
        metadata={"help": "Learning rate of gates and scales, which the source does not have, over that of the rest."},
    )
    prompt: str = field(default="def ", metadata={"help": "Text that the model completes after each evaluation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_rate <= 0:
            raise ValueError(f"`--new-rate` must be above 0, got {self.new_rate}.")


@dataclass
class HealingArguments(PretrainingArguments):
    """`PretrainingArguments` for weights that are trained already."""

    learning_rate: float = 1e-4  # a quarter of what such a size is pretrained with
    eval_on_start: bool = True  # FSDP2 cannot evaluate before it has prepared a training


class HealingTrainer(SpareGatesAndScales, EvaluatesLoops):
    """A Trainer that gives gates and scales, which a source does not have, a learning rate of their own."""

    def __init__(self, *args: Any, new_rate: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.new_rate = new_rate

    def create_optimizer(self, *args: Any) -> Optimizer:
        optimizer = super().create_optimizer(*args)
        model: Any = args[0] if args and args[0] is not None else self.model
        new = [parameter for name, parameter in model.named_parameters() if is_gate_or_scale(name)]
        ids = {id(parameter) for parameter in new}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
        rate = self.new_rate * self.args.learning_rate
        optimizer.add_param_group({"params": new, "lr": rate, "weight_decay": 0.0})
        return optimizer


def refuse_what_is_no_plt(config: PLTConfig, model: str) -> None:
    mechanisms = {"loop_shift": config.loop_shift, "loop_attention": config.loop_attention}
    if config.num_loops == 1 or mechanisms != {"loop_shift": True, "loop_attention": "gated_window"}:
        raise ValueError(
            f"`--model` must be a PLT, which `plt convert {model} TARGET --to-plt` makes of a source; got one with "
            f"{config.num_loops} loops and {mechanisms}."
        )


def load_teacher(name: str, config: PLTConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The source, without code from its checkpoint.

    Raises:
        ValueError: transformers does not know it, or it has another vocabulary.
    """
    try:
        teacher_config = AutoConfig.from_pretrained(name)
        kind = PLTForCausalLM if isinstance(teacher_config, PLTConfig) else AutoModelForCausalLM
        teacher = kind.from_pretrained(name, config=teacher_config)
    except (OSError, ValueError) as error:
        raise ValueError(f"`--teacher` must be a model that transformers can load, got {name}: {error}") from None
    theirs = teacher.config.vocab_size
    if theirs != config.vocab_size:
        raise ValueError(f"`--teacher` must have the model's vocabulary of {config.vocab_size}, got {theirs}.")
    if load_tokenizer_of(name, theirs).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"`--teacher` must have the model's tokenizer, got another one in {name}.")
    return teacher


def prepare(arguments: HealArguments, texts: TextArguments, training: HealingArguments) -> tuple[Trainer, Path | None]:
    """A trainer of a converted model, and the checkpoint that it resumes from; everything that can be refused is.

    Raises:
        ValueError, OSError, NotImplementedError: an argument, a file or a folder is not what it must be.
    """
    checkpoint = find_checkpoint(training)
    refuse_what_cannot_run(training, None)
    config = load_config(arguments.model)
    refuse_what_is_no_plt(config, arguments.model)
    added = {"`--teacher`": arguments.teacher is not None, BALANCE: config.router_aux_loss_coef}
    refuse_smoothing(training, added)
    tokenizer = load_tokenizer_of(arguments.model, config.vocab_size)
    settings = fixed_settings(config, texts, training) | {
        name: value for name, value in vars(arguments).items() if name != "prompt"
    }
    if checkpoint is not None:
        refuse_other_settings(checkpoint, settings)
    refuse_long_blocks(texts.block_size, config)
    if texts.streaming and training.max_steps <= 0:
        raise ValueError("`--streaming` needs `--max-steps`: the length of the texts is not known.")
    teacher = None if arguments.teacher is None else load_teacher(arguments.teacher, config, tokenizer)
    data = data_of(load_texts(texts), texts, training, tokenizer)

    set_seed(training.seed)
    model = load_to_train(arguments.model, config)
    callbacks = [StopAtNonFinite(), Speed(), SampleText(arguments.prompt), LossPlot(), KeepSettings(settings)]
    if teacher is not None:
        add_teacher(model, teacher, arguments)
    trainer = HealingTrainer(model, training, callbacks=callbacks, new_rate=arguments.new_rate, **data)
    return trainer, checkpoint


def loss_before(trainer: Trainer) -> str:
    """The held-out loss at step 0, of this run or of the one that it resumes."""
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"] == 0]
    return f"{losses[0]:.4f}" if losses else "not measured"


def save(
    trainer: Trainer, command: str, arguments: HealArguments, texts: TextArguments, controls: dict[str, Any]
) -> None:
    """The model, its tokenizer, its code, its card and its control readouts in the folder of the run."""
    save_whole(trainer)
    if not trainer.is_world_process_zero():
        return
    facts = {
        "made from": arguments.model,
        "teacher": arguments.teacher or "none",
        "held-out loss before healing": loss_before(trainer),
    } | facts_of(trainer, texts)
    facts |= {f"held-out loss, {words}": f"{controls[name]:.4f}" for name, words in WORDS.items()}
    origin, _ = origin_of(Path(arguments.model) / "README.md")
    title, folder = "A Parallel Loop Transformer, healed", folder_of(trainer.args)
    (folder / CONTROLS_FILE).write_text(json.dumps(controls, indent=2) + "\n", encoding="utf-8")
    write_card(folder, title, command, facts, **origin)


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    with refusing():
        heal, texts, training = parse("plt heal", __doc__, (HealArguments, TextArguments, HealingArguments), given)
        trainer, checkpoint = prepare(heal, texts, training)
    with stopping():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        controls = control_losses(trainer, last_evaluation(trainer))
    save(trainer, shlex.join(["plt", "heal", *given]), heal, texts, controls)
    if trainer.is_world_process_zero():
        print(", ".join(f"{words} {controls[name]:.4f}" for name, words in WORDS.items()))
        before, after = loss_before(trainer), f"{controls['loss']:.4f}"
        say_what_was_made(
            f"a healed PLT, held-out loss {before} nats per token before and {after} after",
            folder_of(training),
            f"plt finetune --model {folder_of(training)} --dataset FILE.jsonl --output-dir DIR",
        )


if __name__ == "__main__":
    main()
