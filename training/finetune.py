# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a saved PLT on chats, all of its weights or an adapter, through TRL's `SFTTrainer`.

    python -m training_plt.finetune --model MODEL --dataset chats.jsonl --output_dir runs/finetune --learning_rate 2e-5
    python -m training_plt.finetune --model MODEL --dataset chats.jsonl --output_dir runs/lora --use_peft --merge \
        --learning_rate 2e-4

`MODEL` is a folder or hub id of this package; each line of `chats.jsonl` is `{"messages": [{"role": "user", "content":
"..."}, {"role": "assistant", "content": "..."}]}`. Other arguments are those of TRL's `SFTConfig` and `ModelConfig`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import is_bitsandbytes_available, is_torch_bf16_gpu_available
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from modeling_plt import PLTForCausalLM

from .arguments import parse
from .messages import load_messages
from .saved import load_config, load_tokenizer


@dataclass
class FinetuneArguments:
    dataset: str = field(metadata={"help": "a JSONL file whose lines have `messages`, or a hub id (split `train`)"})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "chats to evaluate on, at the end at least; of a hub id, the split `test`"}
    )
    merge: bool = field(
        default=False, metadata={"help": "also save base and adapter as one plain PLT, in the folder `merged`"}
    )


@dataclass
class ModelArguments(ModelConfig):
    """TRL's, for a PLT: LoRA targets all projections, and nothing else."""

    model_name_or_path: str = field(
        metadata={"aliases": ["--model"], "help": "a folder or hub id of a saved PLT, with its tokenizer"}
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "names of projections; `all-linear` are those of attention and MLP, but not the head"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.load_in_4bit or self.load_in_8bit):
            return
        if not self.use_peft:
            raise ValueError(
                "`load_in_4bit` and `load_in_8bit` need `use_peft`, as quantized weights are not trained."
            )
        if not is_bitsandbytes_available():
            raise ValueError(
                "`load_in_4bit` and `load_in_8bit` need bitsandbytes, which is not installed or cannot run."
            )


@dataclass
class TrainingArguments(SFTConfig):
    """TRL's, with packing, and with bf16 where a GPU has it."""

    packing: bool = field(
        default=True, metadata={"help": "several chats in a row of `max_length` tokens, each read as if it were alone"}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        super().__post_init__()
        path = self.chat_template_path
        if path is not None and not (path.endswith((".jinja", ".j2")) and Path(path).is_file()):
            raise ValueError(f"`chat_template_path` must be a file that ends in .jinja or .j2, got {path}.")


def check_chat_format(tokenizer: PreTrainedTokenizerBase, args: TrainingArguments) -> None:
    """Refuse a tokenizer that cannot write chats as tokens.

    Raises:
        ValueError: there is no chat template, or no token to end or pad with.
    """
    if tokenizer.chat_template is None and args.chat_template_path is None:
        raise ValueError(
            "The tokenizer must have a chat template, got none; give one by `--chat_template_path FILE.jinja`."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None and args.eos_token is None:
        raise ValueError("The tokenizer must have an end token, got none; name one by `--eos_token TOKEN`.")


def load_model(args: ModelArguments, quantized: bool) -> PLTForCausalLM:
    return PLTForCausalLM.from_pretrained(
        args.model_name_or_path,
        config=load_config(args.model_name_or_path, args.model_revision),
        revision=args.model_revision,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        quantization_config=get_quantization_config(args) if quantized else None,
    )


def save_merged(trainer: SFTTrainer, args: ModelArguments, folder: Path) -> None:
    """Save base and adapter as one PLT; the base is read again, as in training it may be quantized or sharded."""
    trained, base = trainer.model.get_base_model(), load_model(args, quantized=False)
    for config in ("config", "generation_config"):  # TRL has set the tokens that end and pad chats
        for name in ("eos_token_id", "pad_token_id"):
            setattr(getattr(base, config), name, getattr(getattr(trained, config), name))
    PeftModel.from_pretrained(base, trainer.args.output_dir).merge_and_unload().save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


def finetune(ours: FinetuneArguments, args: TrainingArguments, model_args: ModelArguments) -> SFTTrainer:
    """Train and save; the trainer, with the trained model."""
    config = load_config(model_args.model_name_or_path, model_args.model_revision)
    tokenizer = load_tokenizer(model_args.model_name_or_path, config, model_args.model_revision)
    check_chat_format(tokenizer, args)
    chats = load_messages(ours.dataset, "train")
    eval_chats = load_messages(ours.eval_dataset, "test") if ours.eval_dataset else None
    trainer = SFTTrainer(
        load_model(model_args, quantized=True),
        args,
        train_dataset=chats,
        eval_dataset=eval_chats,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[],
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if eval_chats is not None:
        trainer.log_metrics("eval", trainer.evaluate())
    if ours.merge and trainer.is_world_process_zero():
        save_merged(trainer, model_args, Path(args.output_dir) / "merged")
    return trainer


def main(arguments: list[str] | None = None) -> None:
    finetune(*parse(__doc__, (FinetuneArguments, TrainingArguments, ModelArguments), arguments))


if __name__ == "__main__":
    main()
