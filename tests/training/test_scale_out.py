"""Two processes train as one, with copies of the weights and with shards (FSDP2), and resume."""

import json

import pytest
import torch
from scale_out import KINDS, ONE_STEP, run_in_two_processes, sharding, weights
from tiny import randomize
from training_texts import SIZES, as_flags, write_texts

from modeling_plt import PLTForCausalLM
from training_plt.pretrain import __main__ as pretrain

pytestmark = pytest.mark.slow


def flags(folder, output, batch_size, *more) -> list[str]:
    """A run whose steps take 8 packed entries, in two batches."""
    values = {
        "dataset": folder / "texts.jsonl",
        "preset": folder / "config.json",
        "output_dir": folder / output,
        "bpe_size": 257,
        "block_size": 32,
        "held_out": 4,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 2,
        "earlier_loops_weight": 0.3,
        "eval_strategy": "no",
    }
    return as_flags(values, *more)


TWO_STEPS = ["--max-steps", 2, "--save-steps", 1, "--learning-rate", 0.01, "--warmup-steps", 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes made of each kind: a step, two steps, and the second of these resumed."""
    folder = tmp_path_factory.mktemp("scale_out")
    write_texts(folder / "texts.jsonl")
    (folder / "config.json").write_text(json.dumps(SIZES))
    runs = []
    for kind in KINDS:
        runs.append(flags(folder, f"{kind}-step", 2, *ONE_STEP, *sharding(kind)))
        runs.append(flags(folder, f"{kind}-whole", 2, *TWO_STEPS, *sharding(kind)))
        checkpoint = folder / f"{kind}-whole/checkpoint-1"
        resuming = ["--resume-from-checkpoint", checkpoint, *sharding(kind)]
        runs.append(flags(folder, f"{kind}-resumed", 2, *TWO_STEPS, *resuming))
    run_in_two_processes(folder, [["pretrain", run] for run in runs])
    return folder


@pytest.fixture(scope="module")
def gradients(folder):
    """The weights of one process before and after the step."""
    prepare = pretrain.prepare

    def prepare_random_weights(*arguments):
        trainer, checkpoint = prepare(*arguments)
        randomize(trainer.model)
        return trainer, checkpoint

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "prepare", prepare_random_weights)
        pretrain.main(flags(folder, "alone", 4, *ONE_STEP))
    before = randomize(PLTForCausalLM(PLTForCausalLM.from_pretrained(folder / "alone").config)).state_dict()
    return {name: before[name] - after for name, after in weights(folder / "alone").items()}, before


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_two_processes_are_those_of_one(folder, gradients, kind):
    expected, before = gradients
    for name, weight in weights(folder / f"{kind}-step").items():
        assert expected[name].abs().max() > 1e-4, name
        torch.testing.assert_close(
            before[name] - weight, expected[name], rtol=0, atol=5e-5, msg=name
        )  # summation order


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_of_two_processes_ends_with_the_same_bits(folder, kind):
    resumed = weights(folder / f"{kind}-resumed")
    for name, weight in weights(folder / f"{kind}-whole").items():
        assert torch.equal(resumed[name], weight), name


def test_checkpoints_are_sharded_or_full_and_the_saved_model_is_whole(folder):
    assert (folder / "sharded-whole/checkpoint-1/pytorch_model_fsdp_0").is_dir()
    assert (folder / "full-whole/checkpoint-1/pytorch_model_fsdp.bin").is_file()
    for kind in KINDS:
        config = json.loads((folder / f"{kind}-whole/config.json").read_text())
        assert config["architectures"] == ["PLTForCausalLM"]
        assert (folder / f"{kind}-whole/README.md").is_file()
