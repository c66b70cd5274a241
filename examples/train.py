"""Train a small PLT with `Trainer`, and save a folder that loads anywhere.

    python examples/train.py --data runs/data --output runs/plt
    python examples/train.py --data runs/data --output runs/plain --set num_loops=1

reads what `prepare.py --output runs/data` wrote; `--set` changes any field of `PLTConfig`. Needs the extra `train`.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_from_disk
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from configuration_plt import PLTConfig
from configuration_plt.assignments import parse_assignments
from modeling_plt import PLTForCausalLM
from training_plt.pretrain.presets import PRESETS
from training_plt.trainer.decay import SpareGatesAndScales


class PLTTrainer(SpareGatesAndScales, Trainer):
    """A Trainer whose weight decay leaves the gates alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that `prepare.py` wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of 8 rows of 128 tokens")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of PLTConfig")
    args = parser.parse_args()
    if not (args.data / "rows").is_dir():
        parser.error(f"{args.data} has no rows to train on: `python examples/prepare.py --output {args.data}` first")
    rows, tokenizer = load_from_disk(args.data / "rows"), AutoTokenizer.from_pretrained(args.data)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        config = PLTConfig(**(PRESETS["tiny"] | {"vocab_size": len(tokenizer)} | tokens | parse_assignments(args.set)))
    except (ValueError, StrictDataclassError) as error:
        parser.error(f"--set {' '.join(str(error).split())}")  # some have lines

    set_seed(0)
    model = PLTForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {config.num_loops} loops, {config.loop_attention}")
    arguments = TrainingArguments(
        args.output,
        max_steps=args.steps,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=max(args.steps // 10, 1),
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=100,
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
    )
    trainer = PLTTrainer(
        model, arguments, train_dataset=rows["train"], eval_dataset=rows["test"], processing_class=tokenizer
    )
    trainer.train()
    print(f"held-out loss {trainer.evaluate()['eval_loss']:.3f}")
    trainer.save_model()  # weights, config, tokenizer, and the code that loads them anywhere
    print(f"Next: python examples/generate.py --model {args.output}")


if __name__ == "__main__":
    main()
