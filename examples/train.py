"""Pretrain a small PLT with `Trainer` and save a folder that loads anywhere.

    python examples/train.py --output runs/plt
    python examples/train.py --output runs/plain --set num_loops=1

trains on the standard library's source in a minute or two on two cores; `--dataset` and `--tokenizer` take local
files or hub ids instead. `--set` changes any field of `PLTConfig`. Beside the model it saves the tokenizer and, as
`held_out.jsonl`, the texts that were not trained on.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from corpus import load_texts, load_tokenizer, pack
from datasets import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from configuration_plt import PLTConfig
from configuration_plt.assignments import parse_assignments
from conversion_plt.place import check_place
from conversion_plt.staging import staged
from modeling_plt import PLTForCausalLM

LENGTH = 128  # tokens a row

# one layer, so that a minute of training shows what running it twice adds
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "sliding_window": 16,
    "hidden_scale": 0.05,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; replaced if it exists")
    parser.add_argument("--dataset", help="hub id or local file with a column `text`")
    parser.add_argument("--tokenizer", help="hub id or local folder")
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of 8 rows of 128 tokens")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of PLTConfig")
    return parser.parse_args()


def parse_fields(assignments: list[str]) -> dict:
    """Fields of PLTConfig, or the end of the program."""
    try:
        return parse_assignments(assignments)
    except ValueError as error:
        raise SystemExit(f"`--set` {error}.") from None


def main() -> None:
    args = parse_args()
    try:
        check_place(args.output, overwrite=True)
    except FileExistsError as error:
        raise SystemExit(f"`--output`: {error}") from None
    set_seed(0)
    train_texts, held_out_texts = load_texts(args.dataset)
    tokenizer = load_tokenizer(args.tokenizer, train_texts)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = PLTConfig(**(SIZES | {"vocab_size": len(tokenizer)} | tokens | parse_fields(args.set)))
    model = PLTForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {config.num_loops} loops, {config.loop_attention}")

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
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
        trainer = Trainer(
            model,
            arguments,
            # texts are tokenized as they are needed
            train_dataset=pack(train_texts.to_iterable_dataset(), tokenizer, LENGTH).shuffle(0, buffer_size=2000),
            eval_dataset=pack(held_out_texts, tokenizer, LENGTH),
            processing_class=tokenizer,
        )
        trainer.train()
        print(f"held-out loss {trainer.evaluate()['eval_loss']:.3f}")
    save(trainer, held_out_texts, args.output)


def save(trainer: Trainer, held_out_texts: Dataset, output: Path) -> None:
    """Save model, tokenizer and held-out texts; an interrupted run leaves no half of a folder under the name."""
    with staged(output, overwrite=True) as folder:
        trainer.save_model(folder)
        held_out_texts.to_json(folder / "held_out.jsonl")
    print(f"saved {output.resolve()}")


if __name__ == "__main__":
    main()
