# SPDX-License-Identifier: Apache-2.0
"""Say what each loop of a saved model adds on a text, and which loop count that speaks for.

    plt diagnose --model runs/demo/plt --text README.md --output runs/diagnose
    plt diagnose --model MODEL --text held_out.txt --output DIR --dtype bfloat16 --max-sequences 64

`MODEL` is a PLT, a vanilla loop, a plain decoder or anything between them, as a folder or hub id of this package.
`training_plt.diagnose.diagnostics` defines what is measured.
"""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from ..command.arguments import parse, refusing
from ..command.ending import say_what_was_made
from ..command.saved import load_config, load_tokenizer_of
from .diagnostics import choose_loops, diagnose
from .plots import plot_gates, plot_loops

COLUMNS = ["loss", "refinement_gain", "effective_rank", "step_size", "update_cosine", "offset_cost"]


@dataclass
class DiagnoseArguments:
    model: str = field(
        metadata={"help": "Folder or hub id of a saved PLT, vanilla loop or plain decoder of this package."}
    )
    text: str = field(metadata={"help": "Text file, best one that the model was not trained on."})
    output: str = field(metadata={"help": "Folder for diagnostics.json, loops.png and gates.png."})
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that the model reads at once; by default 1024, or its context if shorter."},
    )
    max_sequences: int | None = field(
        default=None, metadata={"help": "Sequences that are read at most; by default all."}
    )
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Device, as torch names it."}
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="float32", metadata={"help": "Type of the weights; `auto` is what they are saved in."}
    )

    def __post_init__(self) -> None:
        if self.sequence_length is not None and self.sequence_length < 2:
            raise ValueError(f"`--sequence-length` must be at least 2, got {self.sequence_length}.")
        if self.max_sequences is not None and self.max_sequences < 1:
            raise ValueError(f"`--max-sequences` must be at least 1, got {self.max_sequences}.")


def read_sequences(
    args: DiagnoseArguments, config: PLTConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, ...]:
    """The text as sequences of token ids `[T]`, the last of which may be shorter.

    Raises:
        ValueError: the text has fewer than two tokens, so nothing can be predicted.
    """
    text = Path(args.text).read_text(encoding="utf-8")
    # the text is longer than the model's context, which the tokenizer would warn of
    input_ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0].long()
    if len(input_ids) < 2:
        raise ValueError(f"The text must have at least 2 tokens, got {len(input_ids)} in {args.text}.")
    length = args.sequence_length or min(1024, config.max_position_embeddings)
    return input_ids.split(length)[: args.max_sequences]


def reading(effective_rank: list[float]) -> str:
    """How the rule for the loop count reads these ranks, in one line."""
    chosen = choose_loops(effective_rank)
    ranks = " -> ".join(f"{rank:.1f}" for rank in effective_rank)
    rule = f"By the rule to add a loop only while effective rank still rises: {chosen} of {len(effective_rank)}"
    if len(effective_rank) == 1:
        return f"{rule}, as there is nothing to compare (effective rank {ranks})."
    if chosen == len(effective_rank):
        return f"{rule}, as it rises to the last loop (effective rank {ranks}); a further one may still pay."
    return f"{rule}, as loop {chosen} (counted from 0) does not raise it (effective rank {ranks})."


def loads(expert_load: list[list[float]]) -> str:
    """How evenly experts are used, in one line."""
    shares = [f"{min(load):.3f} to {max(load):.3f}" for load in expert_load]
    return f"Share of choices per expert, 1 / E = {1 / len(expert_load[0]):.3f} if even: {'; '.join(shares)} by layer."


def describe(args: DiagnoseArguments, config: PLTConfig, sequences: tuple[Tensor, ...]) -> dict:
    """The setting in which the numbers were measured."""
    mechanisms = ("num_loops", "loop_shift", "loop_attention", "sliding_window", "gate_input", "loop_norm")
    return (
        asdict(args)
        | {"sequence_length": len(sequences[0]), "sequences": len(sequences), "tokens": sum(map(len, sequences))}
        | {"config": {name: getattr(config, name) for name in mechanisms}}
        | {"versions": {name: version(name) for name in ("parallel-loop-transformer", "torch", "transformers")}}
    )


def main(arguments: list[str] | None = None) -> None:
    (args,) = parse("plt diagnose", __doc__, (DiagnoseArguments,), arguments)
    with refusing():
        config = load_config(args.model)
        sequences = read_sequences(args, config, load_tokenizer_of(args.model, config.vocab_size))
    model = PLTForCausalLM.from_pretrained(args.model, config=config, dtype=args.dtype).to(args.device).eval()
    results = diagnose(model, tqdm(sequences, unit="sequence"))

    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    line = reading(results["effective_rank"])
    rule = {"chosen_loops": choose_loops(results["effective_rank"]), "reading": line}
    content = results | rule | {"setting": describe(args, config, sequences)}
    (output / "diagnostics.json").write_text(json.dumps(content, indent=2) + "\n")
    table = pd.DataFrame({name: results[name] for name in COLUMNS}, dtype=float).rename_axis("loop")
    plot_loops(table).savefig(output / "loops.png", dpi=150)
    if config.has_gate:
        plot_gates(results["mean_gate"], config.looped_stage.layers).savefig(output / "gates.png", dpi=150)
        table["mean_gate"] = pd.DataFrame(results["mean_gate"], dtype=float).mean()
    if results["expert_overlap"]:
        table["expert_overlap"] = pd.DataFrame(results["expert_overlap"], dtype=float).mean()
    print(table.to_markdown(floatfmt=".4g"))
    if results["expert_load"]:
        print(loads(results["expert_load"]))
    print(line)
    tokens, loops = sum(map(len, sequences)), len(results["loss"])
    say_what_was_made(
        f"diagnostics of {args.model}, num_loops={loops}, on {tokens:,} tokens",
        output,
        f"look at loops.png there; plt pretrain --set num_loops={rule['chosen_loops']} follows the rule",
    )


if __name__ == "__main__":
    main()
