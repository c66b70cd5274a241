"""The pages on results: every order of rows that a sentence claims is that of the results."""

import json
import re
from functools import cache

import pandas as pd
import pytest
from result_pages import PAGES, ROOT
from result_sentences import places, prose, published

from laboratory.tasks import load
from laboratory.tasks.harness.report import overall, points_of, scores_by_seed
from laboratory.tasks.harness.store import Store

TASKS = ("language", "hops", "mano", "capo", "swaps")
# page, what it claims, and the rows of which it is said: `same`, no difference is shown; `ahead`, the interval of the
# first one's lead is above zero; `each seed`, it leads with each of them
CLAIMS = (
    ("results", "On language and hops `smear` has all of PLT-2's gain", "same", ("language", "smear", "plt-2")),
    ("results", "On language and hops `smear` has all of PLT-2's gain", "same", ("hops", "smear", "plt-2")),
    ("results", "on reach it has more than PLT-2 with a window of 8", "ahead", ("reach", "smear", "plt-2, window 8")),
    ("results", "Mano, where its own gain is within its interval", "same", ("mano", "smear", "plain")),
    ("results", "is not shown to be better than plain", "same", ("core_hops", "plt-2, prelude 1, coda 1", "plain")),
    (
        "results",
        "better than `loop-2` or plain is not shown",
        "same",
        ("core_hops", "loop-2, prelude 1, coda 1", "loop-2"),
    ),
    (
        "results",
        "better than `loop-2` or plain is not shown",
        "same",
        ("core_hops", "loop-2, prelude 1, coda 1", "plain"),
    ),
    ("results", "cannot be told from plain, and is worse", "same", ("cores", "loop-2, prelude 1, coda 1", "plain")),
    ("results", "PLT-3 is above PLT-2 by", "ahead", ("swaps", "plt-3", "plt-2")),
    ("results", "`loop-3` above `loop-2` by", "ahead", ("swaps", "loop-3", "loop-2")),
    ("results", "`smear + loop-3` above `smear + loop-2`", "ahead", ("swaps", "smear + loop-3", "smear + loop-2")),
    ("results", "ahead with each of the three seeds", "each seed", ("swaps", "smear + loop-3", "plt-3")),
    ("results", "the interval still holds zero", "same", ("swaps", "smear + loop-3", "plt-3")),
    ("results", "PLT-3 is above `deep-3`", "ahead", ("swaps", "plt-3", "deep-3")),
    ("results", "and cannot be told from `loop-3`", "same", ("swaps", "plt-3", "loop-3")),
    ("results", "`loop-3` cannot be told from `deep-3`", "same", ("swaps", "loop-3", "deep-3")),
    ("results", "cannot be told from twice the layers (`deep-2`", "same", ("swaps", "plt-2", "deep-2")),
    ("results", "cannot be told from twice the layers (`deep-2`", "same", ("swaps", "smear + loop-2", "deep-2")),
    ("results", "`loop-2` alone is below `deep-2`", "ahead", ("swaps", "deep-2", "loop-2")),
    ("results", "(`shared-2`) is no better than `smear`", "same", ("swaps", "shared-2", "smear")),
    ("results", "on hops, where shared KV alone cannot be told from plain", "same", ("hops", "shared-2", "plain")),
    *(
        ("results", "`loop-2` and `shift-2` cannot be told from `plt-2` on any task but reach", "same", pair)
        for pair in ((task, row, "plt-2") for task in TASKS for row in ("loop-2", "shift-2"))
    ),
    ("results", "The shift** gains", "ahead", ("swaps", "shift-2", "loop-2")),
    ("results", "`shift-2` leaves more bits than `loop-2` with each", "each seed", ("capo", "loop-2", "shift-2")),
    *(
        ("results", "On language and swaps PLT-2 cannot be told from plain with twice the layers", "same", pair)
        for pair in ((task, "plt-2", "deep-2") for task in ("language", "swaps"))
    ),
    *(
        ("results", "on hops, Mano and capo it is below it", "ahead", pair)
        for pair in ((task, "deep-2", "plt-2") for task in ("hops", "mano", "capo"))
    ),
    (
        "results",
        "A window of one token, with a gate, is worse than shared KV alone",
        "ahead",
        ("window", "shared-2", "plt-2, window 1"),
    ),
    (
        "results",
        "The gate's training** is not shown to be worth anything",
        "same",
        ("window", "plt-2, window 8", "plt-2, window 8, plt_gate frozen"),
    ),
    ("results", "`plt-2, window 1` is below `plain`", "ahead", ("reach", "plain", "plt-2, window 1")),
    ("results", "`smear` cannot be told from PLT-2 here", "same", ("hops", "smear", "plt-2")),
    ("results", "`plt-3` is above `smear`", "ahead", ("hops", "plt-3", "smear")),
    (
        "results",
        "computes as much as PLT-2, on twice the text, and cannot be told from it",
        "same",
        ("language", "plain, 2 times the steps", "plt-2"),
    ),
    ("results", "`smear` cannot either", "same", ("language", "smear", "plt-2")),
    ("results", "`loop-2` is below `smear`", "ahead", ("language", "loop-2", "smear")),
    ("results", "`plt-3` is below `smear`", "ahead", ("language", "plt-3", "smear")),
    ("results", "PLT-2 gains with experts", "ahead", ("experts", "plt-2, experts 8", "plain, experts 8")),
    ("results", "and `plt-2` below `plain`", "ahead", ("experts", "plt-2", "plain")),
    *(
        ("results", "At equal active parameters experts take", "ahead", ("experts", f"{row}, experts 8", row))
        for row in ("loop-2", "plt-2")
    ),
    ("results", "they are not shown to take any", "same", ("experts", "plain, experts 8", "plain")),
    (
        "results",
        "`plt-2, experts 8` is below `loop-2, experts 8`",
        "ahead",
        ("experts", "plt-2, experts 8", "loop-2, experts 8"),
    ),
    ("when", "PLT-2 is above plain by", "ahead", ("swaps", "plt-2", "plain")),
    ("when", "and PLT-3 above PLT-2 by", "ahead", ("swaps", "plt-3", "plt-2")),
    ("when", "PLT-2 cannot be told from plain with twice the layers", "same", ("swaps", "plt-2", "deep-2")),
    (
        "when",
        "plain with twice the steps cannot be told from PLT-2",
        "same",
        ("language", "plain, 2 times the steps", "plt-2"),
    ),
    ("when", "PLT-3 is below PLT-2 by", "ahead", ("language", "plt-3", "plt-2")),
    (
        "when",
        "the study of window shows no difference between 64 and 8",
        "same",
        ("window", "plt-2, window 64", "plt-2, window 8"),
    ),
    ("heal", "was not shown to be better than `plain`", "same", ("healing", "embeds", "plain")),
    (
        "heal",
        "`embeds-healed-longer` cannot be told from it",
        "same",
        ("healing", "embeds-healed-longer", "plain"),
    ),
    (
        "heal",
        "`loop-healed` ends below `loop-healed-by-text` with every seed",
        "each seed",
        ("healing", "loop-healed", "loop-healed-by-text"),
    ),
    (
        "heal",
        "is as good as training on with as many tokens (`plain-more`)",
        "same",
        ("healing", "plain-healed", "plain-more"),
    ),
    (
        "heal",
        "and worse than with as much computing (`plain-more-twice`)",
        "ahead",
        ("healing", "plain-more-twice", "plain-healed"),
    ),
    *(
        ("heal", "(`plt`) is better than the loops and the plain model at as many tokens", "ahead", pair)
        for pair in (("healing", "plt", row) for row in ("loop", "embeds", "plain"))
    ),
    ("heal", "than `plain-more-twice`, with as much computing", "ahead", ("healing", "plain-more-twice", "plt")),
    *(
        ("heal", "It cannot be told from `plain-more` and `plain-healed`", "same", pair)
        for pair in (("healing", "plt", row) for row in ("plain-more", "plain-healed"))
    ),
)


@cache
def scores(study: str) -> pd.DataFrame:
    """A line per seed and a column per row, from the JSON files."""
    if study == "healing":
        files = [json.loads(file.read_text()) for file in (ROOT / "results" / study).glob("*_seed-*.json")]
        lines = [{"seed": each["seed"], "cell": each["name"], "score": each["losses"][-1][1]} for each in files]
        return scores_by_seed(pd.DataFrame(lines))
    results = [result for result in Store(ROOT / "results" / study).results() if not result["is_tuning"]]
    return scores_by_seed(overall(pd.DataFrame([p for r in results for p in points_of(r, load(study).metric)])))


def leads(study: str, first: str, second: str) -> pd.Series:
    """By how much the first row is better than the second, by seed: in accuracy, or with fewer bits or less loss."""
    better = 1 if study != "healing" and load(study).metric == "accuracy" else -1
    return better * (scores(study)[first] - scores(study)[second]).dropna()


def holds(relation: str, study: str, first: str, second: str) -> bool:
    if relation == "each seed":
        return bool(leads(study, first, second).gt(0).all())
    mean, half = published(study)[first, f"minus {second}"].split(" ± ")
    if relation == "same":
        return abs(float(mean)) <= float(half)
    return abs(float(mean)) > float(half) and leads(study, first, second).mean() > 0


@pytest.mark.parametrize("number", range(len(CLAIMS)))
def test_what_a_sentence_claims_of_two_rows_holds(number):
    page, sentence, relation, pair = CLAIMS[number]
    assert len(places(page, sentence)) == 1, sentence
    assert holds(relation, *pair), (sentence, relation, pair)


@pytest.mark.parametrize("page", PAGES)
def test_every_claim_that_rows_cannot_be_told_apart_is_one_of_these(page):
    claimed = [
        (section, found.span())
        for where, sentence, relation, _ in CLAIMS
        if (where, relation) == (page, "same")
        for section, found in places(page, sentence)
    ]
    for section, text in enumerate(prose(page)):
        for found in re.finditer("cannot be told from|cannot either|not shown to be|no better", text):
            inside = [
                start <= found.start() and found.end() <= end for place, (start, end) in claimed if place == section
            ]
            assert any(inside), text[max(found.start() - 60, 0) : found.end() + 40]


def test_the_order_of_the_ablation_is_that_of_the_results():
    group = r"[a-z][\w-]*(?: and [a-z][\w-]*)*"
    found = re.findall(rf"({group}(?: < {group})+) on (\w+(?: and \w+)?)", " ".join(prose("results")))
    assert [studies.lower().split(" and ") for _, studies in found] == [["language"], ["mano", "capo"], ["hops"]]
    for order, studies in found:
        groups = [rows.split(" and ") for rows in order.split(" < ")]
        for worse, better in zip(groups, groups[1:], strict=False):
            for study in studies.lower().split(" and "):
                assert all(holds("ahead", study, more, less) for more in better for less in worse), (study, order)
