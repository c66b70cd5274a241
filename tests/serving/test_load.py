"""`python -m laboratory.load` on one small server for all rows: what it measures, and what it fails of."""

import contextlib
import http.client
import json
import time
from dataclasses import replace

import pytest

from laboratory.load import __main__ as load
from laboratory.load import clients, soundness
from laboratory.load.plan import ROWS, Plan, pieces
from laboratory.load.served import Served, options, save_models
from laboratory.load.soundness import UnsoundError, check, said
from serving_plt.vllm.server import DIRECTLY, NAME, serving

PLAN = Plan("tiny", "float32", prompt=64, tokens=16, rates=[8.0], minutes=0.05, rounds=2, leaving=1)
LONG = replace(PLAN, tokens=4096)  # for requests that go on for seconds
MADE = "vllm:generation_tokens_total"
SHORT = ["--size", "tiny", "--dtype", "float32", "--minutes", "0.03", "--rounds", "2"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    save_models(folder, LONG)
    tampering = ("--worker-extension-cls", "tests.serving.tampering.Tampering")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        with serving(folder / "plt-2", folder / "log", *options("plt-2", LONG), *tampering) as server:
            yield Served(server, folder / "plt-2")


@pytest.fixture(autouse=True)
def of_all_rows(served, monkeypatch):
    monkeypatch.setattr(load, "servers", lambda folder, plan: contextlib.nullcontext(dict.fromkeys(ROWS, served)))
    monkeypatch.setattr(clients, "TOGETHER", 4)  # fewer warm it up


def shift_tokens(served: Served) -> None:
    DIRECTLY.open(f"{served.server.address}/collective_rpc", json.dumps({"method": "shift_tokens"}).encode()).close()


def test_a_run_measures_what_it_says_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    command = [*SHORT, "--rates", "8", "--leaving", "1", "--output", str(tmp_path)]
    load.main(command)
    found = json.loads((tmp_path / "load.json").read_text())
    assert [line["row"] for line in found["load"]] == [*ROWS]
    assert sum(line["left"] for line in found["load"]) > 0
    for line in found["load"]:
        assert line["requests"] == 2 * round(8 * 60 * 0.03 / 2)
        assert line["rate"] == 8 and line["tokens/s"] > 0
        assert 0 < line["first token p50, ms"] <= line["first token p99, ms"]
        assert 0 < line["between tokens p50, ms"] <= line["between tokens p99, ms"]
        assert 0 < line["per token p50, ms"] <= line["per token p99, ms"]
        assert len(line["tokens/s, by round"]) == 2
    assert all(line["GB before"] > 0.1 and line["GB after 8 a second"] > 0.1 for line in found["memory"])
    turns = [(number, row) for number, rows in enumerate((ROWS, ROWS[1:] + ROWS[:1])) for row in rows]
    assert [(line["round"], line["row"]) for line in found["memory"]] == turns
    assert (tmp_path / "first_token.png").stat().st_size > 0
    # again, after a piece was lost
    lost, ran = next((tmp_path / "pieces").glob("round-1*plain.json")), []
    kept = {file: file.read_text() for file in (tmp_path / "pieces").iterdir() if file != lost}
    lost.unlink()
    monkeypatch.setattr(load, "run", lambda piece, *rest: ran.append(piece) or kept_figures(kept))
    load.main(command)
    assert [(piece.row, piece.rate, piece.round) for piece in ran] == [("plain", 8, 1)]
    assert {file: file.read_text() for file in kept} == kept
    with pytest.raises(ValueError, match="must have rounds = 3, got 2"):
        load.main([*command, "--rounds", "3"])


def kept_figures(kept: dict) -> dict:
    """Those of any other piece."""
    result = json.loads(next(text for file, text in kept.items() if file.name.startswith("round")))
    return {name: value for name, value in result.items() if name not in ("row", "rate", "round")}


def test_rates_are_chosen_around_what_plain_can_serve(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "run", lambda *_: pytest.skip("has begun"))
    with contextlib.suppress(pytest.skip.Exception):
        load.main([*SHORT, "--output", str(tmp_path)])
    low, middle, high = json.loads((tmp_path / "pieces/plan.json").read_text())["rates"]
    assert 0 < low < middle < high
    assert high / low == pytest.approx(5, rel=0.1)


def test_another_token_after_the_load_fails_the_command(served, tmp_path, monkeypatch):
    bench = load.bench

    def spoiling(*arguments, **more):
        figures = bench(*arguments, **more)
        shift_tokens(served)
        return figures

    monkeypatch.setattr(load, "bench", spoiling)
    with pytest.raises(UnsoundError, match="The tokens after a load must be those before it"):
        load.main([*SHORT, "--rates", "8", "--output", str(tmp_path)])
    assert not [*(tmp_path / "pieces").glob("round-*")]


def test_a_request_that_goes_on_without_a_client_fails_the_check(served, monkeypatch):
    before, made = said(served.server, PLAN), soundness.metric(served.server, MADE)
    monkeypatch.setattr(soundness, "PATIENCE", 0.5)
    connection = http.client.HTTPConnection(served.server.address.removeprefix("http://"))
    asked = {"model": NAME, "prompt": [5] * 64, "max_tokens": 4096, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
    connection.getresponse().readline()
    with pytest.raises(UnsoundError, match="no request must be there after 0.5 s, got 1"):
        check(served.server, PLAN, before)
    connection.close()
    monkeypatch.undo()
    check(served.server, PLAN, before)
    assert soundness.metric(served.server, MADE) - made < 4096  # it has not gone on to its end


def test_a_page_that_is_held_without_a_request_fails_the_check(served, monkeypatch):
    before, metric = said(served.server, PLAN), soundness.metric
    check(served.server, PLAN, before)
    leaking = {soundness.PAGES: 0.01}
    monkeypatch.setattr(soundness, "metric", lambda server, name: leaking.get(name) or metric(server, name))
    with pytest.raises(UnsoundError, match="No page of the cache must be held without a request, got 1.00%"):
        check(served.server, PLAN, before)


def test_a_client_that_is_refused_fails_the_load(served):
    """Here of a prompt that leaves no room for an answer."""
    refused, message = replace(PLAN, prompt=LONG.longest + 1), "The server must answer, got status 400"
    with pytest.raises(UnsoundError, match=message), clients.leaving(served.server, refused, 1000.0, seed=0):
        time.sleep(1)


def test_the_tokens_that_are_compared_tell_states_apart(served):
    """A model that says the same whatever it reads would always be sound."""
    assert len({token for answer in said(served.server, PLAN) for token in answer}) > 8


def test_rows_take_turns():
    plan = replace(PLAN, rates=[1.0, 2.0], rounds=2)
    order = [(piece.round, piece.rate, piece.row) for piece in pieces(plan)]
    assert len(set(order)) == 2 * 2 * len(ROWS)
    assert [row for number, rate, row in order if (number, rate) == (1, 2.0)] == ["plt-2", "plt-2, in turn", "plain"]


@pytest.mark.parametrize(
    ("option", "value", "message"), [("--minutes", "0", "above 0"), ("--rounds", "0", "at least 1")]
)
def test_a_load_of_nothing_is_refused(option, value, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        load.main([*SHORT, option, value, "--output", str(tmp_path / "new")])
    assert f"`{option}` must be {message}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
