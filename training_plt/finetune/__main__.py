# SPDX-License-Identifier: Apache-2.0
r"""Fine-tune a saved PLT on chats, all of its weights or an adapter, through TRL's `SFTTrainer`.

    plt finetune --model MODEL --dataset chats.jsonl --output-dir runs/finetune --learning-rate 2e-5
    plt finetune --model MODEL --dataset chats.jsonl --output-dir runs/lora \
        --use-peft --merge --learning-rate 2e-4

`MODEL` is a folder or hub id of this package; each line of `chats.jsonl` is `{"messages": [{"role": "user", "content":
"..."}, {"role": "assistant", "content": "..."}]}`. Other arguments are those of TRL's `SFTConfig` and `ModelConfig`; a
YAML file of them may come first. Needs the extra `train`.
"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed
from trl import SFTTrainer, get_quantization_config

from conversion_plt.target.card import origin_of
from modeling_plt import PLTForCausalLM

from ..command.arguments import parse, refusing
from ..command.cards import write_card
from ..command.checks import refuse_what_cannot_run
from ..command.ending import say_what_was_made
from ..command.saved import load_config, load_tokenizer_of
from ..trainer.arguments import BALANCE, folder_of, refuse_smoothing
from ..trainer.decay import SpareGatesAndScales
from ..trainer.finite import StopAtNonFinite, stopping
from ..trainer.loop_readouts import EvaluatesLoops
from ..trainer.progress import LossPlot, SampleText, Speed
from ..trainer.resume import KeepSettings, entries_of_a_step, find_checkpoint, optimization, refuse_other_settings
from ..trainer.save_whole import save_whole
from .arguments import BaseArguments, ChatArguments, FinetuneArguments
from .chats import load_messages
from .experts import BalancesInTraining, balance_weight, choose_adapter

HELD_OUT = "held-out loss, nats per token"
LOAD_ADAPTER = """\
import modeling_plt
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # or the path of this folder
model = AutoPeftModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


class ChatTrainer(SpareGatesAndScales, EvaluatesLoops, BalancesInTraining):
    """TRL's trainer, which knows of gates, scales, loops and experts."""


def prepare(
    chat_arguments: ChatArguments, args: FinetuneArguments, base: BaseArguments
) -> tuple[SFTTrainer, Path | None]:
    """A trainer of a saved model, and the checkpoint that it resumes from; everything that can be refused is.

    Raises:
        ValueError, OSError, NotImplementedError: an argument, a file or a folder is not what it must be.
    """
    if chat_arguments.merge and not base.use_peft:
        raise ValueError("`--merge` needs `--use-peft`: without an adapter there is nothing to merge.")
    checkpoint = find_checkpoint(args)
    refuse_what_cannot_run(args, base.attn_implementation)
    config = load_config(base.model_name_or_path, base.model_revision)
    refuse_smoothing(args, {BALANCE: balance_weight(args, config)})
    adapter = choose_adapter(base, config)
    tokenizer = load_tokenizer_of(base.model_name_or_path, config.vocab_size, base.model_revision)
    check_chat_format(tokenizer, args)
    chats = load_messages(chat_arguments.dataset, "train")
    eval_chats = load_messages(chat_arguments.eval_dataset, "test") if chat_arguments.eval_dataset else None
    settings = settings_of(chat_arguments, args, base)
    if checkpoint is not None:
        refuse_other_settings(checkpoint, settings)
    set_seed(args.seed)  # of the adapter, which is made before Trainer sets it
    trainer = ChatTrainer(
        load_model(base, quantized=True),
        args,
        train_dataset=chats,
        eval_dataset=eval_chats,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[StopAtNonFinite(), Speed(), LossPlot(), KeepSettings(settings)],
    )
    if eval_chats is not None:
        trainer.add_callback(SampleText(question_of(eval_chats[0]["messages"], tokenizer)))
    return trainer, checkpoint


def check_chat_format(tokenizer: PreTrainedTokenizerBase, args: FinetuneArguments) -> None:
    """Refuse a tokenizer that cannot write chats as tokens.

    Raises:
        ValueError: there is no chat template, or no token to end or pad with.
    """
    if tokenizer.chat_template is None and args.chat_template_path is None:
        raise ValueError(
            "The tokenizer must have a chat template, got none; give one by `--chat-template-path FILE.jinja`."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None and args.eos_token is None:
        raise ValueError("The tokenizer must have an end token, got none; name one by `--eos-token TOKEN`.")


def settings_of(chats: ChatArguments, args: FinetuneArguments, base: BaseArguments) -> dict[str, Any]:
    """What a resumed run must not change: the base, the adapter, the chats, and the entries of a step."""
    names = ("seed", "max_length", "packing", "assistant_only_loss")
    chosen = {"dataset": chats.dataset, "entries of a step": entries_of_a_step(args)}
    return vars(base) | chosen | optimization(args) | {name: getattr(args, name) for name in names}


def load_model(base: BaseArguments, quantized: bool) -> PLTForCausalLM:
    """The base, quantized if that is asked for, or as it is saved."""
    return PLTForCausalLM.from_pretrained(
        base.model_name_or_path,
        config=load_config(base.model_name_or_path, base.model_revision),
        revision=base.model_revision,
        dtype=base.dtype,
        attn_implementation=base.attn_implementation,
        quantization_config=get_quantization_config(base) if quantized else None,
    )


def question_of(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat as text, up to where the assistant first answers."""
    first = next(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return str(tokenizer.apply_chat_template(messages[:first], tokenize=False, add_generation_prompt=True))


def save_merged(trainer: SFTTrainer, base: BaseArguments, folder: Path) -> None:
    """Save base and adapter as one PLT; the base is read again, as in training it may be quantized or sharded."""
    adapted: Any = trainer.model
    trained, model = adapted.get_base_model(), load_model(base, quantized=False)
    for config in ("config", "generation_config"):  # TRL has set the tokens that end and pad chats
        for name in ("eos_token_id", "pad_token_id"):
            setattr(getattr(model, config), name, getattr(getattr(trained, config), name))
    PeftModel.from_pretrained(model, folder_of(trainer.args)).merge_and_unload().save_pretrained(folder)
    tokenizer: Any = trainer.processing_class
    tokenizer.save_pretrained(folder)
    shutil.copy(folder_of(trainer.args) / "loss.png", folder)


def facts_of(trainer: SFTTrainer, chats: ChatArguments, base: BaseArguments) -> dict[str, Any]:
    """What the card says of a run."""
    args: Any = trainer.args
    model: Any = trainer.model
    state = trainer.state
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    losses = {name: [entry[name] for entry in state.log_history if name in entry] for name in ("loss", "eval_loss")}
    last = {name: f"{values[-1]:.4f}" if values else "not measured" for name, values in losses.items()}
    return {
        "base": base.model_name_or_path,
        "loops": model.config.num_loops,
        "parameters that were trained": f"{trained:,}",
        "chats": chats.dataset,
        "loss of": "the assistant's tokens" if args.assistant_only_loss else "all tokens",
        "tokens": f"{state.num_input_tokens_seen:,}",
        "steps": state.global_step,
        "last training loss": last["loss"],
        HELD_OUT: last["eval_loss"],
        "learning rate": f"{args.learning_rate}, {args.lr_scheduler_type.value}",
        "seed": args.seed,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}",
    }


def save(trainer: SFTTrainer, command: str, chats: ChatArguments, base: BaseArguments) -> None:
    """What was trained in the folder of the run, merged if that is asked for, each with its card."""
    save_whole(trainer)
    if not trainer.is_world_process_zero():
        return
    folder, facts = folder_of(trainer.args), facts_of(trainer, chats, base)
    origin, _ = origin_of(Path(base.model_name_or_path) / "README.md")
    title = "A Parallel Loop Transformer, fine-tuned"
    if not base.use_peft:
        write_card(folder, title, command, facts, **origin)
        return
    adapter = {"loading": LOAD_ADAPTER, "library_name": "peft"}
    write_card(folder, f"{title}: adapter", command, facts, **adapter, **origin)
    if chats.merge:
        save_merged(trainer, base, folder / "merged")
        write_card(folder / "merged", title, command, facts, **origin)


def finetune(chats: ChatArguments, args: FinetuneArguments, base: BaseArguments, command: str) -> SFTTrainer:
    """Train and save; the trainer, with the trained model."""
    with refusing():
        trainer, checkpoint = prepare(chats, args, base)
    with stopping():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if chats.eval_dataset:
            trainer.evaluate()
    save(trainer, command, chats, base)
    if trainer.is_world_process_zero():
        loss = f"held-out loss, nats per token: {facts_of(trainer, chats, base)[HELD_OUT]}"
        if base.use_peft and not chats.merge:
            say_what_was_made(f"an adapter, {loss}", folder_of(args), "README.md there says how to load it")
        else:
            folder = folder_of(args) / ("merged" if base.use_peft else "")
            say_what_was_made(f"a fine-tuned PLT, {loss}", folder, f"plt transformers serve {folder}")
    return trainer


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    with refusing():
        classes = (ChatArguments, FinetuneArguments, BaseArguments)
        chats, training, base = parse("plt finetune", __doc__, classes, given)
    finetune(chats, training, base, shlex.join(["plt", "finetune", *given]))


if __name__ == "__main__":
    main()
