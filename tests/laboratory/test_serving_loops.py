"""Latency and parallel efficiency by loops, as the benchmark of vLLM makes them of times."""

import pandas as pd

from laboratory.report import records
from laboratory.serving.loops import ROWS, loops_section

# milliseconds in two rounds; the machine slows down in the second
TIMES = {"plain": [10, 40], "loop-2": [18, 80], "loop-3": [27, 120], "loop-4": [36, 160]}
TIMES |= {"plt-2": [12, 40], "plt-3": [18, 40], "plt-4": [36, 80]}


def test_the_parallel_efficiency_is_the_median_of_rounds_of_loops_in_turn_over_as_many_passes():
    assert set(TIMES) == ROWS
    section = loops_section({batch: batch * pd.DataFrame(TIMES) for batch in (1, 4)}, 32, "a machine")
    found = records(section.table)
    passes = [line for line in found if line["kind"] == "PLT"]
    assert [(line["batch"], line["loops"]) for line in passes] == [
        (batch, n) for batch in (1, 4) for n in (1, 2, 3, 4)
    ]
    # of two loops 18 / (2 * 12) and 80 / (2 * 40), of three 0.5 and 1, of four 0.25 and 0.5
    assert [line["parallel efficiency"] for line in passes] == 2 * [1, (0.75 + 1) / 2, 0.75, 0.375]
    assert passes[1]["parallel efficiency, by round"] == [0.75, 1]
    assert (passes[1]["ms per token"], passes[5]["ms per token"]) == (26, 104)
    assert passes[1]["ratio to plain"] == (1.2 + 1) / 2
    vanilla = [line for line in found if line["kind"] == "vanilla loop" and line["batch"] == 1]
    assert [line["ms per token, by round"] for line in vanilla] == [TIMES[row] for row in list(TIMES)[:4]]
    assert all(line["parallel efficiency"] is None for line in vanilla)
    assert set(section.figures) == {"efficiency_by_loops", "latency_by_loops_batch_1", "latency_by_loops_batch_4"}
