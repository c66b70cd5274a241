"""The experiment command: runs are made once, shared between processes, and shown as they are."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from laboratory import setting
from laboratory.healing import __main__ as healing_study
from laboratory.tasks import __main__ as command
from laboratory.tasks import load, names
from laboratory.tasks.experts import EXPERTS
from laboratory.tasks.harness import python_text
from laboratory.tasks.harness.definition import Cell, Experiment, Run
from laboratory.tasks.harness.examples import NO_ANSWER, Examples
from laboratory.tasks.harness.plan import missing_runs
from laboratory.tasks.harness.report import write_report
from laboratory.tasks.harness.store import Store
from laboratory.tasks.harness.train import build, correct_and_nats, measure, scores, training_arguments
from laboratory.tasks.hops import Hops
from measuring_plt.rows import ALL_ROWS

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAST = Experiment(
    name="hops",
    question="Does it run?",
    task=Hops(num_tests=8, length=12, max_hops=2),
    metric="accuracy",
    fields=TINY | {"sliding_window": 4},
    cells=(Cell("plain"), Cell("plt-2", {"sliding_window": 2}), Cell("plt-2", {"sliding_window": 3}), Cell("deep-2")),
    learning_rates=(1e-3, 3e-3),
    steps=2,
    batch_size=4,
)
NUM_RUNS = 3 * 2 + 4  # every row is tuned once, every cell runs with one seed


def canned(run: Run, accuracies=(1.0, 0.0), bits=1.0) -> dict:
    """A result without a run."""
    table = [
        {"group": group, "count": 10, "accuracy": accuracy, "bits": bits} for group, accuracy in enumerate(accuracies)
    ]
    more = {"parameters": 100, "seconds": 1.0, "commit": "abc", "losses": [], "machine": {}}
    return run.settings() | more | {"scores": table}


@pytest.fixture
def fast(monkeypatch, tmp_path):
    """Runs the command on a small experiment; `fast.made` are the runs that it made, which take no time."""

    def run(*arguments: str) -> None:
        command.main(["hops", "--results", str(tmp_path), "--seeds", "1", *arguments])

    run.made = []
    monkeypatch.setattr(command, "load", lambda name: FAST)
    monkeypatch.setattr(command, "measure", lambda made: run.made.append(made.name) or canned(made))
    return run


@pytest.mark.parametrize("name", names())
def test_every_experiment_has_a_question_and_known_rows(name):
    found = load(name)
    assert found.name == name and found.question.endswith("?")
    assert {cell.row for cell in found.cells} <= set(ALL_ROWS)
    runs = [Run(found, cell, rate, seed) for cell in found.cells for rate in found.learning_rates for seed in (0, 1)]
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("name", [name for name in names() if name != "language"])
def test_rows_of_one_depth_have_as_many_parameters_but_for_the_gate(name):
    found = load(name)
    models = [build(Run(found, cell, 1e-3, 1)) for cell in found.cells if not cell.row.startswith("deep")]
    sizes = {
        (model.config.num_hidden_layers, model.config.num_experts)
        + (sum(p.numel() for n, p in model.named_parameters() if "plt_gate" not in n),)
        for model in models
    }
    assert len(sizes) == len({each[:2] for each in sizes})


def test_experts_have_as_many_active_parameters_as_dense_models_but_for_the_router():
    models = {cell.name: build(Run(load("experts"), cell, 1e-3, 1)) for cell in load("experts").cells}
    for row in ("plain", "loop-2", "plt-2"):
        dense, sparse = models[row], models[f"{row}, experts 8"]
        assert sparse.num_active_parameters() - dense.num_parameters() == 2 * 8 * 64  # the routers of two layers


def test_a_run_of_experts_says_how_alike_its_loops_choose():
    cell = Cell("plt-2", EXPERTS)
    result = measure(Run(dataclasses.replace(FAST, cells=(cell,)), cell, 3e-3, 1))
    overlap = [of_layer[1] for of_layer in result["expert_overlap"]]
    assert all(0 < share <= 1 for share in overlap) and result["active_parameters"] < result["parameters"]
    assert all(sum(load) == pytest.approx(1) for load in result["expert_load"])


def test_the_optimizer_is_the_published_one(tmp_path):
    """arXiv 2510.25741, section 6.2; it is no setting of a run, because all results have it."""
    arguments = training_arguments(Run(FAST, FAST.cells[0], 3e-3, 1), str(tmp_path))
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.98, 0.1)
    assert arguments.lr_scheduler_type == "cosine"


def test_a_run_writes_what_it_did(tmp_path):
    run = Run(FAST, FAST.cells[1], 3e-3, 1)
    store = Store(tmp_path)
    with store.claim(run) as is_ours:
        assert is_ours
        store.write(run, measure(run))
    result = json.loads((tmp_path / "plt-2_window-2_lr-0.003_seed-1.json").read_text())
    assert store.read(run) == result and not list(tmp_path.glob("*.lock"))
    assert result["config"]["sliding_window"] == 2 and result["config"]["num_loops"] == 2
    assert (result["learning_rate"], result["seed"], result["is_tuning"]) == (3e-3, 1, False)
    assert result["machine"]["cpu_threads"] == 1 and result["machine"]["torch"] == torch.__version__
    assert result["seconds"] > 0 and len(result["losses"]) == 2
    assert re.fullmatch(r"[0-9a-f]{40}\+?|", result["commit"])
    assert [score["group"] for score in result["scores"]] == [1, 2]


def test_the_commit_of_a_run_is_marked_by_edits_of_what_is_there(monkeypatch):
    assert all((ROOT / path).is_dir() for path in setting.CODE)
    asked = []
    monkeypatch.setattr(setting, "commit_of", lambda *paths: asked.append(paths) or "abc")
    assert setting.commit.__wrapped__() == "abc" and {"laboratory", "modeling_plt"} <= set(*asked)


def test_equal_runs_give_equal_numbers_and_other_seeds_others():
    one, again, other = (measure(Run(FAST, FAST.cells[1], 3e-3, seed)) for seed in (1, 1, 2))
    assert one["scores"] == again["scores"] and one["losses"] == again["losses"]
    assert one["losses"] != other["losses"]


def test_training_lowers_the_loss():
    result = measure(Run(dataclasses.replace(FAST, steps=60), Cell("plain"), 1e-2, 1))
    assert result["losses"][-1] < 0.8 * result["losses"][0]
    chance = sum(score["bits"] for score in result["scores"]) / 2
    assert chance < math.log2(4), "it knows that four of the tokens are letters"


def test_a_smeared_model_adds_the_embedding_before_its_channels_moved():
    run = Run(FAST, Cell("plt-2", smears=True), 1e-3, 1)
    smeared, usual = build(run), build(Run(FAST, Cell("plt-2"), 1e-3, 1))
    usual.load_state_dict(smeared.state_dict())
    ids = torch.tensor([[3, 1, 2, 0, 2]])
    own = usual.get_input_embeddings()(ids)
    rows = [own[0, 0]]
    for position in range(1, 5):
        before, moved = own[0, position - 1], torch.empty(32)
        for channel in range(32):
            moved[(channel + 17) % 32] = before[channel]
        rows.append(own[0, position] + moved)
    torch.testing.assert_close(smeared(ids).logits, usual(inputs_embeds=torch.stack(rows)[None]).logits)
    assert not torch.allclose(smeared(ids).logits, usual(ids).logits, atol=1e-3)


def test_a_longer_cell_has_more_steps_and_the_rate_of_its_row(tmp_path):
    experiment = dataclasses.replace(FAST, cells=(FAST.cells[0], Cell("plain", longer=3)), tuning_steps=1)
    store = Store(tmp_path)
    for rate in FAST.learning_rates:
        tuning = Run(experiment, FAST.cells[0], rate, 0)
        store.write(tuning, canned(tuning, bits=rate))
    runs = list(missing_runs(experiment, list(experiment.cells), [1], store))
    assert [(run.cell.name, run.steps, run.learning_rate) for run in runs] == [
        ("plain", 2, 1e-3),
        ("plain, 3 times the steps", 6, 1e-3),
    ]
    assert len({run.name for run in runs}) == 2


def test_tuning_asks_the_validation_where_the_experiment_has_one():
    plain = dataclasses.replace(FAST, task=Hops(num_tests=30, length=12, max_hops=2))
    validated = dataclasses.replace(plain, validates=True)
    for experiment, seed, expected in ((plain, 0, "test"), (validated, 0, "validation"), (validated, 1, "test")):
        run = Run(experiment, Cell("plain"), 1e-3, seed)
        asked = getattr(experiment.task, expected)()
        result = measure(run)
        counts = {group: int((asked.groups[asked.labels != NO_ANSWER] == group).sum()) for group in (1, 2)}
        assert {score["group"]: score["count"] for score in result["scores"]} == counts
        assert result.get("asks_validation", False) == (expected == "validation")
    test, validation = (part.groups.eq(1).sum() for part in (plain.task.test(), plain.task.validation()))
    assert test != validation, "the counts tell them apart"


def test_a_result_of_before_a_field_of_the_config_stands_for_its_default(tmp_path):
    run = Run(FAST, FAST.cells[1], 1e-3, 1)
    store = Store(tmp_path)
    older = canned(run)
    del older["config"]["learned_scales"]
    older["config"]["transformers_version"] = "4.0"
    store.write(run, older)
    assert store.read(run) is not None
    older["config"]["sliding_window"] = 3
    store.write(run, older)
    with pytest.raises(ValueError, match="with config = "):
        store.read(run)


@pytest.mark.parametrize("field, value", [("num_experts_per_tok", 4), ("hidden_size", "wide")])
def test_a_result_of_a_config_that_is_refused_today_is_none_of_the_run(field, value, tmp_path):
    run = Run(FAST, FAST.cells[1], 1e-3, 1)
    older = canned(run)
    older["config"][field] = value
    Store(tmp_path).write(run, older)
    with pytest.raises(ValueError, match="with config = "):
        Store(tmp_path).read(run)


@pytest.mark.parametrize("name", names())
def test_the_published_results_are_those_of_the_runs_of_today(name):
    found = load(name)
    assert not list(missing_runs(found, list(found.cells), [1, 2, 3], Store(ROOT / "results" / name)))


def test_a_frozen_gate_stays_at_one_half():
    for frozen, is_moved in (("", True), ("plt_gate", False)):
        model = build(Run(FAST, Cell("plt-2", frozen=frozen), 1e-3, 1))
        gate = [parameter for name, parameter in model.named_parameters() if "plt_gate" in name]
        assert {parameter.requires_grad for parameter in gate} == {is_moved}
        assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "plt_gate" not in name)


def test_scores_are_those_of_each_group():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, NO_ANSWER, 3, 1], [2, 4, NO_ANSWER, 0]])  # the first of a row is never asked
    groups = torch.tensor([[9, 9, 1, 2], [9, 1, 9, 2]])
    table = scores(correct_and_nats(logits, labels), Examples(labels, labels, groups))
    asked = {1: [(0, 1, 3), (1, 0, 4)], 2: [(0, 2, 1), (1, 2, 0)]}  # row, position of the logits, answer
    for line, (group, places) in zip(table, asked.items(), strict=True):
        assert (line["group"], line["count"]) == (group, 2)
        right = [logits[row, place].argmax().item() == answer for row, place, answer in places]
        bits = [-math.log2(logits[row, place].softmax(-1)[answer].item()) for row, place, answer in places]
        assert line["accuracy"] == pytest.approx(sum(right) / 2)
        assert line["bits"] == pytest.approx(sum(bits) / 2, abs=1e-6)  # float32


def test_a_run_that_has_its_result_is_not_repeated(fast, tmp_path):
    fast()
    assert len(fast.made) == len(set(fast.made)) == NUM_RUNS
    assert sum(name.startswith("tune_") for name in fast.made) == 3 * 2
    fast()
    assert len(fast.made) == NUM_RUNS
    fast("--seeds", "1", "2")
    assert [name for name in fast.made[NUM_RUNS:] if not name.endswith("seed-2")] == []
    assert len(fast.made) == NUM_RUNS + 4


def test_a_stopped_experiment_goes_on_where_it_stopped(fast, monkeypatch, tmp_path):
    make = command.measure

    def stop(run):
        if len(fast.made) == 7:
            raise KeyboardInterrupt
        return make(run)

    monkeypatch.setattr(command, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        fast()
    assert len(list(tmp_path.rglob("*.json"))) == 7 and not list(tmp_path.rglob("*.part"))
    monkeypatch.setattr(command, "measure", make)
    fast()
    assert len(fast.made) == len(set(fast.made)) == NUM_RUNS


def test_a_run_is_claimed_by_one_process_only(tmp_path):
    run = Run(FAST, FAST.cells[0], 1e-3, 1)
    with Store(tmp_path).claim(run) as first, Store(tmp_path).claim(run) as second:
        assert first and not second
    with Store(tmp_path).claim(run) as again:
        assert again, "it has been let go, and has no result"
        Store(tmp_path).write(run, canned(run))
    with Store(tmp_path).claim(run) as late:
        assert not late


def test_the_budget_starts_no_run_when_it_is_over(fast):
    fast("--budget", "0")
    assert fast.made == []


def test_only_the_cells_of_a_row_run(fast):
    fast("--only", "plt-2")
    assert len(fast.made) == 2 + 2 and all("plt-2" in name for name in fast.made)


def test_the_learning_rate_is_the_one_that_was_best_when_tuned(tmp_path):
    store = Store(tmp_path)
    for cell in FAST.cells:
        for rate in FAST.learning_rates:
            run = Run(FAST, cell, rate, 0)
            bits = abs(rate - (3e-3 if cell.row == "plt-2" else 1e-3))
            if cell.fields.get("sliding_window") != 3:  # it is tuned as the cell before it
                store.write(run, canned(run, bits=bits))
    runs = list(missing_runs(FAST, list(FAST.cells), [1], store))
    assert [run.learning_rate for run in runs] == [1e-3, 3e-3, 3e-3, 1e-3]
    assert [run.seed for run in runs] == [1] * 4


def test_the_table_shows_the_mean_the_extremes_and_the_gap(tmp_path):
    store = Store(tmp_path)
    values = {0: [0.2, 0.4], 1: [0.5, 0.7], 2: [0.9, 0.9], 3: [0.8, 0.8]}  # by cell: accuracy of two seeds
    for cell, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies, start=1):
            run = Run(FAST, FAST.cells[cell], 1e-3, seed)
            store.write(run, canned(run, (accuracy - 0.1, accuracy + 0.1)))
    tuning = Run(FAST, FAST.cells[0], 1e-3, 0)
    store.write(tuning, canned(tuning, (9.0, 9.0)))  # which no table may show
    write_report(FAST, store)
    text = (tmp_path / "table.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    header, *lines = cells
    found = {line[1]: dict(zip(header, line, strict=True)) for line in lines[:4]}
    assert [found["plain"][name] for name in ("mean", "min", "max", "% gap")] == ["0.3", "0.2", "0.4", "0"]
    assert found["plt-2, window 2"]["% gap"] == "60" and found["plt-2, window 3"]["% gap"] == "120"
    assert found["deep-2"]["% gap"] == "100" and found["deep-2"]["seeds"] == "2"
    assert found["plt-2, window 3"]["% of plt-2"] == "200" and found["deep-2"]["% of plt-2"] == "166.7"
    assert [line[-2:] for line in lines if line[1] == "plain"][-1] == ["0.2", "0.4"]
    assert (tmp_path / "plot.png").stat().st_size < 200_000


def test_differences_are_between_runs_of_one_seed_with_their_interval(tmp_path):
    store = Store(tmp_path)
    for cell, accuracies in {0: [0.1, 0.5, 0.3], 1: [0.3, 0.6, 0.6]}.items():
        for seed, accuracy in enumerate(accuracies, start=1):
            run = Run(FAST, FAST.cells[cell], 1e-3, seed)
            store.write(run, canned(run, (accuracy,)))
    write_report(FAST, store)
    header, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "table.md").read_text().splitlines()
        if line.startswith("|")
    ]
    plain, plt = (dict(zip(header, line, strict=True)) for line in lines)
    # .2, .1, .3: mean .2, standard deviation .1; t of 2 degrees of freedom for 95 % is 4.303
    assert plt["minus plain"] == f"+0.200 ± {4.303 * 0.1 / math.sqrt(3):.3f}" and plt["minus plt-2"] == ""
    assert plain["minus plt-2"] == f"-0.200 ± {4.303 * 0.1 / math.sqrt(3):.3f}" and plain["minus plain"] == ""


def test_every_pair_has_its_difference(tmp_path):
    store = Store(tmp_path)
    values = {0: {1: 0.1, 2: 0.5, 3: 0.3}, 1: {1: 0.3, 2: 0.6, 3: 0.6}, 3: {2: 0.7, 3: 0.9}, 2: {1: 0.2}}
    for cell, accuracies in values.items():
        for seed, accuracy in accuracies.items():
            run = Run(FAST, FAST.cells[cell], 1e-3, seed)
            store.write(run, canned(run, (accuracy, accuracy)))
    write_report(FAST, store)
    header, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "differences.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert header == ["cell", *(FAST.cells[cell].name for cell in sorted(values))]
    # t of 2 and of 1 degrees of freedom; deep-2 is .2 and .6 above plain, .1 and .3 above plt-2
    three, wide, two = f"{4.303 * 0.1 / math.sqrt(3):.3f}", f"{12.706 * 0.4 / 2:.3f}", f"{12.706 * 0.2 / 2:.3f}"
    assert lines == [  # of plt-2 with window 3 there is one seed
        [header[1], "", f"-0.200 ± {three}", "", f"-0.400 ± {wide}"],
        [header[2], f"+0.200 ± {three}", "", "", f"-0.200 ± {two}"],
        [header[3], "", "", "", ""],
        [header[4], f"+0.400 ± {wide}", f"+0.200 ± {two}", "", ""],
    ]


def test_the_table_says_how_rates_were_chosen_and_which_are_at_an_edge(tmp_path):
    wide = dataclasses.replace(FAST, learning_rates=(1e-3, 2e-3, 3e-3), validates=True, tuning_steps=1)
    for experiment, expected in (
        (wide, "1 steps, by the bits on other sequences"),
        (FAST, "2 steps, by the bits on the test"),
    ):
        store = Store(tmp_path / str(experiment.validates))
        store.folder.mkdir()
        for cell, rate in ((0, 2e-3), (1, 3e-3)):
            run = Run(experiment, experiment.cells[cell], rate, 1)
            store.write(run, canned(run))
        write_report(experiment, store)
        text = (store.folder / "table.md").read_text()
        assert expected in text and "a better rate may lie beyond: plt-2, window 2.\n" in text


@pytest.mark.parametrize("name", [name for name in [*names(), "healing"] if (ROOT / "results" / name).exists()])
def test_the_published_tables_are_those_of_their_results(name, tmp_path, monkeypatch):
    results = tmp_path / name
    shutil.copytree(ROOT / "results" / name, results, ignore=shutil.ignore_patterns("*.md", "*.png"))
    monkeypatch.chdir(tmp_path)
    if name == "healing":
        healing_study.main(["--plots-only", "--results", str(results)])
    else:
        monkeypatch.setattr(python_text, "read_documents", lambda: pytest.fail("tables need no text"))
        command.main([name, "--plots-only", "--results", str(tmp_path)])
    for file in ("table.md", "differences.md"):
        assert (results / file).read_text() == (ROOT / "results" / name / file).read_text()
    assert (results / "plot.png").stat().st_size > 5000


def test_a_report_of_one_group_has_a_plot_too(tmp_path):
    store = Store(tmp_path)
    for cell in FAST.cells:
        run = Run(FAST, cell, 1e-3, 1)
        store.write(run, canned(run, (0.5,)))
    write_report(FAST, store)
    assert (tmp_path / "plot.png").exists() and "by hops" not in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reech"], "`name` must be one of .*hops.*, got 'reech'"),
        ([], "`name` must be one of .*hops.*, got None"),
        (["hops", "--only", "loop-9"], "`--only` must be a row of hops, one of plain, .*, got 'loop-9'"),
        (["hops", "--seeds", "0"], "`--seeds` must be above 0, the seed of tuning, got 0"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([*arguments, "--results", str(tmp_path)])
    assert re.search(sentence, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "must be the JSON of a run, got .*: move it away"),
        ("[]", "must be the JSON of a run with `scores`, got none: move it away"),
        ('{"scores": [], "experiment": "mano"}', "must be of a run with experiment = hops, got mano: move it away"),
    ],
)
def test_a_broken_result_is_named_before_anything_runs(fast, text, sentence, tmp_path, capsys):
    (tmp_path / "hops").mkdir()
    (tmp_path / "hops" / f"{Run(FAST, FAST.cells[0], 1e-3, 0).name}.json").write_text(text)
    with pytest.raises(SystemExit):
        fast()
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f"tune_plain_lr-0.001_seed-0.json {sentence}", last) and fast.made == []


def test_the_list_shows_what_is_done(tmp_path, capsys):
    run = Run(load("hops"), load("hops").cells[0], load("hops").learning_rates[0], 0)
    (tmp_path / "hops").mkdir()
    Store(tmp_path / "hops").write(run, canned(run))
    command.main(["--list", "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    assert [line.split(":")[0] for line in shown.splitlines()] == names()
    assert "Runs: 1 done" in shown
