"""The tables of measurements in README.md and docs/benchmark.md are those of the files that they name."""

import json
import re
from pathlib import Path

import pytest
import torch
from result_pages import is_rounded, tables_of

from laboratory.costs.pages import BLOCKS, PAGES, trained_alike, trained_overlap, written
from laboratory.costs.step_bytes import share_alike, step_bytes
from measuring_plt.models import Setup, empty_model
from measuring_plt.rows import PLAIN, PUBLISHED_MS
from measuring_plt.rows import ROWS as ALL_ROWS

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\(\.\./results/(decode/[\w-]+)/decode\.md\)")
COLUMNS = {
    "plain, ms": ("plain", "ms per token"),
    "plain's bound, ms": ("plain", "bound, ms"),
    "PLT-2, ms": ("plt-2", "ms per token"),
    "Llama, ms": ("llama", "ms per token"),
}
FOLDERS = ("decode", "decode-experts", "loops", "masks", "memory", "prefill", "products", "score", "train")
ROWS = ("loop-2", "plt-2", "plt-3")
TWO = (PLAIN, ALL_ROWS["plt-2"])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_tables_that_its_files_give(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert written(page) == text, "run `python -m laboratory.costs.pages`"


def test_every_table_is_on_a_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    assert [name for name in BLOCKS if sum(f"<!-- {name} -->\n|" in text for text in texts) != 1] == []


def test_every_file_of_results_is_on_the_page():
    text = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    files = [path for folder in FOLDERS for path in ROOT.glob(f"results/{folder}/*/*.md")]
    assert [str(path) for path in files if f"](../{path.relative_to(ROOT)})" not in text] == []


def lines() -> list[tuple[str, dict[str, str]]]:
    """Each line of a table that links a file, with that file."""
    text = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    found = [(LINK.search(" ".join(row.values())), row) for table in tables_of(text) for row in table]
    return [(match[1], row) for match, row in found if match]


LINES = lines()


@pytest.mark.parametrize("file, row", LINES, ids=[f"{file}, batch {row['batch']}" for file, row in LINES])
def test_a_line_of_the_page_is_that_of_its_file(file, row):
    result = json.loads((ROOT / "results" / file / "decode.json").read_text())
    by_row = {line["row"]: line for line in result["decode"] if line["batch"] == int(row["batch"])}
    for column, (name, figure) in COLUMNS.items():
        assert is_rounded(row[column], repr(by_row[name][figure])), column
    for name in ROWS:
        assert is_rounded(row[f"{name} / plain"], repr(by_row[name]["ratio to plain"])), name
    setting = result["setting"]
    assert row["threads"] == str(setting["cpu_threads"]) and row["CPU"].split(",")[0] in setting["device"]
    assert row["layers"] == str(setting["fields"]["num_hidden_layers"])
    assert f"--output results/{file}" in setting["command"]
    assert ("--compile" in setting["command"]) == ("compiled" in row["what"])


EXPERTS = "results/decode-experts/one-thread-avx512"


@pytest.fixture(scope="module")
def experts() -> tuple[str, dict, dict[tuple[str, int], dict]]:
    """The section on experts in one line, the setting of its file, and the file's lines by row and batch."""
    text = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / EXPERTS / "decode.json").read_text())
    section = text.partition("### Mixture of experts")[2].partition("\n### ")[0]
    return section, result["setting"], {(line["row"], line["batch"]): line for line in result["decode"]}


def test_a_line_of_experts_is_that_of_its_file(experts):
    section, setting, measured = experts
    (table,) = tables_of(section)
    assert [row["batch"] for row in table] == ["1", "4", "16", "64"]
    for row in table:
        plain, plt = (measured[name, int(row["batch"])] for name in ("plain", "plt-2"))
        figures = (plain["ms per token"], plain["bound, ms"], plt["ms per token"], plt["ratio to plain"])
        for column, figure in zip(
            ("plain, ms", "plain's bound, ms", "PLT-2, ms", "plt-2 / plain"), figures, strict=True
        ):
            assert is_rounded(row[column], repr(figure)), column
        assert is_rounded(row["bytes, loops choose at random"], repr(plt["read, MB"] / plain["read, MB"]))
        least, middle, most = (
            float(row[f"bytes, loops choose {kind}"]) for kind in ("alike", "as trained", "at random")
        )
        assert least <= middle <= most
    assert f"--output {EXPERTS}" in setting["command"]


def test_the_sentences_on_experts_are_those_of_the_files(experts):
    section, setting, measured = experts
    fields, words = setting["fields"], " ".join(section.split())
    models = {row: empty_model(Setup(fields, torch.device("cpu"), torch.float32, "sdpa"), row) for row in TWO}
    plain = step_bytes(models[PLAIN], 4, 256)
    needed = 0.98  # the paper's ratio lies between those of a hundredth more and less
    above, below = (
        step_bytes(models[ALL_ROWS["plt-2"]], 4, 256, share_alike(needed + more, 64, 8)) / plain
        for more in (-0.01, 0.01)
    )
    assert below < PUBLISHED_MS["plt-2"] / PUBLISHED_MS["plain"] < above
    assert fields.items() >= {"num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16}.items()
    over = [1 / measured["plain", batch]["bound / time"] for batch in (1, 64)]
    for sentence in (
        f"which have {trained_overlap('plt-2'):.2f} of a token's experts in common, as if {trained_alike():.2f} of",
        f"({setting['parameters'] / 1e6:.0f}M parameters, {setting['active parameters'] / 1e6:.0f}M active)",
        f"it takes {measured['plt-2', 1]['ratio to plain']:.2f} of plain's time",
        f"it adds {100 * (measured['plt-2', 64]['read, MB'] / measured['plain', 64]['read, MB'] - 1):.0f} % of bytes",
        f"loops that have {needed} of their experts in common",
        f"The paper's {PUBLISHED_MS['plt-2']} ms beside {PUBLISHED_MS['plain']}",
        f"from {over[0]:.1f} to {over[1]:.1f} for plain",
    ):
        assert sentence in words


def test_what_fits_a_card_is_that_of_its_file():
    fitting = json.loads((ROOT / "results/fit/fit.json").read_text())["fit"]
    expected = [
        {name: str(value) for name, value in line.items() if name != "model"}
        for line in fitting
        if line["model"] == "LoopCoder-V2 7B"
    ]
    text = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    assert tables_of(text.partition("## What fits a card")[2].partition("\n## ")[0]) == [expected]
    for line in expected:
        plain, loop, plt = (int(line[name]) for name in ("plain", "loop-2", "plt-2"))
        assert loop == plain // 2
        assert plt >= 0.96 * plain and (plt == plain or line["context"] == "4096")
