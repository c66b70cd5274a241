# SPDX-License-Identifier: Apache-2.0
"""p-hop induction (arXiv 2502.17416): follow a letter to what came after it before, p times.

N sequences, T letters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .harness.definition import Experiment, GeneratedTask
from .harness.examples import NO_ANSWER, Examples
from .harness.sizes import CELLS, FIELDS, SMEARED

NOWHERE = -1


@dataclass(frozen=True)
class Hops(GeneratedTask):
    """A token for the number of hops, then random letters; every letter that has an answer is asked.

    With letters v, one hop from i leads to the greatest j <= i with v[j - 1] = v[i]; the answer to p hops from i is
    the letter that they lead to. No letter follows itself: one hop from the second of the two would stay there.
    The paper asks at the last letter only; asking everywhere gives as many answers in far fewer steps.
    """

    alphabet: int = 4
    length: int = 48
    max_hops: int = 4
    group: str = "hops"

    @property
    def vocab_size(self) -> int:
        return self.alphabet + self.max_hops

    def generate(self, count: int, generator: torch.Generator) -> Examples:
        letters = random_letters(count, self.length, self.alphabet, generator)
        hops = torch.randint(1, self.max_hops + 1, (count, 1), generator=generator)
        answers = answers_of(letters, found_after(letters, hops))
        return as_examples(self.alphabet + hops - 1, letters, answers, hops.expand_as(letters))


def random_letters(count: int, length: int, alphabet: int, generator: torch.Generator) -> Tensor:
    """`[count, length]`, none equal to the one before it."""
    steps = torch.randint(1, alphabet, (count, length), generator=generator)
    steps[:, 0] = torch.randint(alphabet, (count,), generator=generator)
    return steps.cumsum(dim=1) % alphabet


def one_hop(letters: Tensor) -> Tensor:
    """The position to which one hop from each position leads, or `NOWHERE`: `[N, T]` -> `[N, T]`."""
    after = letters.new_full(
        (len(letters), int(letters.max()) + 1), NOWHERE
    )  # the position after a letter's last place
    found = []
    for position, letter in enumerate(letters.split(1, dim=1)):
        found.append(after.gather(1, letter))
        after.scatter_(1, letter, position + 1)
    return torch.cat(found, dim=1)


def found_after(letters: Tensor, hops: Tensor) -> Tensor:
    """The position to which `hops` `[N, 1]` hops lead from each position, or `NOWHERE`."""
    step = one_hop(letters)
    found = torch.arange(letters.shape[1]).expand_as(letters)
    for number in range(int(hops.max())):
        further = step.gather(1, found.clamp(min=0)).where(found != NOWHERE, NOWHERE)
        found = further.where(number < hops, found)
    return found


def answers_of(letters: Tensor, found: Tensor) -> Tensor:
    """The letters at the places that were found, or `NO_ANSWER`."""
    return letters.gather(1, found.clamp(min=0)).where(found != NOWHERE, NO_ANSWER)


def as_examples(first: Tensor, letters: Tensor, answers: Tensor, groups: Tensor) -> Examples:
    """A first token `[N, 1]` and the letters; the answer and the group of each, one place later, where labels belong.

    The last letter is not asked: its label would stand after the end.
    """
    nothing = torch.full((len(letters), 2), NO_ANSWER)
    return Examples(
        torch.cat((first, letters), dim=1),
        torch.cat((nothing, answers[:, :-1]), dim=1),
        torch.cat((nothing, groups[:, :-1]), dim=1),
    )


EXPERIMENT = Experiment(
    name="hops",
    question="How many hops of induction does each row learn?",
    task=Hops(),
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 2, "sliding_window": 16},
    cells=(*CELLS, SMEARED),
    learning_rates=(2e-3, 4e-3),
    steps=1000,
    batch_size=32,
)
