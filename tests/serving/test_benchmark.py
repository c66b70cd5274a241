"""The benchmark of the plugin: what it measures of a tiny model, and what its tables make of measurements."""

import json

import pytest

from serving_plt.benchmark import main
from serving_plt.benchmark_report import write_report

TINY = ["--size", "tiny", "--dtype", "float32", "--steps", "2", "--rounds", "1"]


def measured(row: str, milliseconds: float, kv_bytes: float) -> dict:
    return {
        "row": row,
        "parameters": 10,
        "threads": 1,
        "KV bytes per token": kv_bytes,
        "bytes after loading": 1 << 30,
        "bytes at most": 1 << 31,
        "decode": {"1": milliseconds, "4": 2 * milliseconds},
        "prefill": {"64": 3 * milliseconds},
        "projections": {"1": 4.0, "2": 5.0},
    }


def test_a_tiny_run_measures_what_it_says(tmp_path):
    main([*TINY, "--rows", "plain", "--batches", "1", "2", "--prompts", "64", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(line["row"], line["batch"]) for line in found["decode"]] == [("plain", 1), ("plain", 2)]
    assert [line["tokens"] for line in found["prefill"]] == [64]
    assert all(line["ms"] > 0 for name in ("decode", "prefill", "projections") for line in found[name])
    # keys and values of 4 heads of 32 in 2 layers, in float32
    assert found["memory"][0]["KV bytes per token"] == 2 * 4 * 32 * 2 * 4
    assert found["setting"]["dtype"] == "float32"
    layers = 2 * (128 * (128 + 2 * 128) + 128 * 128 + 3 * 128 * 256 + 2 * 128)
    assert found["setting"]["parameters"] == layers + 2 * 32000 * 128 + 128
    assert "plain" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "decode.png").stat().st_size > 0


def test_the_fastest_round_counts_as_a_ratio_to_plain_and_to_loops_in_turn(tmp_path):
    runs = [("plain", 10, 100), ("plt-2, in turn", 40, 120), ("plt-2", 30, 120)]
    runs += [("plain", 12, 100), ("plt-2, in turn", 20, 120), ("plt-2", 15, 120)]
    plan = {"size": "tiny", "dtype": "float32"}
    write_report(tmp_path, plan, ["plain", "plt-2, in turn", "plt-2"], [measured(*run) for run in runs])
    found = json.loads((tmp_path / "benchmark.json").read_text())
    one_pass = next(line for line in found["decode"] if (line["row"], line["batch"]) == ("plt-2", 4))
    assert one_pass["ms"] == 30
    assert one_pass["slowest round / fastest"] == 2
    assert one_pass["tokens/s"] == pytest.approx(4000 / 30)
    assert one_pass["to plain"] == 1.5
    assert one_pass["to plt-2 in turn"] == 0.75
    assert found["memory"][2]["to plain"] == 1.2
    assert [line["to one row"] for line in found["projections"]] == [1, 1.25]
    assert found["setting"]["rounds"] == 2


def test_a_number_of_rounds_below_one_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*TINY, "--rounds", "0", "--output", str(tmp_path / "new")])
    assert "`--rounds` must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
