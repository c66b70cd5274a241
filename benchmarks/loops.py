# SPDX-License-Identifier: Apache-2.0
"""Decoding as the number of loops grows, and how much of it happens in parallel."""

from dataclasses import dataclass

from benchmarks_plt.decode import measure_decoding
from benchmarks_plt.models import SharedWeights
from benchmarks_plt.rows import LOOPED_ROWS
from benchmarks_plt.timing import Timed


@dataclass(frozen=True)
class Looped:
    """A number of loops; `kind` says which."""

    kind: str
    timed: Timed

    @property
    def efficiency(self) -> float:
        """Time of one loop over that of L: 1 if further loops are free, 1 / L if each costs as much as the first."""
        return 1 / self.timed.timing.ratio

    def record(self) -> dict:
        row = self.timed.row
        return (
            {"kind": self.kind, "loops": row.num_loops}
            | self.timed.point
            | self.timed.timing.record("ms per token")
            | {"parallel efficiency": self.efficiency}
        )


def measure_loops(weights: SharedWeights, batch_size: int, context: int, rounds: int) -> list[Looped]:
    """One point, all loop counts in the same rounds; one loop is the plain row and stands under both kinds."""
    rows = list({row.name: row for rows in LOOPED_ROWS.values() for row in rows}.values())
    timed = {item.row.name: item for item in measure_decoding(weights, rows, (batch_size,), (context,), rounds)}
    return [Looped(kind, timed[row.name]) for kind, rows in LOOPED_ROWS.items() for row in rows]
