"""Speed, MFU, the loss plot and the card, from numbers that are known."""

from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from tiny import tiny_ids, tiny_model
from transformers import TrainerState

from training_plt.command.cards import write_card
from training_plt.trainer import progress
from training_plt.trainer.progress import Speed, measure_peak, operations_per_token, plot_losses


@pytest.mark.parametrize("num_loops", [1, 3])
def test_operations_are_those_of_the_model_with_all_loops(num_loops):
    model = tiny_model(num_loops=num_loops)
    assert 18 * operations_per_token(model) == model.floating_point_ops({"input_ids": tiny_ids(2, 9)})


def test_mfu_is_the_share_of_the_peak_since_the_last_pause(monkeypatch):
    model, clock = tiny_model(), iter([10.0, 14.0, 14.0, 20.0, 21.0, 21.0])
    monkeypatch.setattr(progress, "measure_peak", lambda device, dtype: 1e6)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"), bf16=False, fp16=False)
    state, speed = TrainerState(log_history=[{}]), Speed()
    speed.on_train_begin(args, state, None, model)

    def log():
        logs = {"loss": 1.0}
        speed.on_log(args, state, None, logs)
        assert state.log_history[-1].items() <= logs.items()
        return logs["tokens_per_second"], logs["mfu"]

    share = operations_per_token(model) / 2e6  # of two devices
    state.num_input_tokens_seen = 100
    assert log() == (25, pytest.approx(25 * share))  # 100 tokens from 10 s to 14 s
    speed.on_evaluate(args, state, None)  # until 20 s
    state.num_input_tokens_seen = 150
    assert log() == (50, pytest.approx(50 * share))  # 50 tokens from 20 s to 21 s


def test_the_peak_is_measured_without_drawing_from_the_run():
    before = torch.get_rng_state()
    assert measure_peak(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), before)


def test_the_plot_has_both_losses():
    history = [
        {"step": 1, "loss": 4.0, "grad_norm": 1.0},
        {"step": 2, "loss": 3.0},
        {"step": 2, "eval_loss": 3.5},
        {"step": 2, "train_runtime": 1.0},
    ]
    (axes,) = plot_losses(history).axes
    lines = {tuple(map(tuple, line.get_xydata())) for line in axes.lines}
    assert {((1, 4), (2, 3)), ((2, 3.5),)} <= lines
    assert [text.get_text() for text in axes.get_legend().texts] == ["training", "held out"]


def test_a_card_says_how_a_folder_was_made(tmp_path):
    write_card(
        tmp_path, "A small model", "python -m it --steps 3", {"tokens": 5}, license="mit", base_model="its/source"
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.base_model, card.data.library_name) == ("mit", "its/source", "transformers")
    assert "# A small model" in card.text and "python -m it --steps 3" in card.text and "| tokens | 5 |" in card.text
