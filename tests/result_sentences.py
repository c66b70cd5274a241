"""The sentences of the pages on results, and the cells of the tables that they speak of."""

import re
from functools import cache

from result_pages import results_of, sections_of

INTERVAL = r" ± \d*\.\d+"
NUMBER = rf"(-?\d*\.?\d+(?:{INTERVAL})?)"


@cache
def prose(page: str) -> list[str]:
    """The sentences of each section, without code blocks and tables, in one line."""
    texts = [re.sub(r"```.*?```", "", section, flags=re.DOTALL) for section in sections_of(page)]
    lines = [[line for line in text.splitlines() if not line.startswith("|")] for text in texts]
    return [" ".join(" ".join(each).split()) for each in lines]


def places(page: str, sentence: str) -> list[tuple[int, re.Match[str]]]:
    """Where a sentence stands, with what stands for each `{}`: the number of its section, and the match."""
    pattern = re.escape(sentence).replace(r"\{\}", NUMBER)
    return [(number, found) for number, text in enumerate(prose(page)) for found in re.finditer(pattern, text)]


@cache
def published(study: str) -> dict[tuple[str, str], str]:
    """What stands in the table and among the differences of a study, by row and column."""
    pairs = results_of(study, "differences.md").items()
    return results_of(study) | {(row, f"minus {column}"): value for (row, column), value in pairs}
