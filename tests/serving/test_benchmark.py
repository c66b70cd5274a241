"""The benchmark of the plugin: what it measures of a tiny model, and what its tables make of measurements."""

import argparse
import json
import shutil
from types import SimpleNamespace

import pytest

from laboratory.serving.__main__ import main
from laboratory.serving.beside import PACKAGES, ROOT, Lane, check_code, read_version
from laboratory.serving.report import write_report
from measuring_plt.rows import PRUNED
from serving_plt.vllm import timed_engine
from serving_plt.vllm.sizing import config_of, request_bytes

TINY = ["--size", "tiny", "--dtype", "float32", "--steps", "2", "--rounds", "2"]


def engine(row: str, kv_bytes: float) -> dict:
    facts = {"row": row, "parameters": 10, "threads": 1, "KV bytes per token": kv_bytes, "cache bytes": 1 << 30}
    return facts | {
        "bytes after loading": 1 << 30,
        "bytes at most": 1 << 31,
        "version": "",
        "commit": "abc",
        "longest request": 8192,
    }


def measured(*rounds: tuple[float, float, float]) -> dict:
    """Of rounds with milliseconds of plain, PLT-2 in turn, and PLT-2; twice as much in a batch of 4."""
    lines = [dict(zip(("plain", "plt-2, in turn", "plt-2"), each, strict=True)) for each in rounds]
    twice = [{row: 2 * milliseconds for row, milliseconds in line.items()} for line in lines]
    return {
        "decode": [({"batch": 1, "context": 32}, lines), ({"batch": 4, "context": 32}, twice)],
        "prefill": [({"tokens": 64}, lines)],
        "projections": [
            ({"rows": 1}, [{"plain": line["plain"]} for line in lines]),
            ({"rows": 2}, [{"plain": line["plain"] + 5} for line in lines]),
        ],
    }


def test_a_tiny_run_measures_what_it_says(tmp_path):
    """`plt-2` also with the code of another checkout, here a copy of this one's packages."""
    checkout = tmp_path / "checkout"
    for package in (*PACKAGES, "conversion_plt", "laboratory", "training_plt"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    points = ["--batches", "1", "2", "--contexts", "16", "40", "--prompts", "64", "--beside", f"old={checkout}"]
    main([*TINY, "--rows", "plt-2", *points, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "benchmark.json").read_text())
    rows, points = ["plain", "plt-2", "plt-2, old"], [(1, 16), (2, 16), (1, 40), (2, 40)]
    lines = [(line["row"], line["batch"], line["context"]) for line in found["decode"]]
    assert lines == [(row, *point) for point in points for row in rows]
    assert [line["tokens"] for line in found["prefill"]] == [64] * 3
    assert [line["to old"] is not None for line in found["decode"]] == [False, True, False] * 4
    # the other one is no repository
    assert found["setting"]["versions"].keys() == {"", "old"} and found["setting"]["versions"]["old"] == ""
    assert all(line["ms"] > 0 for name in ("decode", "prefill", "projections") for line in found[name])
    # keys and values of a head of 32 in 2 layers, in float32
    assert found["memory"][0]["KV bytes per token"] == 2 * 32 * 2 * 4
    asked = {"context": 8192, "item_size": 4, "block_size": 128, "in_flight": 64, "prefix_caching": False}
    size = request_bytes(config_of("tiny"), **asked)
    assert found["memory"][1]["KV bytes per token"] == pytest.approx(size / 8192, rel=0.001)
    assert found["setting"]["dtype"] == "float32"
    layers = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64)
    assert found["setting"]["parameters"] == layers + 2 * 256 * 64 + 64
    assert "plain" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "decode.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("row", "together", "prunes"),
    [("plt-2", True, False), ("plt-2, in turn", False, False), (PRUNED, True, True)],
)
def test_a_row_runs_as_its_name_says(row, together, prunes, monkeypatch):
    monkeypatch.setattr(timed_engine, "ENGINES", [])
    plan = timed_engine.Plan("tiny", "float32", batches=[1], prompts=[64], steps=1, eager=True)
    timed_engine.open_engine(row, plan)
    (llm,) = timed_engine.ENGINES
    assert llm.apply_model(lambda model: model.model.together is not None) == [together]
    assert llm.apply_model(lambda model: model.model.parts[1][0].reach is not None) == [prunes]


def test_a_row_counts_by_its_ratios_to_what_ran_in_the_same_round(tmp_path):
    # the machine is half as fast in the second round, and in a part of the third
    rounds = measured((10, 20, 15), (20, 44, 32), (10, 40, 32))
    engines = [engine("plain", 100), engine("plt-2, in turn", 120), engine("plt-2", 120)]
    write_report(tmp_path, {"size": "tiny", "dtype": "float32"}, engines, rounds)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    one_pass = next(line for line in found["decode"] if (line["row"], line["batch"]) == ("plt-2", 4))
    assert (one_pass["to plain"], one_pass["least"], one_pass["greatest"]) == (1.6, 1.5, 3.2)
    assert one_pass["to plt-2 in turn"] == 0.75
    assert one_pass["ms"] == 64
    assert one_pass["tokens/s"] == 4000 / 64
    assert found["memory"][2]["to plain"] == 1.2
    assert [line["to one row"] for line in found["projections"]] == [1, 1.5]
    assert found["setting"]["rounds"] == 3


def test_with_a_row_of_each_kind_for_2_to_4_loops_there_is_a_table_by_loops(tmp_path):
    rows = ["plain", *(f"{kind}-{loops}" for kind in ("loop", "plt") for loops in (2, 3, 4))]
    rows.append("plt-2, old")  # which is not in that table
    points = [({"batch": batch, "context": context}, context * batch) for context in (32, 64) for batch in (1, 4)]
    decode = [(place, [dict.fromkeys(rows, milliseconds)]) for place, milliseconds in points]
    found = {"decode": decode, "prefill": [], "projections": []}
    write_report(tmp_path, {"size": "tiny", "dtype": "float32"}, [engine(row, 100) for row in rows], found)
    found = json.loads((tmp_path / "benchmark.json").read_text())["loops"]
    passes = [line for line in found if (line["kind"], line["batch"]) == ("PLT", 4)]
    assert [(line["loops"], line["ms per token"]) for line in passes] == [(loops, 128) for loops in (1, 2, 3, 4)]
    for name in ("efficiency_by_loops", "latency_by_loops_batch_1", "latency_by_loops_batch_4"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0


def test_without_a_row_of_each_kind_for_2_to_4_loops_there_is_no_table_by_loops(tmp_path):
    write_report(tmp_path, {"size": "tiny", "dtype": "float32"}, [engine("plain", 1)], measured((10, 20, 15)))
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert "loops" not in found
    assert [line["ms, by round"] for line in found["decode"]][:3] == [[10], [20], [15]]


def test_a_number_of_rounds_below_one_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*TINY, "--rounds", "0", "--output", str(tmp_path / "new")])
    assert "`--rounds` must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["before", "=.", "before=", "before=nowhere"])
def test_a_version_needs_a_name_and_a_checkout(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be NAME=CHECKOUT with a checkout of this project, got"):
        read_version(text)


def test_a_row_that_runs_other_code_than_its_checkout_is_refused(tmp_path):
    class Pool:
        def submit(self, function, *arguments):
            return SimpleNamespace(result=lambda: function(*arguments))

    with pytest.raises(RuntimeError, match=r"The row 'plt-2, old' must run the code of .*, got .*model\.py"):
        check_code(Pool(), Lane("plt-2", "old", tmp_path))
