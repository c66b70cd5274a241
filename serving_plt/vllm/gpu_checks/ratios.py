# SPDX-License-Identifier: Apache-2.0
"""Milliseconds of plain, and how many times as long the other rows take."""

from statistics import median


def figures(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the rounds; ratios are to plain in the same round.

    Args:
        rounds: milliseconds by the name of the row, one of which is plain.
    """
    others = [name for name in rounds[0] if name != "plain"]
    ratios = {f"{name} / plain": median(line[name] / line["plain"] for line in rounds) for name in others}
    return {"plain, ms": median(line["plain"] for line in rounds)} | ratios
