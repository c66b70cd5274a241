"""A prompt that is pruned too much answers otherwise, as does a prefix whose windows were not all written."""

import pytest
from engines import PRUNED, engine, logprobs_of, served_with_logprobs, shared_beginnings
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager

from modeling_plt.passes_plt import needed_positions
from serving_plt.vllm import pruning


def one_too_few(*arguments) -> list[list[list[int]]]:
    """The positions that are needed, but for one of each request."""
    return [[[max(1, number - 1) for number in spans] for spans in stage] for stage in needed_positions(*arguments)]


MISTAKES = {
    "none": (pruning, "needed_positions", needed_positions),
    "a reach one too short": (pruning, "needed_positions", one_too_few),
    "a block that was not written": (
        pruning.WindowManager,
        "reachable_block_mask",
        SlidingWindowManager.reachable_block_mask,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake, folder, model, monkeypatch):
    monkeypatch.setattr(*MISTAKES[mistake])
    differences = []
    with engine(folder, **PRUNED) as llm:
        for prompt in shared_beginnings():
            tokens, given = served_with_logprobs(llm, [prompt])
            expected = logprobs_of(model, [prompt], tokens)
            differences += [abs(one - other) for one, other in zip(given[0], expected[0], strict=True)]
    assert (max(differences) > 0.1) == (mistake != "none")
    assert mistake != "none" or max(differences) < 1e-3
