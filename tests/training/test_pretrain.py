"""Pretraining end to end, at a size that takes seconds: what it saves, how it resumes, what it refuses."""

import json
import os
import re
import shutil

import datasets
import pytest
import torch
from clean_process import run_in_clean_process
from safetensors.torch import load_file
from tiny import randomize
from training_texts import SIZES, as_flags, byte_tokenizer, write_texts

from modeling_plt import PLTForCausalLM
from training_plt.command.arguments import parse
from training_plt.command.checks import refuse_unwritable, refuse_what_cannot_run
from training_plt.data.texts import TextArguments
from training_plt.pretrain import __main__ as pretrain
from training_plt.pretrain.new_model import ModelArguments
from training_plt.trainer.arguments import PretrainingArguments
from training_plt.trainer.resume import SETTINGS_FILE, refuse_other_settings

LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = None  # as where the package is not installed
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
output = model.generate(**tokenizer("def ", return_tensors="pt"), max_new_tokens=5, min_new_tokens=5)
assert output.shape[1] == 9 and model.config.use_cache
"""

CORE = ["num_hidden_layers=4", "num_prelude_layers=1", "num_coda_layers=1", "loop_input=adapter"]
CORE += ["initial_state=zeros", "coda_norm=True"]
EXPERTS = ["num_experts=4", "num_experts_per_tok=2", "moe_intermediate_size=16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    write_texts(folder / "texts.jsonl")
    (folder / "config.json").write_text(json.dumps(SIZES))
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


def flags(folder, output, *more) -> list[str]:
    """A run of a few steps."""
    values = {
        "dataset": folder / "texts.jsonl",
        "preset": folder / "config.json",
        "output_dir": folder / output,
        "bpe_size": 257,
        "block_size": 32,
        "held_out": 4,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "eval_steps": 3,
    }
    return as_flags(values, *more)


@pytest.fixture(scope="module")
def whole(folder):
    pretrain.main(flags(folder, "whole"))
    return folder / "whole"


def history(run) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
def test_a_run_saves_a_folder_that_loads_anywhere_and_says_how_it_was_made(whole, tmp_path):
    names = {path.name for path in whole.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_plt.py", "loss.png", "README.md"} <= names
    run_in_clean_process(LOAD, whole, cwd=tmp_path)
    card, log = (whole / "README.md").read_text(), history(whole)
    assert f"plt pretrain --dataset {whole.parent}/texts.jsonl" in card
    held_out = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert f"| held-out loss, nats per token | {held_out[-1]:.4f} |" in card
    assert f"| tokens, fill included | {6 * 4 * 32} |" in card
    assert "| learning rate | 0.01, cosine |" in card and re.search(
        r"\| optimizer \| adamw_\w+, weight decay 0.1 \|", card
    )
    assert held_out[-1] < held_out[0] < 6


def test_a_core_is_pretrained_with_the_losses_of_its_earlier_loops(folder):
    """And with Muon; each loop is read out through the coda."""
    more = ["--muon", "--earlier-loops-weight", "0.2", "--save-strategy", "no", "--set", *CORE]
    pretrain.main(flags(folder, "core", *more))
    model = PLTForCausalLM.from_pretrained(folder / "core")
    assert [len(stage.layers) for stage in model.config.stages] == [1, 2, 1]
    entries = [entry for entry in history(folder / "core") if "eval_loss" in entry]
    assert entries[-1]["eval_loss"] < entries[0]["eval_loss"]
    assert entries[-1]["eval_loop_0_loss"] != entries[-1]["eval_loss"]


def test_the_log_has_speed(whole):
    entries = [entry for entry in history(whole) if "loss" in entry]
    assert len(entries) == 6
    assert all(entry["tokens_per_second"] > 0 and 0 < entry["mfu"] < 1 for entry in entries)


def test_sample_text_follows_each_evaluation_and_the_end_says_what_was_made(folder, capsys):
    pretrain.main(flags(folder, "sampled", "--prompt", "def add", "--save-strategy", "no", "--set", "hidden_scale=9"))
    printed, warned = (text.splitlines() for text in capsys.readouterr())
    assert any(line.startswith("warning: a new model with a `hidden_scale` of 9 learns late") for line in warned)
    lines = [line for line in printed if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == ["step 3", "step 6"]
    assert all(": 'def add" in line for line in lines)
    (loss,) = re.findall(r"held-out loss, nats per token \| ([\d.]+) ", (folder / "sampled/README.md").read_text())
    assert printed[-3:] == [
        f"Made:  a pretrained model, num_loops=2, held-out loss {loss} nats per token",
        f"Where: {folder / 'sampled'}",
        f"Next:  plt diagnose --model {folder / 'sampled'} --text FILE --output DIR",
    ]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="whole"),
        pytest.param(["--streaming", "--tokenizer", "TOKENIZER"], id="streaming"),
        pytest.param(["--muon"], id="muon"),
        pytest.param(["--set", *EXPERTS], id="experts"),
        pytest.param(["--muon", "--set", *EXPERTS], id="muon, experts"),
        pytest.param(["--earlier-loops-weight", "0.1", "--gradient-accumulation-steps", "2"], id="earlier-loops"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(folder, tmp_path, more):
    more = [str(folder / "tokenizer") if word == "TOKENIZER" else word for word in more]
    pretrain.main(flags(folder, tmp_path / "whole", *more))
    checkpoint = tmp_path / "whole/checkpoint-3"
    pretrain.main(flags(folder, tmp_path / "resumed", *more, "--resume-from-checkpoint", checkpoint))
    expected, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    at_checkpoint = load_file(checkpoint / "model.safetensors")
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), name
        assert not torch.equal(at_checkpoint[name], weight), name
    assert [entry["loss"] for entry in history(tmp_path / "resumed") if "loss" in entry] == [
        entry["loss"] for entry in history(tmp_path / "whole") if "loss" in entry
    ]


def trainer_of(arguments):
    classes = (ModelArguments, TextArguments, PretrainingArguments)
    return pretrain.prepare(*parse("plt pretrain", None, classes, arguments))[0]


@pytest.mark.parametrize("more, decays", [([], False), (["--decay-gates-and-scales"], True)])
def test_gates_decay_where_that_is_asked_for_only(folder, tmp_path, more, decays):
    trainer = trainer_of(flags(folder, tmp_path, *more))
    groups = trainer.create_optimizer().param_groups
    decaying = {id(each) for group in groups if group["weight_decay"] for each in group["params"]}
    gate = trainer.model.model.layers[0].self_attn.plt_gate
    assert (id(gate.weight) in decaying) == decays
    assert id(trainer.model.model.embed_tokens.weight) in decaying


@pytest.mark.parametrize("weight", [0, 0.3])
def test_accumulated_gradients_are_those_of_one_large_batch(folder, tmp_path, weight):
    """One step of plain gradient descent moves the weights by the gradients."""
    sgd = ["--optim", "sgd", "--learning-rate", 1, "--warmup-steps", 0, "--max-steps", 1, "--max-grad-norm", 0]
    common = [
        *sgd,
        "--weight-decay",
        0,
        "--earlier-loops-weight",
        weight,
        "--save-strategy",
        "no",
        "--eval-strategy",
        "no",
    ]
    moved = []
    for size, accumulation in ((4, 1), (1, 4)):
        sizes = ["--per-device-train-batch-size", size, "--gradient-accumulation-steps", accumulation]
        trainer = trainer_of(flags(folder, tmp_path / str(size), *common, *sizes))
        randomize(trainer.model.double())  # a new gate would hide its norm from the loss
        before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        trainer.train()
        after = trainer.model.state_dict()
        moved.append({name: before[name] - after[name] for name in after})
    for name, gradient in moved[0].items():
        assert gradient.abs().max() > 0, name
        # norms and losses round to float32
        torch.testing.assert_close(moved[1][name], gradient, rtol=0, atol=1e-5 * gradient.abs().max(), msg=name)


def test_a_constant_rate_that_decays_at_the_end(folder, tmp_path):
    schedule = ["--lr-scheduler-type", "warmup_stable_decay", "--lr-scheduler-kwargs", '{"num_decay_steps": 2}']
    pretrain.main(flags(folder, tmp_path, *schedule, "--save-strategy", "no", "--eval-strategy", "no"))
    rates = [entry["learning_rate"] for entry in history(tmp_path) if "loss" in entry]
    assert rates[1:5] == [1e-2] * 4 and rates[0] < 1e-2 and rates[5] < 1e-2


def go_on(folder, model, output, *more):
    values = {"dataset": folder / "texts.jsonl", "output_dir": output, "model": model, "block_size": 32, "held_out": 4}
    more = ("--max-steps", "2", "--per-device-train-batch-size", "4", "--save-strategy", "no", *more)
    pretrain.main(as_flags(values, "--eval-on-start", "--learning-rate", "1e-2", *more))
    return history(output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_is_gone_on_with(folder, whole, tmp_path, dtype):
    source = tmp_path / "source"
    PLTForCausalLM.from_pretrained(whole, dtype=dtype).save_pretrained(source)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / file, source)
    losses = [entry["eval_loss"] for entry in go_on(folder, source, tmp_path / "more") if "eval_loss" in entry]
    before = [entry["eval_loss"] for entry in history(whole) if "eval_loss" in entry][-1]
    assert losses[0] == pytest.approx(before, rel=1e-6 if dtype is torch.float32 else 1e-2)
    assert losses[-1] < losses[0]
    assert load_file(tmp_path / "more" / "model.safetensors")["model.norm.weight"].dtype == torch.float32
    assert f"| made from | {source} |" in (tmp_path / "more" / "README.md").read_text()


@pytest.fixture
def refusal(folder, tmp_path, capsys):
    """The line with which a run ends that cannot do what its flags ask for; nothing is written."""

    def refusal(*more):
        with pytest.raises(SystemExit) as end:
            pretrain.main(flags(folder, tmp_path / "refused", *more))
        assert end.value.code == 2
        assert not (tmp_path / "refused").exists()
        return capsys.readouterr().err.splitlines()[-1]

    return refusal


def test_a_checkpoint_of_another_release_is_named_as_such(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text('{"seed": 1}')
    with pytest.raises(
        ValueError, match="must be of this release, got .* of another, by its `learning_rate`, `optim`."
    ):
        refuse_other_settings(tmp_path, {"seed": 1, "optim": "adamw", "learning_rate": 1e-3})


@pytest.mark.parametrize(
    "more, message",
    [
        (["--block-size", "64"], "`block_size` is 32 and not 64"),
        (["--set", "num_loops=3"], "`config.num_loops` is 2 and not 3"),
        (["--per-device-train-batch-size", "2"], "`entries of a step` is 4 and not 2"),
        (["--held-out", "5"], "`held_out` is 4 and not 5"),
        (["--seed", "1"], "`seed` is 42 and not 1"),
        (["--learning-rate", "1e-6"], "`learning_rate` is 0.01 and not 1e-06"),
        (["--lr-scheduler-type", "linear"], "`lr_scheduler_type` is 'cosine' and not 'linear'"),
        (
            ["--weight-decay", "0", "--adam-beta2", "0.9"],
            "`adam_beta2` is 0.95 and not 0.9, `weight_decay` is 0.1 and not 0.0",
        ),
        (["--max-grad-norm", "2"], "`max_grad_norm` is 1.0 and not 2.0"),
        (["--decay-gates-and-scales"], "`decay_gates_and_scales` is False and not True"),
    ],
)
def test_resuming_with_other_settings_is_refused(refusal, whole, more, message):
    expected = f"error: A resumed run must have the settings of its checkpoint, where {message}."
    assert refusal("--resume-from-checkpoint", whole / "checkpoint-3", *more) == expected


def test_a_resumed_run_may_log_save_and_end_otherwise_and_does(folder, whole, tmp_path):
    other = ["--logging-steps", 2, "--save-steps", 4, "--eval-steps", 5, "--max-steps", 10]
    pretrain.main(flags(folder, tmp_path / "longer", *other))
    resume = ["--resume-from-checkpoint", whole / "checkpoint-3"]
    pretrain.main(flags(folder, tmp_path / "resumed", *other, *resume))
    entries = history(tmp_path / "resumed")
    assert [entry["step"] for entry in entries if "loss" in entry and entry["step"] > 3] == [4, 5, 6, 8, 10]
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [3, 5, 10]
    assert {path.name for path in (tmp_path / "resumed").glob("checkpoint-*")} == {
        "checkpoint-4",
        "checkpoint-8",
        "checkpoint-10",
    }
    rates = [
        {entry["step"]: entry["learning_rate"] for entry in each if "loss" in entry}
        for each in (entries, history(tmp_path / "longer"))
    ]
    assert {step: rates[0][step] for step in (6, 8, 10)} == {step: rates[1][step] for step in (6, 8, 10)}


def test_what_is_no_checkpoint_is_refused(refusal, whole, folder):
    assert "must be a checkpoint with a trainer_state.json" in refusal("--resume-from-checkpoint", folder)
    assert "must be a checkpoint with a run_settings.json" in refusal("--resume-from-checkpoint", whole)
    assert "needs a checkpoint in" in refusal("--resume-from-checkpoint", "true")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--dataset", "absent.jsonl"], "got none that holds anything in absent.jsonl"),
        (["--dataset", "one.txt"], "The held-out texts must hold at least one block of 32 tokens, got 11"),
        (["--held-out", "1000"], "more documents than the 1000 of `--held-out`, got 40"),
        (["--block-size", "3000"], "`--block-size` must be at most the 2048 of `max_position_embeddings`, got 3000"),
        (["--block-size", "2000"], "must hold at least one block of 2000 tokens"),
        (["--tokenizer", "./absent"], "The tokenizer must be a hub id or a folder with one, got ./absent"),
        (["--preset", "large"], "must be a JSON file or one of tiny, "),
        (["--model", "absent"], "`--model` brings its shape and its tokenizer with it, got `--preset` too"),
        (["--streaming"], "`--streaming` needs a `--tokenizer`"),
        (["--remove-unused-columns", "true"], "`--remove-unused-columns` must be false"),
        (["--attn-implementation", "flash_attention_2"], "invalid choice"),
        (["--muon", "--decay-gates-and-scales"], "is for AdamW alone"),
    ],
)
def test_wrong_input_is_refused_before_training(refusal, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("x" * 100)
    assert message in refusal(*more)


@pytest.mark.parametrize(
    "more, message",
    [
        (
            ["--set", "num_loop=3"],
            "`--set` takes FIELD=VALUE with a field of PLTConfig, got 'num_loop=3'; is `num_loops` meant?",
        ),
        (["--set", "num_loops=0"], "must be an integer of at least 1, got 0"),
        (["--preset", "large"], "must be a JSON file or one of tiny, "),
        (["--learning-rate", "-1"], "`--learning-rate` must be a number of at least 0, got -1.0."),
        (["--tokenizer", "./absent"], "got ./absent, which is no folder, and of the hub: "),
        (["--block-size", "3000"], "must be at most the 2048"),
        (["--report-to", "clearml"], "`--report-to` must be trackers that are installed, got clearml."),
        (["--output-dir", "/proc/absent"], "`--output-dir` must be a folder to write into, got /proc/absent: "),
        (["--attn-implementation", "flex_attention"], "needs a GPU: on a CPU it has no backward."),
        (["--earlier-loops-weight", "-1"], "must be at least 0, got -1.0"),
        (
            ["--earlier-loops-weight", "1", "--label-smoothing-factor", "0.1"],
            "`--earlier-loops-weight` does not go with",
        ),
        (["--preset", "tiny-moe", "--label-smoothing-factor", "0.1"], "The balance loss of experts"),
        (["--streaming"], "`--streaming` needs a `--tokenizer`"),
        (["--block-sise", "32"], "error: --block-sise is no argument of this command; is --block-size meant?"),
        (["--chat-template-path", "x"], "error: --chat-template-path is no argument of this command."),
    ],
)
def test_what_needs_no_data_is_refused_before_data_is_read(refusal, monkeypatch, capsys, more, message):
    monkeypatch.setattr(pretrain, "load_texts", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sentence = refusal(*more)
    assert message in sentence and sentence.startswith("error: ")


def test_help_shows_commands_that_can_be_copied(capsys):
    with pytest.raises(SystemExit):
        parse("plt pretrain", pretrain.__doc__, (ModelArguments,), ["--help"])
    text = capsys.readouterr().out
    (command,) = re.findall(r"plt pretrain (--preset .*?)--output-dir", text, flags=re.DOTALL)
    assert command.count(" \\\n") == 2


def test_several_gpus_in_one_process_are_refused(tmp_path):
    training = PretrainingArguments(tmp_path, use_cpu=True, report_to=[])
    refuse_what_cannot_run(training, None)
    training._n_gpu = 2
    with pytest.raises(NotImplementedError, match="must have one GPU, got 2: start one for each by `acc"):
        refuse_what_cannot_run(training, None)


def test_the_look_whether_a_folder_can_be_written_makes_and_removes_none(tmp_path, monkeypatch):
    """Runs of a sweep start at once: one would remove the folder that another had just found."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("mkdir", "rmdir"):
        monkeypatch.setattr(os, name, None)
    refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "sweep" / "run")
    for place in ("file", "file/run", "link"):
        with pytest.raises(ValueError, match=f"must be a folder to write into, got .*{place}"):
            refuse_unwritable(tmp_path / place)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_one_text_file_is_enough(folder, tmp_path):
    (tmp_path / "input.txt").write_text("def add(x):\n    return x + 1\n" * 200)
    pretrain.main(flags(folder, tmp_path / "run", "--dataset", tmp_path / "input.txt", "--save-strategy", "no"))
    held_out = [entry["eval_loss"] for entry in history(tmp_path / "run") if "eval_loss" in entry]
    assert held_out[-1] < held_out[0]


def test_streaming_needs_a_number_of_steps(refusal, folder):
    assert "needs `--max-steps`" in refusal("--streaming", "--tokenizer", folder / "tokenizer", "--max-steps", "-1")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_kwargs` is deprecated:FutureWarning")
def test_reentrant_checkpointing_of_several_processes_is_refused(refusal, monkeypatch):
    monkeypatch.setattr(PretrainingArguments, "world_size", 2)
    message = refusal("--gradient-checkpointing-kwargs", '{"use_reentrant": true}')
    assert "must leave `use_reentrant` false with several processes" in message
