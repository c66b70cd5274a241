# SPDX-License-Identifier: Apache-2.0
"""The arguments of fine-tuning: TRL's, with the defaults of a PLT, and which chats to read."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers.utils import is_bitsandbytes_available, is_torch_bf16_gpu_available
from trl import ModelConfig, SFTConfig

from ..trainer.arguments import refuse_rate, refuse_reentrant
from ..trainer.finite import refuse_filter


@dataclass
class ChatArguments:
    dataset: str = field(
        metadata={"help": "Chats: a JSONL file whose lines have `messages`, or a hub id (split `train`)."}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Chats to evaluate on, at the end at least; of a hub id, the split `test`."}
    )
    merge: bool = field(
        default=False, metadata={"help": "Save base and adapter as one PLT, too, in the folder `merged`."}
    )


@dataclass
class BaseArguments(ModelConfig):
    """TRL's, for a PLT: LoRA targets all projections, those of experts too, and nothing else."""

    model_name_or_path: str = field(
        metadata={"aliases": ["--model"], "help": "Folder or hub id of a saved PLT with its tokenizer."}
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={
            "help": "Projections that get an adapter; `all-linear` are those of attention and MLP, also of every "
            "expert, but neither the head nor the router."
        },
    )
    lora_target_parameters: list[str] | None = field(
        default=None,
        metadata={
            "help": "Weights that get an adapter without being modules; with `all-linear`, those of experts "
            "(mlp.experts.gate_up_proj, mlp.experts.down_proj)."
        },
    )
    lora_dropout: float | None = field(  # type: ignore[assignment]  # filled in before TRL reads it
        default=None,
        metadata={"help": "Dropout of the adapter: 0.05 if not given, or 0 with experts, for which there is none."},
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
                "`load_in_4bit` and `load_in_8bit` need bitsandbytes, which is missing or cannot run here."
            )


@dataclass
class FinetuneArguments(SFTConfig):
    """TRL's, with packing, with bf16 where a GPU has it, and with speed in the log."""

    packing: bool = field(
        default=True,
        metadata={"help": "Pack several chats into a sequence of `max_length` tokens, each read as if it were alone."},
    )
    logging_nan_inf_filter: bool = False
    dataloader_pin_memory: bool = torch.accelerator.is_available()  # torch warns where there is none
    include_num_input_tokens_seen: str = field(
        default="all", metadata={"help": "Tokens that the speed is computed of.", "choices": ["all"]}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        if "activation_checkpointing" in self.__dataclass_fields__ and self.activation_checkpointing is None:
            # TRL sets the older name, of which transformers warns since 5.23
            self.activation_checkpointing = self.gradient_checkpointing
            self.gradient_checkpointing = None  # type: ignore[assignment]
        super().__post_init__()
        refuse_reentrant(self)
        refuse_rate(self)
        refuse_filter(self)
        path = self.chat_template_path
        if path is not None and not (path.endswith((".jinja", ".j2")) and Path(path).is_file()):
            raise ValueError(f"`chat_template_path` must be a file that ends in .jinja or .j2, got {path}.")
