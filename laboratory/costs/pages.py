# SPDX-License-Identifier: Apache-2.0
"""The tables of measurements in README.md and docs/benchmark.md, written from the files under results/.

python -m laboratory.costs.pages    # in a checkout; writes what stands between `<!-- NAME -->` and `<!-- end -->`
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
import torch

from measuring_plt.models import Setup, empty_model, row_config
from measuring_plt.rows import PLAIN, PUBLISHED_CACHE, PUBLISHED_MS, ROWS

from ..report import markdown
from ..tasks.experts import EXPERTS
from .arithmetic import multiplications
from .cache_bytes import theory
from .step_bytes import share_alike, step_bytes

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/benchmark.md")
BLOCK = re.compile(r"(<!-- (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# of decoding: what a file is, and the file
DECODED = {
    "unpacked-one-thread-avx512": "float32, PyTorch's own products",
    "same-one-thread-avx512": "float32, packed",
    "same-avx512": "float32, packed",
    "float16-one-thread-avx512": "packed in float16",
    "float16-avx512": "packed in float16",
    "int8-one-thread-avx512": "packed in int8",
    "int8-avx512": "packed in int8",
    "same-compiled-avx512": "float32, packed, compiled",
    "float16-compiled-avx512": "packed in float16, compiled",
    "int8-compiled-avx512": "packed in int8, compiled",
    "bfloat16-compiled-avx512": "bfloat16, packed, compiled",
    "same-one-thread-avx2": "float32, packed",
    "float16-one-thread-avx2": "packed in float16",
    "int8-one-thread-avx2": "packed in int8",
}
LOOPED = {
    "same-one-thread-avx512": "float32, packed, eager",
    "same-compiled-one-thread-avx512": "float32, packed, compiled",
}
# of many tokens: what is timed, its file, section, column of the length, column of the time, and wanted logits
MANY_TOKENS = [
    ("first token", "prefill/0.5b-avx512", "prefill", "prompt", "ms to first token", 1),
    ("first token", "prefill/4-layers-avx512", "prefill", "prompt", "ms to first token", 1),
    ("scoring", "score/1024-avx512", "score", "prompt", "ms to all logits", 0),
    ("scoring", "score/4096-avx512", "score", "prompt", "ms to all logits", 0),
    ("training step", "train/512-avx512", "train", "tokens", "ms per step", 0),
    ("training step", "train/4096-avx512", "train", "tokens", "ms per step", 0),
]
NOT_PROMISED = ("score/1024-avx512/score", "train/4096-avx512/train")  # in docs/benchmark.md alone
EMULATED = "AVX2, emulated"


@cache
def read(file: str) -> dict[str, Any]:
    """A file of results, by its folder and section: `decode/same-avx512/decode`."""
    return json.loads((ROOT / "results" / f"{file}.json").read_text(encoding="utf-8"))


def line(records: list[dict], **where: Any) -> dict[str, Any]:
    """The one record that has these values; an empty one where none has."""
    found = [record for record in records if where.items() <= record.items()]
    assert len(found) < 2, f"{len(found)} lines have {where}"
    return found[0] if found else {}


def shown(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def capability(setting: dict) -> str:
    name = re.search(r"\((\w+)\)", setting["device"])[1]  # type: ignore[index]  # every file has it
    return EMULATED if name == "AVX2" else name


def link(file: str) -> str:
    folder, _, name = file.rpartition("/")
    return f"[{folder}](../results/{folder}/{name}.md)"


def decoding() -> list[dict]:
    rows = []
    for folder, what in DECODED.items():
        file = f"decode/{folder}/decode"
        records, setting = read(file)["decode"], read(file)["setting"]
        for batch in dict.fromkeys(record["batch"] for record in records):
            by_row = {name: line(records, row=name, batch=batch) for name in ("plain", "loop-2", "plt-2", "plt-3")}
            llama = line(records, row="llama", batch=batch)
            rows.append(
                {
                    "what": what,
                    "layers": str(setting["fields"]["num_hidden_layers"]),
                    "CPU": capability(setting),
                    "threads": str(setting["cpu_threads"]),
                    "batch": str(batch),
                    "Llama, ms": shown(llama["ms per token"], 1),
                    "plain, ms": shown(by_row["plain"]["ms per token"], 1),
                    "plain's bound, ms": shown(by_row["plain"]["bound, ms"], 1),
                    "PLT-2, ms": shown(by_row["plt-2"]["ms per token"], 1),
                    **{f"{name} / plain": shown(by_row[name]["ratio to plain"]) for name in list(by_row)[1:]},
                    "file": link(file),
                }
            )
    return rows


def experts() -> list[dict]:
    """Of a mixture of experts, times beside the bytes of PLT-2 over plain's, by how alike its loops choose."""
    file = "decode-experts/one-thread-avx512/decode"
    records, fields = read(file)["decode"], read(file)["setting"]["fields"]
    setup = Setup(fields, torch.device("cpu"), torch.float32, "sdpa")
    models = {name: empty_model(setup, ROWS[name]) for name in ("plain", "plt-2")}
    kinds = {"at random": 0.0, "as trained": trained_alike(), "alike": 1.0}
    rows = []
    for each in (record for record in records if record["row"] == "plain"):
        batch, context = each["batch"], each["context"]
        plt = line(records, row="plt-2", batch=batch, context=context)
        least = step_bytes(models["plain"], batch, context)
        bytes_by_kind = {kind: step_bytes(models["plt-2"], batch, context, alike) for kind, alike in kinds.items()}
        rows.append(
            {
                "batch": str(batch),
                "plain, ms": shown(each["ms per token"], 1),
                "plain's bound, ms": shown(each["bound, ms"], 1),
                "PLT-2, ms": shown(plt["ms per token"], 1),
                "plt-2 / plain": shown(plt["ratio to plain"]),
                **{f"bytes, loops choose {kind}": shown(read / least) for kind, read in bytes_by_kind.items()},
                "paper, batch 4": shown(plt["published ratio"]),
                "file": link(file),
            }
        )
    return rows


def trained_overlap(row: str) -> float:
    """The part of a token's experts that two loops have in common, the mean over layers and seeds of `experts`."""
    files = sorted((ROOT / "results/experts").glob(f"{row}_experts-8_*_seed-[123].json"))
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return fmean(later for result in results for _, later in result["expert_overlap"])


def trained_alike() -> float:
    return share_alike(trained_overlap("plt-2"), EXPERTS["num_experts"], EXPERTS["num_experts_per_tok"])


def loops() -> list[dict]:
    rows = []
    for folder, what in LOOPED.items():
        file = f"loops/{folder}/loops"
        records, setting = read(file)["loops"], read(file)["setting"]
        for number in (1, 2, 3, 4):
            vanilla, plt = (line(records, kind=kind, loops=number) for kind in ("vanilla loop", "PLT"))
            rows.append(
                {
                    "what": what,
                    "layers": str(setting["fields"]["num_hidden_layers"]),
                    "loops": str(number),
                    "in turn, ms": shown(vanilla["ms per token"], 1),
                    "together, ms": shown(plt["ms per token"], 1),
                    "bound of together, ms": shown(plt["bound, ms"], 1),
                    "in turn / plain": shown(vanilla["ratio to plain"]),
                    "together / plain": shown(plt["ratio to plain"]),
                    "parallel efficiency": shown(plt["parallel efficiency"]),
                    "file": link(file),
                }
            )
    return rows


def products() -> list[dict]:
    rows = []
    for file in folders("products", "products"):
        setting = read(file)["setting"]
        for record in read(file)["products"]:
            times = {name: shown(value) for name, value in record.items() if re.fullmatch(r"ms, \d+ rows?", name)}
            rows.append(
                {
                    "product": record["what"],
                    "CPU": capability(setting),
                    "threads": str(setting["cpu_threads"]),
                    "bound, ms": shown(record["bound, ms"]),
                    **times,
                    "file": link(file),
                }
            )
    return rows


def folders(kind: str, section: str) -> list[str]:
    """All files of a kind of results, as `read` takes them."""
    return [f"{kind}/{path.name}/{section}" for path in sorted((ROOT / "results" / kind).iterdir())]


def bound(fields: dict, row: str, num_tokens: int, num_outputs: int) -> float:
    """The ratio of a row's products to plain's, see `with_bound`."""
    setup = Setup(fields, torch.device("cpu"), torch.float32, "sdpa")
    own, plain = (multiplications(empty_model(setup, each), num_tokens, num_outputs) for each in (ROWS[row], PLAIN))
    return own / plain


class Length(NamedTuple):
    """The part of a file that is on one number of tokens."""

    what: str
    file: str
    tokens: int
    fields: dict
    records: list[dict]  # a row each
    time: str  # the column of the time
    num_outputs: int


def lengths() -> Iterator[Length]:
    for what, folder, section, column, time, num_outputs in MANY_TOKENS:
        file = f"{folder}/{section}"
        records, fields = read(file)[section], read(file)["setting"]["fields"]
        for tokens in dict.fromkeys(record[column] for record in records):
            of_length = [record for record in records if record[column] == tokens]
            yield Length(what, file, tokens, fields, of_length, time, num_outputs)


def many_tokens() -> list[dict]:
    rows = []
    for each in lengths():
        plain, llama = (line(each.records, row=name) for name in ("plain", "llama"))
        cells = {"what": each.what, "tokens": str(each.tokens), "layers": str(each.fields["num_hidden_layers"])}
        cells["Llama, s"] = shown(llama[each.time] / 1000, 1) if llama else ""
        cells["plain, s"] = shown(plain[each.time] / 1000, 1)
        for row in ("loop-2", "plt-2", "plt-3"):
            record = line(each.records, row=row)
            cells[f"bound of {row}"] = shown(bound(each.fields, row, each.tokens, each.num_outputs)) if record else ""
            cells[f"{row} / plain"] = shown(record.get("ratio to plain"))
        rows.append(cells | {"file": link(each.file)})
    return rows


def memory() -> list[dict]:
    rows = []
    for file in folders("memory", "memory"):
        records = read(file)["memory"]
        for phase in dict.fromkeys(record["phase"] for record in records):
            cells = {"phase": phase}
            for row in ("plain", "loop-2", "plt-2", "plt-3"):
                record = line(records, phase=phase, row=row)
                for title, figure in ((f"{row}, MB", "measured, MB"), (f"formula of {row}", "formula, MB")):
                    cells[title] = shown(record[figure], 0 if record[figure] > 100 else 1)
            rows.append(cells | {"file": link(file)})
    return rows


def masks() -> list[dict]:
    rows = []
    for file in folders("masks", "masks"):
        for record in read(file)["masks"]:
            rows.append(
                {
                    "tokens": str(record["tokens"]),
                    "work": record["work"],
                    **{name: shown(record[name], 1) for name in ("blocks, ms", "dense, ms")},
                    "blocks / dense": shown(record["blocks / dense"]),
                    **{name: shown(record[name], 0) for name in ("blocks, MB", "dense, MB")},
                    "file": link(file),
                }
            )
    return rows


def demo() -> list[dict]:
    """The table of `make demo`, as it prints it."""
    return read("demo/comparison")["rows"]


def ratios(records: list[dict], **where: Any) -> dict[str, str]:
    """A row of the promise: what each kind of model costs, plain's cost being 1."""
    names = {"vanilla loop, 2": "loop-2", "PLT-2": "plt-2", "PLT-3": "plt-3"}
    return {title: shown(line(records, row=row, **where).get("ratio to plain")) for title, row in names.items()}


def promise() -> list[dict]:
    """The costs of a second and a third loop, plain's being 1."""
    rows = []

    def add(what: str, file: str, cells: dict[str, str], least: float, paper: str = "") -> None:
        source = link(file).replace("../results", "results")
        rows.append({"plain = 1": what, **cells, "bound of PLT-2": shown(least), "paper": paper, "file": source})

    paper = f"{PUBLISHED_MS['plt-2'] / PUBLISHED_MS['plain']:.2f}"
    decoded = {
        "same-one-thread-avx512": "float32",
        "int8-one-thread-avx512": "int8 weights",
        "same-compiled-avx512": "float32, compiled, 4 layers, two threads",
    }
    for folder, what in decoded.items():
        file = f"decode/{folder}/decode"
        records = read(file)["decode"]
        least = line(records, row="plt-2")["bound, ms"] / line(records, row="plain")["bound, ms"]
        add(f"a decoded token, {what}", file, ratios(records, batch=1), least, paper)
    served = "serving/1.3b-avx512/benchmark"
    steps, rereading = read(served)["decode"], line(read(served)["projections"], rows=2)["to one row"]
    names = {"vanilla loop, 2": "plt-2, in turn", "PLT-2": "plt-2", "PLT-3": "plt-3"}
    cells = {title: shown(line(steps, row=row, batch=1)["to plain"]) for title, row in names.items()}
    add("a decoded token in vLLM, bf16, 1.33B, two threads", served, cells, rereading, paper)
    for each in lengths():
        if each.file in NOT_PROMISED:
            continue
        number = each.fields["num_hidden_layers"]
        layers = "" if number == 16 else f", {number} layers"
        least = bound(each.fields, "plt-2", each.tokens, each.num_outputs)
        add(f"{each.what}, {each.tokens} tokens{layers}", each.file, ratios(each.records), least)
    file = "memory/0.5b-float16-avx512/memory"
    fields = read(file)["setting"]["fields"]
    least = theory(row_config(fields, ROWS["plt-2"]), 4608, 4) / theory(row_config(fields, PLAIN), 4608, 4)
    paper = f"{PUBLISHED_CACHE['plt-2'] / PUBLISHED_CACHE['plain']:.2f}"
    add("KV cache, 4608 tokens", file, ratios(read(file)["cache"], context=4608), least, paper)
    return rows


BLOCKS: dict[str, Callable[[], list[dict]]] = {
    "decoding": decoding,
    "experts": experts,
    "loops": loops,
    "products": products,
    "many tokens": many_tokens,
    "memory": memory,
    "masks": masks,
    "demo": demo,
    "promise": promise,
}


def written(page: str) -> str:
    """A page with its tables written anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return BLOCK.sub(lambda match: f"{match[1]}{markdown(pd.DataFrame(BLOCKS[match['name']]()))}\n{match[3]}", text)


def main() -> None:
    for page in PAGES:
        new = written(page)
        (ROOT / page).write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
