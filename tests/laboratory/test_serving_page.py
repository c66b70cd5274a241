"""Each measured number of docs/serving.md, "What loops cost", is that of its file."""

import json
import re
import shlex
from functools import cache
from statistics import median

import pytest
from result_pages import ROOT, is_rounded, tables_of

PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
SECTION = PAGE.split("\n## What loops cost\n")[1].split("\n## ")[0]
LINK = re.compile(r"results/serving/([\w.-]+)")
PAPER = re.compile(r" \(paper, batch 4: ([\d.]+)\)")
LINES = {  # what the lines of a table show: row and figure of the file
    "plain": ("plain", "ms"),
    "loop-2 / plain": ("loop-2", "to plain"),
    "PLT-2, loops in turn / plain": ("plt-2, in turn", "to plain"),
    "PLT-2, one pass / plain": ("plt-2", "to plain"),
    "PLT-3, one pass / plain": ("plt-3", "to plain"),
    "PLT-2, one pass / in turn": ("plt-2", "to plt-2 in turn"),
    "PLT-2, one pass, earlier / plain": ("plt-2, before", "to plain"),
    "PLT-2, shared keys read by each loop / plain": ("plt-2, unfolded", "to plain"),
}
BY_LOOPS = {  # the columns of a table by loops: kind and figure of the file
    "in turn, ms": ("vanilla loop", "ms per token"),
    "one pass, ms": ("PLT", "ms per token"),
    "in turn / plain": ("vanilla loop", "ratio to plain"),
    "one pass / plain": ("PLT", "ratio to plain"),
    "parallel efficiency": ("PLT", "parallel efficiency"),
}
WITHOUT_ROUNDS = {"1.3b-avx512", "bfloat16", "bfloat16-avx512", "float32"}  # they have medians and extremes alone
FILES = sorted(path.parent.name for path in ROOT.glob("results/serving/*/benchmark.json"))


@cache
def read(file: str) -> dict:
    return json.loads((ROOT / "results/serving" / file / "benchmark.json").read_text())


def figures(file: str, section: str, column: str, **where: object) -> list[float]:
    """One column of the lines that have all these values."""
    return [line[column] for line in read(file)[section] if where.items() <= line.items()]


def figure(file: str, section: str, column: str, **where: object) -> float:
    (value,) = figures(file, section, column, **where)
    return value


def parameters(file: str) -> str:
    number = read(file)["setting"]["parameters"]
    return f"{number / 1e9:.2f}B" if number > 1e9 else f"{number / 1e6:.0f}M"


def capability(file: str) -> str:
    return re.search(r"\((\w+)\)", read(file)["setting"]["device"])[1]


def tables() -> list[tuple[str, list[dict[str, str]]]]:
    """The tables, each with the file that was linked last before it."""
    found, file = [], ""
    for block in SECTION.split("\n\n"):
        if block.startswith("|"):
            found += [(file, table) for table in tables_of(block)]
        elif links := LINK.findall(block):
            file = links[-1]
    return found


TABLES = tables()


def is_shown(shown: str, value: float) -> bool:
    """Whether a cell is a number as it is, or as milliseconds or seconds."""
    number, _, unit = shown.partition(" ")
    return is_rounded(number, repr(float(value) / {"": 1, "ms": 1, "s": 1000}[unit]))


def check_line(file: str, label: str, cells: dict[str, str]) -> None:
    row, column = LINES[PAPER.sub("", label)]
    for name, shown in cells.items():
        kind, unit = ("prefill", "tokens") if name.startswith("prompt of ") else ("decode", "batch")
        number, context = re.fullmatch(r"(?:batch |prompt of )?(\d+)(?: after (\d+))?", name).groups()
        place = {unit: int(number)}
        if kind == "decode" and "context" in read(file)["decode"][0]:
            place["context"] = int(context or min(read(file)["setting"]["contexts"]))
        value = figure(file, kind, column, row=row, **place)
        assert is_shown(shown, value), f"{file}: {label}, {name}: {shown}, not {value}"
    if paper := PAPER.search(label):
        assert is_rounded(paper[1], repr(figure(file, "decode", "paper, batch 4", row=row, batch=4)))


def check_loops(file: str, line: dict[str, str]) -> None:
    place = {"batch": int(line.pop("batch")), "loops": int(line.pop("loops"))}
    for name, shown in line.items():
        kind, column = BY_LOOPS[name]
        value = figure(file, "loops", column, kind=kind, **place)
        assert is_shown(shown, value), f"{file}: {place}, {name}: {shown}, not {value}"


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_a_table_of_the_page_is_that_of_its_file(number):
    file, table = TABLES[number]
    assert table
    for line in table:
        (title, label), *rest = line.items()
        if title == "batch":
            check_loops(file, dict(line))
        elif title == "rows":  # each line has a file of its own
            (source,) = LINK.findall(label)
            setting = read(source)["setting"]
            device, dtype, size = re.match(r"\[(.*)\]", label)[1].split(", ")
            assert (device.replace("-", ""), size) == (capability(source), parameters(source))
            assert dtype.replace("bf16", "bfloat16") == setting["dtype"]
            for rows, shown in rest:
                assert is_shown(shown, figure(source, "projections", "to one row", rows=int(rows))), (label, rows)
        else:
            assert title.split(", ") == ["bf16", parameters(file)] and read(file)["setting"]["dtype"] == "bfloat16"
            check_line(file, label, dict(rest))


def test_every_file_is_on_the_page():
    assert set(LINK.findall(SECTION)) == set(FILES)


ONE_PASS = {"row": "plt-2"}
LARGE = {"file": "1.3b-avx512", "section": "decode", "row": "plt-2", "batch": 1}
SENTENCES = (  # text, a sentence with `{}` for each number, and the numbers
    (
        SECTION,
        "In single rounds PLT-2 at batch 1 takes {} to {} of plain",
        figure(column="least", **LARGE),
        figure(column="greatest", **LARGE),
    ),
    (
        SECTION,
        "a second row costs {} of the first in bf16",
        figure("bfloat16", "projections", "to one row", rows=2) - 1,
    ),
    *(
        (
            SECTION,
            f"{{}} to {{}} of plain in [{name}](../results/serving/{file}/benchmark.md)",
            min(figures(file, "decode", "to plain", **ONE_PASS)),
            max(figures(file, "decode", "to plain", **ONE_PASS)),
        )
        for name, file in (("float32", "float32"), ("bf16", "bfloat16"))
    ),
    (
        SECTION,
        "([all numbers](../results/serving/bfloat16-avx512/benchmark.md)): {} bytes a token for plain, {} for loop-2, "
        "{} for PLT-2 ({}), {} for PLT-3",
        *(figure("bfloat16-avx512", "memory", "KV bytes per token", row=row) for row in ("plain", "loop-2", "plt-2")),
        figure("bfloat16-avx512", "memory", "to plain", **ONE_PASS),
        figure("bfloat16-avx512", "memory", "KV bytes per token", row="plt-3"),
    ),
    (SECTION, "of a whole step, here {},", max(read("bfloat16-avx512")["setting"]["prompts"])),
    (
        SECTION,
        "with steps of {}, as [in float32](../results/serving/float32/benchmark.md), it is {} for PLT-2",
        max(read("float32")["setting"]["prompts"]),
        figure("float32", "memory", "to plain", **ONE_PASS),
    ),
    (
        SECTION,
        "takes PLT-2 {} of plain's {} s pruned, and {} whole",
        figure("pruned-avx512", "prefill", "to plain", row="plt-2, pruned"),
        figure("pruned-avx512", "prefill", "ms", row="plain") / 1000,
        figure("pruned-avx512", "prefill", "to plain", **ONE_PASS),
    ),
    (
        SECTION,
        "it takes {} of plain's {} s pruned, and {} whole, in two rounds",
        figure("pruned-16k-avx512", "prefill", "to plain", row="plt-2, pruned"),
        figure("pruned-16k-avx512", "prefill", "ms", row="plain") / 1000,
        figure("pruned-16k-avx512", "prefill", "to plain", **ONE_PASS),
    ),
    (SECTION, "An engine of 309M takes {} GB at most", max(figures("bfloat16-avx512", "memory", "GB at most"))),
)
NUMBER = r"([\d.,]*\d)"


def spans(text: str, sentence: str) -> list[re.Match[str]]:
    pattern = re.escape(sentence).replace(r"\{\}", NUMBER).replace(r"\ ", r"\s+")
    return list(re.finditer(pattern, text))


@pytest.mark.parametrize("number", range(len(SENTENCES)))
def test_a_number_of_a_sentence_is_that_of_its_file(number):
    text, sentence, *values = SENTENCES[number]
    (found,) = spans(text, sentence)
    for shown, value in zip(found.groups(), values, strict=True):
        assert is_rounded(shown.replace(",", ""), repr(float(value))), f"{sentence}: {shown}, not {value}"


def test_every_fraction_and_every_large_number_in_a_sentence_is_one_of_these():
    prose = re.sub(r"`[^`]*`|^\|.*$|\]\([^)]*\)", lambda found: " " * len(found[0]), SECTION, flags=re.MULTILINE)
    checked = {
        found.span(group)
        for text, sentence, *values in SENTENCES
        for found in spans(SECTION, sentence)
        for group in range(1, 1 + len(values))
        if text is SECTION
    }
    for found in re.finditer(r"(?<![\w.])\d+[.,]\d+", prose):
        assert found.span() in checked, prose[max(found.start() - 60, 0) : found.end() + 20]
    sizes = set(re.findall(r"\b[\d.]+[MB]\b", prose))
    assert sizes <= set(map(parameters, FILES))


def commands() -> list[list[str]]:
    """The words of each command that writes to a folder of the results."""
    found = re.findall(r"`(python -m laboratory\.serving [^`]*)`", SECTION)
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[-1])
def test_a_command_is_what_its_file_was_measured_by(words):
    file = LINK.fullmatch(words[-1])[1]
    options: dict[str, list[str]] = {}
    for word in words[3:]:
        if word.startswith("--"):
            options[word] = given = []
        else:
            given.append(word)
    setting = read(file)["setting"]
    assert options.pop("--output") == [words[-1]]
    for name in ("batches", "contexts", "prompts"):
        if f"--{name}" in options:
            assert list(map(int, options.pop(f"--{name}"))) == setting[name]
    for name in ("size", "rounds", "steps", "dtype"):
        if f"--{name}" in options:
            assert options.pop(f"--{name}") == [str(setting[name])]
    rows = options.pop("--rows", ["loop-2", "plt-2, in turn", "plt-2", "plt-3"])
    versions = [each.partition("=")[0] for each in options.pop("--beside", [])]
    rows = [*rows, *(f"{row}, {version}" for version in versions for row in rows)]
    assert {"plain", *rows} == {line["row"] for line in read(file)["decode"]}
    assert not options
    assert setting["eager"]


def test_only_the_oldest_files_are_without_the_times_of_each_round():
    without = {file for file in FILES if "ms, by round" not in read(file)["decode"][0]}
    assert without == WITHOUT_ROUNDS


def place_of(line: dict) -> tuple[int, ...]:
    """Older files have one context, and do not say it in their lines."""
    return tuple(line[name] for name in ("batch", "context") if name in line)


@pytest.mark.parametrize("file", sorted({*FILES} - WITHOUT_ROUNDS))
def test_the_figures_of_a_file_are_medians_of_its_rounds(file):
    times = {(line["row"], *place_of(line)): line["ms, by round"] for line in read(file)["decode"]}
    for line in read(file)["decode"]:
        own, plain = times[line["row"], *place_of(line)], times["plain", *place_of(line)]
        ratios = [one / other for one, other in zip(own, plain, strict=True)]
        figures = (median(own), median(ratios), min(ratios), max(ratios))
        assert [line[name] for name in ("ms", "to plain", "least", "greatest")] == pytest.approx(figures)
    for line in read(file).get("loops", []):
        if line["kind"] == "PLT" and line["loops"] > 1:
            place = (line["batch"], line["context"])[: len(next(iter(times))) - 1]
            both = [times[f"{kind}-{line['loops']}", *place] for kind in ("loop", "plt")]
            found = [in_turn / (line["loops"] * together) for in_turn, together in zip(*both, strict=True)]
            assert line["parallel efficiency"] == pytest.approx(median(found))


LOAD = PAGE.split("\n## Under load\n")[1].split("\n## ")[0]


def test_the_table_under_load_is_that_of_its_file():
    (table,) = tables_of(LOAD)
    lines = json.loads((ROOT / "results/serving/load-0.3b/load.json").read_text())["load"]
    assert len(table) == len(lines)
    for shown, line in zip(table, lines, strict=True):
        assert (float(shown.pop("requests a second")), shown.pop("row")) == (line["rate"], line["row"])
        for name, cell in shown.items():
            assert is_rounded(cell, repr(line[name])), f"{line['row']} at {line['rate']}, {name}: {cell}"
