# SPDX-License-Identifier: Apache-2.0
"""A comparison of greedy tokens with a reference, where rounding may choose between two that are nearly as likely.

Up to the first token that differs, both have seen the same tokens, so their log probabilities there can be compared:
they must differ by no more than a bound. Then a token may differ only where the reference prefers its own by no more
than twice that bound. After such a near tie the two go on from different tokens, and are not compared any more.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modeling_plt import PLTForCausalLM

from .row import DIFFERS, EQUAL, Row

# of log probabilities
IN_FLOAT32 = 1e-3  # sums in another order
IN_TF32 = 2e-2  # vLLM's attention in float32 is Triton's, whose products round to TF32
IN_BFLOAT16 = 0.4


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, with log probabilities before each of them.

    Attributes:
        tokens: T of them.
        ids: for each of the T, some ids of tokens.
        logprobs: of these ids.
    """

    tokens: list[int]
    ids: list[Tensor]
    logprobs: list[Tensor]


def compare(check: str, reference: list[Answer], answers: list[Answer], bound: float) -> Row:
    """A row that says whether answers are those of a reference, whose ids are the whole vocabulary in order."""
    greatest, compared, ties, wrong = 0.0, 0, 0, 0
    for expected, found in zip(reference, answers, strict=True):
        equal = num_equal(expected.tokens, found.tokens)
        for step in range(min(equal + 1, len(expected.tokens))):
            difference = (expected.logprobs[step][found.ids[step]] - found.logprobs[step]).abs().max().item()
            greatest = max(greatest, difference if difference == difference else float("inf"))
            compared += 1
        if equal < len(expected.tokens):
            logprobs = expected.logprobs[equal]
            gap = (logprobs[expected.tokens[equal]] - logprobs[found.tokens[equal]]).item()
            ties, wrong = ties + (gap <= 2 * bound), wrong + (gap > 2 * bound)
    total = sum(len(expected.tokens) for expected in reference)
    figures: dict[str, float | str] = {
        "tokens compared": f"{compared} of {total}",
        "near ties": ties,
        "other tokens": wrong,
    }
    figures |= {"greatest difference of log probabilities": greatest, "bound": bound}
    return Row(check, EQUAL if greatest <= bound and not wrong else DIFFERS, figures)


def num_equal(expected: list[int], tokens: list[int]) -> int:
    """The number of equal tokens before the first that is not."""
    pairs = zip(expected, tokens, strict=True)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(expected))


def generated(model: PLTForCausalLM, prompts: list[list[int]], new_tokens: int, **settings: Any) -> list[Answer]:
    """The answers of `generate` to prompts in one batch, padded on the left."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    output = model.generate(
        padded,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **settings,
    )
    logprobs = torch.stack(output.logits, dim=1).float().log_softmax(dim=-1).cpu()  # [B, T, V]
    tokens, every = output.sequences[:, longest:].tolist(), torch.arange(logprobs.shape[-1])
    return [Answer(own, [every] * new_tokens, list(rows)) for own, rows in zip(tokens, logprobs, strict=True)]


def random_prompts(lengths: list[int], vocab_size: int, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]
