"""The study of healing: sources are trained first, results are kept, and the table compares each with its source."""

import json

import datasets
import pytest
from training_texts import write_texts

from laboratory.healing import __main__ as healing_study
from laboratory.healing import trainings as healing_trainings
from laboratory.healing.report import write_report
from laboratory.healing.trainings import LOOP, TRAININGS, Training
from training_plt.heal.controls import WORDS

pytestmark = pytest.mark.slow
TINY = (
    Training("healed", 2, source="loop", heals=True, teacher_weight=2.0),  # before its source, which it needs
    Training("loop", 4, fields=[*LOOP, "--bpe_size", "257"]),
    Training("more", 2, source="loop"),
)


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Runs the study on a few texts."""
    write_texts(tmp_path / "texts.jsonl")
    shared = f"--dataset {tmp_path}/texts.jsonl --block_size 32 --held_out 4 --per_device_train_batch_size 4 --use_cpu"
    size = ["hidden_size=32", "intermediate_size=32", "num_hidden_layers=1", "num_attention_heads=2"]
    monkeypatch.setattr(healing_trainings, "SHARED", f"{shared} --save_strategy no --eval_on_start")
    monkeypatch.setattr(healing_trainings, "SIZE", [*size, "num_key_value_heads=1"])
    monkeypatch.setattr(healing_study, "TRAININGS", TINY)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    return healing_study.main


def read(folder, name):
    return json.loads((folder / f"results/healing/{name}_seed-1.json").read_text())


def test_each_training_is_made_once_and_compared_with_its_source(study, tmp_path, monkeypatch):
    study(["--seeds", "1"])
    results = {training.name: read(tmp_path, training.name) for training in TINY}
    for training in TINY:
        losses = results[training.name]["losses"]
        assert [step for step, _ in losses] == [0, training.steps // 2, training.steps]
        assert results[training.name]["command"].startswith("python -m training_plt.")
    assert "training_plt.heal --max_steps 2" in results["healed"]["command"]
    assert "--teacher runs/healing/loop-1 --kl_weight 2.0" in results["healed"]["command"]
    assert results["more"]["losses"][0][1] == results["loop"]["losses"][-1][1]  # it goes on where the source ended
    assert results["healed"]["losses"][0][1] != results["loop"]["losses"][-1][1]
    table = (tmp_path / "results/healing/table.md").read_text()
    named = [row.split()[1] for row in table.splitlines() if row.startswith("| ")]
    assert named == ["training", "healed", "loop", "more"] * 2, "once each in the table of losses and of controls"
    controls = json.loads((tmp_path / "runs/healing/healed-1/controls.json").read_text())
    assert results["healed"]["controls"] == {name: controls[name] for name in WORDS}
    assert set(results["loop"]["controls"]) == {"loop_0_alone"}
    assert (tmp_path / "results/healing/plot.png").exists()
    monkeypatch.setattr(healing_study, "make", lambda *_: pytest.fail("made again"))
    study(["--seeds", "1"])


def test_controls_are_means_over_the_seeds_that_have_them(tmp_path):
    for seed, loop_0 in ((1, 4.0), (2, 5.0), (3, None)):
        controls = {} if loop_0 is None else {"controls": {"loop_0_alone": loop_0}}
        result = {"name": "loop", "seed": seed, "losses": [(0, 9.0), (9, seed)], "commit": "abc"} | controls
        (tmp_path / f"loop_seed-{seed}.json").write_text(json.dumps(result))
    write_report(tmp_path, TRAININGS)
    last = [row for row in (tmp_path / "table.md").read_text().splitlines() if row.startswith("| loop")][-1]
    assert [float(cell) for cell in last.split("|")[2:-1]] == [1.5, 4.5], "loss and control of the same two seeds"


def test_the_table_has_means_over_seeds_and_the_change_from_the_source_of_each_seed(tmp_path):
    for seed, (before, source, healed) in enumerate([(6.0, 3.0, 3.3), (7.0, 4.0, 4.2)], start=1):
        for name, losses in {"loop": [(0, before), (9, source)], "loop-healed": [(0, 5.0), (9, healed)]}.items():
            result = {"name": name, "seed": seed, "losses": losses, "commit": "abc"}
            (tmp_path / f"{name}_seed-{seed}.json").write_text(json.dumps(result))
    write_report(tmp_path, TRAININGS)
    rows = [
        row.split("|")[1:-1] for row in (tmp_path / "table.md").read_text().splitlines() if row.startswith("| loop")
    ]
    numbers = [[float(cell) for cell in row[1:]] for row in rows]
    assert [row[0].strip() for row in rows] == ["loop", "loop-healed"]
    assert numbers[0] == [2000, 6.5, 3.5, 3, 4, 2, 0]
    assert numbers[1] == [200, 5, 3.75, 3.3, 4.2, 2, 7.5]  # 10 % and 5 %
    rows = [row.split("|")[1:-1] for row in (tmp_path / "differences.md").read_text().splitlines() if "| loop" in row]
    # .3 and .2: mean .25, standard deviation .0707; t of one degree of freedom for 95 % is 12.706
    assert [cell.strip() for cell in rows[1]] == ["loop-healed", "+0.250 ± 0.635", ""]
