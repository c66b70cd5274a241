"""What fits a card is what the published figures say, and results/fit is what the command writes."""

import json
from pathlib import Path

import pytest

from command_plt.main import main
from laboratory.costs import fit
from measuring_plt.rows import ROWS

RESULTS = Path(__file__).parents[2] / "results/fit"
# of LoopCoder-V2, by hand: 14 layers, 8 KV heads of 128, keys and values, two bytes each
COLUMN = 14 * 8 * 128 * 2 * 2
# embeddings and head; four projections, three matrices of the MLP and two norms in each layer; the last norm
PLAIN_7B = 2 * 76800 * 5120 + 14 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 27648 + 2 * 5120) + 5120
GATES_7B = 14 * (40 * 5120 + 40 + 5120)


@pytest.fixture(scope="module")
def counted():
    return fit.count_bytes().set_index(["model", "row", "context"])


@pytest.mark.parametrize(
    "row, columns, states",
    [("plain", 4096, 1), ("loop-2", 8192, 2), ("plt-2", 4096 + 64, 2), ("plt-3", 4096 + 128, 3)],
)
def test_a_sequence_of_the_7b_takes_what_its_columns_take(counted, row, columns, states):
    assert counted.sequence["LoopCoder-V2 7B", row, 4096] == COLUMN * columns + states * 5120 * 2 + 8


def test_weights_take_two_bytes_and_only_gates_add_some(counted):
    weights = counted.weights["LoopCoder-V2 7B"]
    assert weights["plain", 4096] == weights["loop-2", 4096] == 2 * PLAIN_7B
    assert weights["plt-2", 4096] == weights["plt-3", 4096] == 2 * (PLAIN_7B + GATES_7B)
    assert 1.2e9 < counted.weights["1.2B", "plain", 4096] / 2 < 1.3e9


@pytest.mark.parametrize("usable, batch", [(99, 0), (100, 0), (119, 0), (120, 1), (139, 1), (140, 2)])
def test_a_batch_fits_up_to_the_reserve(usable, batch):
    assert fit.greatest_batch(usable / 0.9 + 1e-6, weights=100, sequence=20) == batch


def test_every_model_card_context_and_row_has_its_batch(counted):
    sections = {section.name: section for section in fit.fit_sections(counted.reset_index())}
    lines = sections["fit"].table.to_dict("records")
    expected = [(model, card, context) for model in fit.MODELS for card in fit.CARDS for context in fit.CONTEXTS]
    assert [(line["model"], line["card, GB"], line["context"]) for line in lines] == expected
    for line in lines:
        for row in fit.NAMES:
            weights, sequence = counted.loc[(line["model"], row, line["context"])]
            assert weights + line[row] * sequence <= 0.9e9 * line["card, GB"] or line[row] == 0
            assert weights + (line[row] + 1) * sequence > 0.9e9 * line["card, GB"]
    for name in ("weights", "sequence"):
        for line in sections[name].table.to_dict("records"):
            for row in fit.NAMES:
                assert line[row] == counted.loc[(line["model"], row, line.get("context", 4096)), name] / 1e9
    assert set(fit.NAMES) <= set(ROWS)


def test_the_published_files_are_those_that_the_command_writes(tmp_path):
    main(["bench", "fit", "--output", str(tmp_path)])
    names = {"fit.md", "fit.json", "memory_by_batch.png", "memory_by_batch.svg"}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in RESULTS.iterdir()} == names
    written, published = (json.loads((folder / "fit.json").read_text()) for folder in (tmp_path, RESULTS))
    assert published.pop("setting")["command"] == "plt bench fit --output results/fit"
    written.pop("setting")
    assert written == published
