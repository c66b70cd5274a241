# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a later loop's window with masks in blocks, as the model makes them, and with a dense mask.

The attention is `PLTAttention.attend_window` for both; the dense mask is that of transformers' windowed models.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.masking_utils import create_sliding_window_causal_mask

from configuration_plt import PLTConfig
from measuring_plt.models import Setup, row_config
from measuring_plt.rows import ROWS
from measuring_plt.turns import take_turns
from modeling_plt.attention_plt import PLTAttention
from modeling_plt.names_plt import THEIRS
from modeling_plt.sequence_plt import read_tokens

from .alone import can_measure, measure_bytes, run_alone


def make_blocks(config: PLTConfig, tokens: Tensor) -> Any:
    return read_tokens(config, tokens, None, None, None).window_mask


def make_dense(config: PLTConfig, tokens: Tensor) -> Any:
    positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
    inputs = {"inputs_embeds": tokens, "attention_mask": None, "position_ids": positions}
    return create_sliding_window_causal_mask(config=config, **inputs, **{THEIRS: None})


MASKS: dict[str, Callable[[PLTConfig, Tensor], Any]] = {"blocks": make_blocks, "dense": make_dense}
WORK = ("mask", "forward", "forward and backward")


class Case(NamedTuple):
    """One layer of plt-2 and one later loop, over T tokens, batch 1."""

    setup: Setup
    num_tokens: int

    def layer(self) -> PLTAttention:
        """With no weights, which the window does not read."""
        config = row_config(self.setup.fields, ROWS["plt-2"])
        assert isinstance(config, PLTConfig)  # the row is not that of Llama
        config._attn_implementation = self.setup.attn_implementation
        with torch.device("meta"):
            return PLTAttention(config, 0).eval()

    def random(self, *shape: int) -> Tensor:
        generator = torch.Generator(self.setup.device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=self.setup.device, dtype=self.setup.dtype)

    def inputs(self, config: PLTConfig) -> list[Tensor]:
        """Query, key and value `[1, 1, heads, T, Dh]`."""
        assert config.num_key_value_heads is not None and config.head_dim is not None  # the config has set both
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        return [self.random(1, 1, number, self.num_tokens, config.head_dim) for number in heads]

    def work(self, kind: str, mask: str) -> Callable[[], Any]:
        """The work to measure, which may be called again; masks are made before, unless making them is the work."""
        layer = self.layer()
        make = MASKS[mask]
        tokens = self.random(1, self.num_tokens, 1)
        if kind == "mask":
            return lambda: make(layer.config, tokens)
        made, inputs = make(layer.config, tokens), self.inputs(layer.config)
        query, key, value = inputs
        if kind == "forward":
            return torch.inference_mode()(lambda: layer.attend_window(query, key, value, made))
        for each in inputs:
            each.requires_grad_()
        return lambda: torch.autograd.grad(layer.attend_window(query, key, value, made).sum(), inputs)


def peak_of(setup: Setup, num_tokens: int, kind: str, mask: str) -> int:
    """Bytes, alone in a process."""
    work = Case(setup, num_tokens).work(kind, mask)
    work()  # what libraries keep of a first time is no part of it
    return measure_bytes(work, setup.device)[0].peak


def measure_masks(setup: Setup, lengths: list[int], rounds: int) -> pd.DataFrame:
    """A line for each length and kind of work, both masks in it."""
    records = []
    for length in lengths:
        for kind in WORK:
            samples = {mask: Case(setup, length).work(kind, mask) for mask in MASKS}
            times = pd.DataFrame(take_turns(samples, rounds, f"{kind}, {length} tokens"))
            del samples
            line: dict[str, Any] = {"tokens": length, "work": kind}
            line |= {f"{mask}, ms": times[mask].median() for mask in MASKS}
            line["blocks / dense"] = (times["blocks"] / times["dense"]).median()
            if can_measure(setup.device):
                for mask in tqdm(MASKS, desc="Peak memory", unit="process"):
                    line[f"{mask}, MB"] = run_alone(peak_of, setup, length, kind, mask) / 1e6
            records.append(line | {f"{mask}, ms, by round": times[mask].tolist() for mask in MASKS})
    return pd.DataFrame(records)
