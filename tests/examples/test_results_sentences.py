"""The pages on results: every number in a sentence is that of the results."""

import json
import re
from functools import cache

import pandas as pd
import pytest
from result_pages import PAGES, ROOT, is_rounded
from result_sentences import INTERVAL, places, prose, published

from laboratory.tasks import load
from laboratory.tasks.experts import BALANCED, EXPERTS
from laboratory.tasks.harness.plan import mean_bits
from measuring_plt.rows import PUBLISHED_MS

FRACTION = rf"(?<![\w.-])-?\d*\.\d+(?:{INTERVAL})?"  # what a sentence may show of a result; whole numbers may count


def measured(file: str, column: str, row: str, **where: object) -> float:
    """A figure of one row of a file on costs, such as `decode/same-avx512/decode`."""
    lines = json.loads((ROOT / "results" / f"{file}.json").read_text())[where.pop("section", file.rpartition("/")[2])]
    (line,) = [line for line in lines if ({"row": row} | where).items() <= line.items()]
    return line[column]


def to_plain(file: str, row: str, **where: object) -> float:
    return measured(file, "ratio to plain", row, **where)


@cache
def experts_of(row: str) -> pd.DataFrame:
    """Of a row with experts, by seed and layer: the overlap between two loops, and what random choice gives."""
    results = [
        json.loads(file.read_text()) for file in (ROOT / "results/experts").glob(f"{row}_experts-8_*seed-?.json")
    ]
    chosen = EXPERTS["num_experts_per_tok"]
    lines = [
        # an expert that takes a share s of the choices is chosen by a token with k s
        {"seed": each["seed"], "overlap": later, "by load": chosen * sum(share**2 for share in load)}
        for each in results
        for (_, later), load in zip(each["expert_overlap"], each["expert_load"], strict=True)
    ]
    return pd.DataFrame(lines).groupby("seed").mean()


def overlap(row: str, column: str = "overlap") -> float:
    return experts_of(row)[column].mean()


def chosen_by(study: str, cell: str) -> float:
    """By how many bits the better of two learning rates was ahead."""
    files = (ROOT / "results" / study).glob(f"tune_{cell}_lr-*.json")
    better, worse = sorted(mean_bits(json.loads(file.read_text())) for file in files)
    return worse - better


def served(row: str, section: str = "decode", **where: object) -> float:
    return measured("serving/1.3b-avx512/benchmark", "to plain", row, section=section, **where)


# page, a sentence with `{}` for each number, and where each stands: study, row and column, or the number itself
SENTENCES = (
    ("results", "PLT-3 is above PLT-2 by {}", ("swaps", "plt-3", "minus plt-2")),
    ("results", "`loop-3` above `loop-2` by {}", ("swaps", "loop-3", "minus loop-2")),
    (
        "results",
        "`smear + loop-3` above `smear + loop-2` by {}",
        ("swaps", "smear + loop-3", "minus smear + loop-2"),
    ),
    (
        "results",
        "`smear + loop-3`, a vanilla loop that has the token before, has a higher mean than PLT-3 ({} and {}), and is "
        "ahead with each of the three seeds; at {} the interval still holds zero",
        ("swaps", "smear + loop-3", "mean"),
        ("swaps", "plt-3", "mean"),
        ("swaps", "smear + loop-3", "minus plt-3"),
    ),
    (
        "results",
        "PLT-3 is above `deep-3`, which has three times the layers, by {}, and cannot be told from `loop-3` ({})",
        ("swaps", "plt-3", "minus deep-3"),
        ("swaps", "plt-3", "minus loop-3"),
    ),
    (
        "results",
        "the token before, which lifts `loop-2` by {} and `loop-3` by {} (`smear + loop-2` and `smear + loop-3`)",
        ("swaps", "smear + loop-2", "minus loop-2"),
        ("swaps", "smear + loop-3", "minus loop-3"),
    ),
    ("results", "`loop-3` cannot be told from `deep-3` ({})", ("swaps", "loop-3", "minus deep-3")),
    (
        "results",
        "`plt-2` and `smear + loop-2`, with half the parameters, cannot be told from twice the layers (`deep-2`: {} "
        "and {})",
        ("swaps", "plt-2", "minus deep-2"),
        ("swaps", "smear + loop-2", "minus deep-2"),
    ),
    ("results", "`loop-2` alone is below `deep-2` by {}", ("swaps", "deep-2", "minus loop-2")),
    ("results", "(`shared-2`) is no better than `smear` ({})", ("swaps", "shared-2", "minus smear")),
    (
        "results",
        "at the last four steps `smear + loop-3` is right in {} and PLT-3 in {}, where chance is {}",
        ("swaps", "smear + loop-3", "steps 16"),
        ("swaps", "plt-3", "steps 16"),
        1 / load("swaps").task.num_boxes,
    ),
    ("results", "gains {} on swaps (`shift-2` over `loop-2`)", ("swaps", "shift-2", "minus loop-2")),
    (
        "results",
        "`shift-2` minus `loop-2` is {} on hops and {} on Mano",
        ("hops", "shift-2", "minus loop-2"),
        ("mano", "shift-2", "minus loop-2"),
    ),
    (
        "results",
        "with a gate that stays at {} there are {} more bits (`plt-2, window 8, plt_gate frozen` minus `plt-2, "
        "window 8`)",
        0.5,
        ("window", "plt-2, window 8, plt_gate frozen", "minus plt-2, window 8"),
    ),
    (
        "results",
        "plain finds much without a loop ({} at 2, {} at 4)",
        ("reach", "plain", "distance 2"),
        ("reach", "plain", "distance 4"),
    ),
    ("results", "`plt-2, window 1` is below `plain` by {}", ("reach", "plain", "minus plt-2, window 1")),
    ("results", "`plt-3` is above `smear` by {}", ("hops", "plt-3", "minus smear")),
    ("results", "`loop-2` is below `smear` by {}", ("language", "smear", "minus loop-2")),
    ("results", "`plt-3` is below `smear` by {}", ("language", "smear", "minus plt-3")),
    (
        "heal",
        "`loop-healed` is a plain decoder run twice**: loop 0 alone reads {} where the whole reads {}",
        ("healing", "loop-healed", "loop 0 alone"),
        ("healing", "loop-healed", "loss"),
    ),
    (
        "heal",
        "(`loop`), loop 0 alone reads {} where the whole reads {}, though `loop` is only {} better than `plain`",
        ("healing", "loop", "loop 0 alone"),
        ("healing", "loop", "loss"),
        ("healing", "plain", "minus loop"),
    ),
    (
        "heal",
        "`embeds-healed` needs its loops**: without one of these it reads {} to {} where the whole reads {} (the "
        "longer run: {} to {}, and {})",
        ("healing", "embeds-healed", "gates at 1, without the window"),
        ("healing", "embeds-healed", "loop 0 alone"),
        ("healing", "embeds-healed", "loss"),
        ("healing", "embeds-healed-longer", "gates at 1, without the window"),
        ("healing", "embeds-healed-longer", "loop 0 alone"),
        ("healing", "embeds-healed-longer", "loss"),
    ),
    (
        "heal",
        "`embeds` needed them as much ({} with loop 0 alone), and was not shown to be better than `plain` ({})",
        ("healing", "embeds", "loop 0 alone"),
        ("healing", "embeds", "minus plain"),
    ),
    (
        "heal",
        "{} % above its source after a tenth of the source's steps, and {} % after three tenths",
        ("healing", "embeds-healed", "% from its source"),
        ("healing", "embeds-healed-longer", "% from its source"),
    ),
    (
        "heal",
        "(`plain`) has a lower mean than both, though `embeds-healed-longer` cannot be told from it ({})",
        ("healing", "embeds-healed-longer", "minus plain"),
    ),
    (
        "heal",
        "A PLT from scratch** (`plt`) is better than the loops and the plain model at as many tokens (`plain` by {}), "
        "and worse by {} than `plain-more-twice`",
        ("healing", "plain", "minus plt"),
        ("healing", "plt", "minus plain-more-twice"),
    ),
    # when a PLT pays
    (
        "when",
        "A decoded token of PLT-2 costs {} of plain's, where the vanilla loop costs {} (float32,",
        to_plain("decode/same-one-thread-avx512/decode", "plt-2", batch=1),
        to_plain("decode/same-one-thread-avx512/decode", "loop-2", batch=1),
    ),
    ("when", "in vLLM {} and {} (bf16,", served("plt-2", batch=1), served("plt-2, in turn", batch=1)),
    (
        "when",
        "the KV cache of PLT-2 takes {} of plain's, that of the vanilla loop {}",
        to_plain("memory/0.5b-float16-avx512/memory", "plt-2", section="cache", context=4608),
        to_plain("memory/0.5b-float16-avx512/memory", "loop-2", section="cache", context=4608),
    ),
    (
        "when",
        "first token after a prompt of 16,384 costs {} of plain's, the vanilla loop's {}",
        to_plain("prefill/4-layers-avx512/prefill", "plt-2", prompt=16384),
        to_plain("prefill/4-layers-avx512/prefill", "loop-2", prompt=16384),
    ),
    (
        "when",
        "PLT-2 is above plain by {} in accuracy and PLT-3 above PLT-2 by {}",
        ("swaps", "plt-2", "minus plain"),
        ("swaps", "plt-3", "minus plt-2"),
    ),
    (
        "when",
        "PLT-2 cannot be told from plain with twice the layers (`deep-2`, {})",
        ("swaps", "plt-2", "minus deep-2"),
    ),
    (
        "when",
        "is {} % above its source's loss after three tenths",
        ("healing", "embeds-healed-longer", "% from its source"),
    ),
    (
        "when",
        "A training step of PLT-2 costs {} of plain's, scoring {}, as much as a vanilla loop's {} and {}",
        to_plain("train/512-avx512/train", "plt-2"),
        to_plain("score/4096-avx512/score", "plt-2"),
        to_plain("train/512-avx512/train", "loop-2"),
        to_plain("score/4096-avx512/score", "loop-2"),
    ),
    (
        "when",
        "PLT-2 costs {} of plain in a batch of 32, and {} for a prompt of 1,024",
        served("plt-2", batch=32),
        served("plt-2", "prefill", tokens=1024),
    ),
    ("when", "PLT-2 then costs {} of plain", to_plain("decode/unpacked-one-thread-avx512/decode", "plt-2", batch=1)),
    (
        "when",
        "reads {} bits per byte of Python on language and PLT-2 {}",
        ("language", "smear", "mean"),
        ("language", "plt-2", "mean"),
    ),
    (
        "when",
        "({} bits more for `plain, 2 times the steps` than for `plt-2`)",
        ("language", "plain, 2 times the steps", "minus plt-2"),
    ),
    (
        "when",
        "`plain-healed` reads {}, and {} with loop 0 alone",
        ("healing", "plain-healed", "loss"),
        ("healing", "plain-healed", "loop 0 alone"),
    ),
    (
        "when",
        "first token after 1,024 costs {} of plain's",
        to_plain("prefill/0.5b-avx512/prefill", "plt-3", prompt=1024),
    ),
    ("when", "PLT-3 is below PLT-2 by {} bits on language", ("language", "plt-2", "minus plt-3")),
    (
        "when",
        "PLT-2 with a window of 8 is right in {} at distances of 4 to 7 and in {} from 8 on",
        ("reach", "plt-2, window 8", "distance 4"),
        ("reach", "plt-2, window 8", "distance 8"),
    ),
    (
        "when",
        "({} bits for `plt-2, window 64` against `plt-2, window 8`)",
        ("window", "plt-2, window 64", "minus plt-2, window 8"),
    ),
    (
        "when",
        "plain with two layers is right in {} at every distance",
        ("reach", "plain, layers 2", "mean"),
    ),
    (
        "when",
        "With a `hidden_scale` of {} PLT-2 is right in {} of the task of scales, with {} in {}",
        0.06,
        ("scales", "plt-2, hidden_scale 0.06", "mean"),
        1.0,
        ("scales", "plt-2, hidden_scale 1.0", "mean"),
    ),
    ("when", "LoopCoder-V2's is {}", 0.053),
    # experts
    ("results", "The balance loss weighs {}", BALANCED["router_aux_loss_coef"]),
    (
        "results",
        "`plt-2, experts 8` is below `plain, experts 8` by {} and `plt-2` below `plain` by {}",
        ("experts", "plain, experts 8", "minus plt-2, experts 8"),
        ("experts", "plain", "minus plt-2"),
    ),
    (
        "results",
        "experts take {} bits from `plt-2` (`plt-2, experts 8`) and {} from `loop-2` (`loop-2, experts 8`); from "
        "plain they are not shown to take any ({} for `plain` and `plain, experts 8`)",
        ("experts", "plt-2", "minus plt-2, experts 8"),
        ("experts", "loop-2", "minus loop-2, experts 8"),
        ("experts", "plain", "minus plain, experts 8"),
    ),
    (
        "results",
        "`plt-2, experts 8` is below `loop-2, experts 8` by {}",
        ("experts", "loop-2, experts 8", "minus plt-2, experts 8"),
    ),
    (
        "results",
        "PLT-2's loops have {} in common, the vanilla loop's, without the shift, {}",
        overlap("plt-2"),
        overlap("loop-2"),
    ),
    (
        "results",
        "Random choice gives {}, and {} and {} where experts are chosen as often as these are",
        EXPERTS["num_experts_per_tok"] / EXPERTS["num_experts"],
        overlap("plt-2", "by load"),
        overlap("loop-2", "by load"),
    ),
    (
        "results",
        "two loops of one token read {} times the experts of one loop, where random choice reads {} and equal choice "
        "{}. The paper's {} ms beside {}",
        2 - overlap("plt-2"),
        2 - EXPERTS["num_experts_per_tok"] / EXPERTS["num_experts"],
        1,
        PUBLISHED_MS["plt-2"],
        PUBLISHED_MS["plain"],
    ),
    # prelude and coda
    (
        "results",
        "`loop-2, prelude 1, coda 1` cannot be told from plain, and is worse than a loop of all layers (`loop-2`) by "
        "{}",
        ("cores", "loop-2, prelude 1, coda 1", "minus loop-2"),
    ),
    (
        "results",
        "`plt-2, prelude 1, coda 1` is below `loop-2, prelude 1, coda 1` by {}. As on",
        ("cores", "loop-2, prelude 1, coda 1", "minus plt-2, prelude 1, coda 1"),
    ),
    (
        "results",
        "`plt-2, prelude 1, coda 1` is below `loop-2, prelude 1, coda 1` by {}, and is not shown",
        ("core_hops", "loop-2, prelude 1, coda 1", "minus plt-2, prelude 1, coda 1"),
    ),
    ("results", "Its rate was chosen by {} bits", chosen_by("core_hops", "plt-2_prelude-1_coda-1")),
    # how the results were made
    ("results", "Chance is {}.", 1 / load("swaps").task.num_boxes),
    ("results", "chance is {}. A window of W", 1 / (load("reach").task.alphabet - 1)),  # no letter follows itself
    ("results", "window {}, {} steps of {} sequences, rates", 8, load("swaps").steps, load("swaps").batch_size),
    ("results", "a standard deviation of {}", load("hops").fields["initializer_range"]),
    ("results", "AdamW (betas {} and {}, weight decay {}", 0.9, 0.98, 0.1),
    ("results", "the embedding (RMS {})", load("scales").fields["initializer_range"]),
    ("results", "LoopCoder-V2's is {}", 0.053),
    ("heal", "sources of {}M parameters on the standard library of Python {}", 0.16, 3.11),
    ("heal", "plus {} times that state", 0.05),
    ("heal", "models above {}M parameters", 0.16),
    ("heal", "MELT (arXiv {}) reports for {}B parameters", 2605.07721, 1.4),
    # no study's, but of commands on the page
    ("heal", "the PLT starts {}e-9 nats", 1.7),
    (
        "heal",
        "22 loop, start {}e-9 nats per token from the source; 20 steps take the held-out loss from {} to {}",
        1.9,
        2.5233,
        2.3814,
    ),
    ("heal", "10 loop, it falls from {} to {}", 11.5245, 5.231),
)


def names(row: str, sentence: str) -> bool:
    """Whether a sentence names a row, and not only a longer name that has it inside."""
    return re.search(rf"(?<![\w+-])(?<!\+ ){re.escape(row)}(?![\w-])", sentence.lower()) is not None


@pytest.mark.parametrize("number", range(len(SENTENCES)))
def test_a_number_of_a_sentence_is_that_of_the_results(number):
    page, sentence, *sources = SENTENCES[number]
    ((section, found),) = places(page, sentence)
    for shown, source in zip(found.groups(), sources, strict=True):
        full = str(source)
        if isinstance(source, tuple):
            study, row, column = source
            full = published(study)[row, column]
            assert study in prose(page)[section].lower(), f"{study} is not what the section is on"
        if "±" in full:
            assert names(row, sentence) and names(column.removeprefix("minus "), sentence), source
        assert len(shown.split(" ± ")) == len(full.split(" ± ")), (shown, full)
        assert all(map(is_rounded, shown.split(" ± "), full.split(" ± "))), f"{sentence}: {shown}, not {full}"


@pytest.mark.parametrize("page", PAGES)
def test_every_fraction_in_a_sentence_is_one_of_these(page):
    checked = {
        (section, found.span(group))
        for where, sentence, *_ in SENTENCES
        for section, found in places(where, sentence)
        for group in range(1, (found.lastindex or 0) + 1)
        if where == page
    }
    for section, text in enumerate(prose(page)):
        without_code = re.sub(r"`[^`]*`", lambda code: " " * len(code[0]), text)
        for found in re.finditer(FRACTION, without_code):
            assert (section, found.span()) in checked, text[max(found.start() - 60, 0) : found.end() + 20]


def test_loops_with_the_shift_have_fewer_experts_in_common_with_each_seed():
    assert len(places("results", "the shift's is lower with each of the three seeds")) == 1
    differences = experts_of("plt-2")["overlap"] - experts_of("loop-2")["overlap"]
    assert len(differences) == 3 and differences.lt(0).all()
