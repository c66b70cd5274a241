"""A later loop of a new model learns something, with the scales that the config gives it."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

LETTERS, LENGTH, NOWHERE = 8, 24, -100  # the label that cross entropy leaves out


def induction(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random letters and, for each, the one that came after its last place before: `[count, LENGTH]` both.

    One layer needs two loops for it: the first tells each position which letter came before it.
    """
    steps = torch.randint(1, LETTERS, (count, LENGTH), generator=generator)
    letters = steps.cumsum(dim=1) % LETTERS  # none follows itself
    answers, last = torch.full_like(letters, NOWHERE), torch.full((count, LETTERS), NOWHERE)
    for position, letter in enumerate(letters.split(1, dim=1)):
        if position:
            last.scatter_(1, letters[:, position - 1 : position], letter)
        answers[:, position : position + 1] = last.gather(1, letter)
    return letters, answers


def read_out(model: PLTForCausalLM, letters: Tensor) -> list[Tensor]:
    """The logits of every loop, `[B, LENGTH, LETTERS]` each."""
    states = model(letters, output_loop_hidden_states=True, use_cache=False).loop_hidden_states
    return [model.lm_head(loop) for loop in states]


def accuracy_by_loop(steps: int, **scales: float) -> list[float]:
    """How many answers each loop knows after a training of all loops; chance is about 1 / 7."""
    torch.manual_seed(0)
    sizes = {"vocab_size": LETTERS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    model = PLTForCausalLM(PLTConfig(num_attention_heads=4, **sizes, **tokens, **scales))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        letters, answers = induction(32, generator)
        losses = [cross_entropy(logits.flatten(0, 1), answers.flatten()) for logits in read_out(model, letters)]
        sum(losses).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    letters, answers = induction(512, torch.Generator().manual_seed(1))
    asked = answers != NOWHERE
    with torch.no_grad():
        return [(logits.argmax(-1) == answers)[asked].float().mean().item() for logits in read_out(model, letters)]


def test_with_the_default_scales_a_later_loop_learns_what_loop_0_cannot():
    first, last = accuracy_by_loop(steps=250)
    assert first < 0.6  # what one pass through one layer can know: counts of letters, and the nearest ones
    assert last > first + 0.3
