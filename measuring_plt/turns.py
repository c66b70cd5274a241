# SPDX-License-Identifier: Apache-2.0
"""All rows take turns within every round, so that a busy machine slows all of them alike."""

from collections.abc import Callable, Mapping

from torch.utils.benchmark import timer
from tqdm.auto import tqdm

WARMUP_ROUNDS = 1  # in which a sample decodes several tokens: a compiled step is recorded in its second call


def take_turns(
    samples: Mapping[str, Callable[[], object]],
    rounds: int,
    description: str,
    per_sample: int = 1,
    clock: Callable[[], float] = timer,
) -> list[dict[str, float]]:
    """Milliseconds of every sample by its name, for each round; `WARMUP_ROUNDS` more do not count.

    Args:
        samples: by name of the row. Each round starts with the next of them.
        description: for the progress bar.
        per_sample: how often a sample does what is timed; the times are of one.
        clock: seconds; `torch.utils.benchmark.timer` first waits for the accelerator, if there is one.
    """
    names = list(samples)
    lines = []
    for number in tqdm(range(WARMUP_ROUNDS + rounds), desc=description, unit="round"):
        first = number % len(names)
        line = {}
        for name in names[first:] + names[:first]:
            start = clock()
            samples[name]()
            line[name] = 1000 * (clock() - start) / per_sample
        lines.append({name: line[name] for name in names})
    return lines[WARMUP_ROUNDS:]
