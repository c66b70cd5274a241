"""The benchmark of the plugin: what it measures of a tiny model, and what its tables make of measurements."""

import json

import pytest

from laboratory.serving.__main__ import main
from laboratory.serving.report import write_report
from serving_plt.vllm import timed_engine

TINY = ["--size", "tiny", "--dtype", "float32", "--steps", "2", "--rounds", "2"]


def engine(row: str, kv_bytes: float) -> dict:
    facts = {"row": row, "parameters": 10, "threads": 1, "KV bytes per token": kv_bytes}
    return facts | {"bytes after loading": 1 << 30, "bytes at most": 1 << 31}


def one_round(plain: float, in_turn: float, one_pass: float) -> dict:
    by_row = {"plain": plain, "plt-2, in turn": in_turn, "plt-2": one_pass}
    return {
        "decode": {"1": by_row, "4": {row: 2 * milliseconds for row, milliseconds in by_row.items()}},
        "prefill": {"64": by_row},
        "projections": {"1": {"plain": plain}, "2": {"plain": plain + 5}},
    }


def test_a_tiny_run_measures_what_it_says(tmp_path):
    main([*TINY, "--rows", "plt-2", "--batches", "1", "2", "--prompts", "64", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "benchmark.json").read_text())
    rows = [("plain", 1), ("plt-2", 1), ("plain", 2), ("plt-2", 2)]
    assert [(line["row"], line["batch"]) for line in found["decode"]] == rows
    assert [line["tokens"] for line in found["prefill"]] == [64, 64]
    assert all(line["ms"] > 0 for name in ("decode", "prefill", "projections") for line in found[name])
    # keys and values of a head of 32 in 2 layers, in float32
    assert found["memory"][0]["KV bytes per token"] == 2 * 32 * 2 * 4
    assert found["setting"]["dtype"] == "float32"
    layers = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128 + 2 * 64)
    assert found["setting"]["parameters"] == layers + 2 * 256 * 64 + 64
    assert "plain" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "decode.png").stat().st_size > 0


@pytest.mark.parametrize(("row", "together"), [("plt-2", True), ("plt-2, in turn", False)])
def test_a_row_runs_as_its_name_says(row, together, monkeypatch):
    monkeypatch.setattr(timed_engine, "ENGINES", [])
    plan = timed_engine.Plan("tiny", "float32", batches=[1], prompts=[64], steps=1, eager=True)
    timed_engine.open_engine(row, plan)
    (llm,) = timed_engine.ENGINES
    assert llm.apply_model(lambda model: model.model.together is not None) == [together]


def test_a_row_counts_by_its_ratios_to_what_ran_in_the_same_round(tmp_path):
    # the machine is half as fast in the second round, and in a part of the third
    rounds = [one_round(10, 20, 15), one_round(20, 44, 32), one_round(10, 40, 32)]
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
    decode = {"1": dict.fromkeys(rows, 10), "4": dict.fromkeys(rows, 20)}
    rounds = [{"decode": decode, "prefill": {}, "projections": {"1": {"plain": 10}}}]
    write_report(tmp_path, {"size": "tiny", "dtype": "float32"}, [engine(row, 100) for row in rows], rounds)
    found = json.loads((tmp_path / "benchmark.json").read_text())["loops"]
    passes = [line for line in found if (line["kind"], line["batch"]) == ("PLT", 4)]
    assert [(line["loops"], line["ms per token"]) for line in passes] == [(loops, 20) for loops in (1, 2, 3, 4)]
    for name in ("efficiency_by_loops", "latency_by_loops_batch_1", "latency_by_loops_batch_4"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0


def test_without_a_row_of_each_kind_for_2_to_4_loops_there_is_no_table_by_loops(tmp_path):
    write_report(tmp_path, {"size": "tiny", "dtype": "float32"}, [engine("plain", 1)], [one_round(10, 20, 15)])
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert "loops" not in found
    assert [line["ms, by round"] for line in found["decode"]][:3] == [[10], [20], [15]]


def test_a_number_of_rounds_below_one_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*TINY, "--rounds", "0", "--output", str(tmp_path / "new")])
    assert "`--rounds` must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
