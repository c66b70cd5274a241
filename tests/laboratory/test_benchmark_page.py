"""The tables of measurements in README.md and docs/benchmark.md are those of the files that they name."""

import json
import re
from pathlib import Path

import pytest
from result_pages import is_rounded, tables_of

from laboratory.costs.pages import BLOCKS, PAGES, written

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\(\.\./results/(decode/[\w-]+)/decode\.md\)")
COLUMNS = {
    "plain, ms": ("plain", "ms per token"),
    "plain's bound, ms": ("plain", "bound, ms"),
    "PLT-2, ms": ("plt-2", "ms per token"),
    "Llama, ms": ("llama", "ms per token"),
}
FOLDERS = ("decode", "loops", "masks", "memory", "prefill", "products", "score", "train")
ROWS = ("loop-2", "plt-2", "plt-3")


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
