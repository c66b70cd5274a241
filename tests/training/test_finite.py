"""A run whose loss is no number ends there, in every process, and saves nothing of it."""

from pathlib import Path

import datasets
import pytest
from scale_out import in_two_processes
from spoiled_worker import spoil
from test_finetune import SETTINGS, write_chats
from training_texts import SIZES, as_flags, chat_tokenizer, write_texts
from transformers import TrainerControl, TrainerState, TrainingArguments

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from training_plt.finetune import __main__ as finetune
from training_plt.heal import __main__ as heal
from training_plt.pretrain import __main__ as pretrain
from training_plt.trainer.finite import NotFinite, StopAtNonFinite

WORKER = Path(__file__).with_name("spoiled_worker.py")
CHATS = [[{"role": "user", "content": f"f{n}"}, {"role": "assistant", "content": "(text)"}] for n in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts, chats, and a PLT with its tokenizer."""
    folder = tmp_path_factory.mktemp("finite")
    write_texts(folder / "texts.jsonl")
    write_chats(folder / "chats.jsonl", [{"messages": messages} for messages in CHATS])
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    config = PLTConfig(**SIZES, vocab_size=258, eos_token_id=0, bos_token_id=0, pad_token_id=257)
    PLTForCausalLM(config).save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


def text_flags(folder, *more) -> list[str]:
    values = {"model": folder / "model", "dataset": folder / "texts.jsonl", "output_dir": folder / "out"}
    values |= {"block_size": 32, "held_out": 4, "max_steps": 6, "per_device_train_batch_size": 2, "eval_steps": 50}
    return as_flags(values, *more)


def chat_flags(folder, *more) -> list[str]:
    values = SETTINGS | {"model": folder / "model", "dataset": folder / "chats.jsonl", "output_dir": folder / "out"}
    values |= {"per_device_train_batch_size": 2, "save_strategy": "steps"}
    return [f"--{name}={value}" for name, value in values.items()] + [*map(str, more)]


RUNS = {"pretrain": (pretrain, text_flags), "heal": (heal, text_flags), "finetune": (finetune, chat_flags)}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", RUNS)
def test_the_run_ends_before_the_next_checkpoint(folder, tmp_path, monkeypatch, capsys, kind, accumulation):
    """The third step is spoiled, the log comes every fifty, checkpoints every two."""
    module, flags = RUNS[kind]
    more = ("--gradient-accumulation-steps", accumulation, "--logging-steps", 50, "--save-steps", 2)
    spoil(monkeypatch.setattr, forward=3 * accumulation)
    with pytest.raises(SystemExit) as end:
        module.main([*flags(folder, *more), "--output-dir", str(tmp_path)])
    assert end.value.code == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("error: Training stopped at step 4: `loss` must be a finite number, got nan.")
    assert {path.name for path in tmp_path.iterdir()} - {"README.md"} == {"checkpoint-2"}  # TRL writes a card


@pytest.mark.parametrize(
    "logs, fp16, message",
    [
        ({"loss": float("nan"), "grad_norm": 1.0}, False, "`loss` must be a finite number, got nan"),
        ({"loss": 1.0, "grad_norm": float("inf")}, False, "`grad_norm` must be a finite number, got inf"),
        ({"eval_loss": float("inf")}, False, "`eval_loss` must be a finite number, got inf"),
        ({"train_loss": float("nan")}, False, "`train_loss` must be"),
        ({"loss": 1.0, "grad_norm": float("inf")}, True, None),
        ({"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.0}, False, None),
    ],
)
def test_losses_and_norms_are_looked_at(tmp_path, logs, fp16, message):
    arguments = TrainingArguments(tmp_path, use_cpu=True)
    arguments.fp16 = fp16
    if message is None:
        StopAtNonFinite().on_log(arguments, TrainerState(), TrainerControl(), logs)
    else:
        with pytest.raises(NotFinite, match=message):
            StopAtNonFinite().on_log(arguments, TrainerState(), TrainerControl(), logs)


@pytest.mark.parametrize("kind", RUNS)
def test_the_filter_of_trainer_is_refused(folder, kind, capsys):
    module, flags = RUNS[kind]
    with pytest.raises(SystemExit):
        module.main(flags(folder, "--logging-nan-inf-filter", "true"))
    assert "`--logging-nan-inf-filter` must be false" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_both_of_two_processes_end(folder, kind, tmp_path):
    _, flags = RUNS[kind]
    words = [kind, *flags(folder, "--save-steps", 2, "--logging-steps", 50), "--output-dir", tmp_path]
    result = in_two_processes(folder, WORKER, *words, timeout=300)
    assert result.returncode != 0
    assert result.stderr.count("Training stopped at step 4: `loss` must be a finite number, got nan.") >= 1
    assert {path.name for path in tmp_path.iterdir()} - {"README.md"} == {"checkpoint-2"}  # TRL writes a card
