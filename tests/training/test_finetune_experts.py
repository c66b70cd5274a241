"""Fine-tuning of a mixture of experts: what is adapted, and when routing is balanced."""

import json

import datasets
import pytest
import torch
from chat_folder import ascii_tokenizer
from peft import PeftModel
from tiny import EXPERTS, tiny_ids, tiny_model

from modeling_plt import PLTForCausalLM
from training_plt.command.arguments import parse
from training_plt.finetune import arguments as finetune_arguments
from training_plt.finetune.__main__ import finetune
from training_plt.finetune.arguments import BaseArguments, ChatArguments, FinetuneArguments

CHAT = [{"role": "user", "content": "def f(x)"}, {"role": "assistant", "content": "(text, width):"}]
SETTINGS = {
    "bf16": False,
    "save_strategy": "no",
    "max_length": 64,
    "learning_rate": 5e-2,
    "per_device_train_batch_size": 6,
    "max_steps": 2,
}
ONE_STEP = {"max_steps": 1, "packing": False, "optim": "sgd", "learning_rate": 1, "lr_scheduler_type": "constant"}
ONE_STEP |= {"max_grad_norm": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with experts whose balance loss weighs as much as its text's."""
    folder, tokenizer = tmp_path_factory.mktemp("experts"), ascii_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    sizes = {"vocab_size": len(tokenizer), "num_loops": 2, "router_aux_loss_coef": 1.0}
    tiny_model(**sizes, **special, **EXPERTS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    """Fine-tune on one chat, twelve times; the trainer."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "chats.jsonl").write_text(12 * (json.dumps({"messages": CHAT}) + "\n"))

    def run(*flags, model=base, output="output", **settings):
        fields = {"model": model, "dataset": tmp_path / "chats.jsonl", "output_dir": tmp_path / output}
        fields |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none"} | SETTINGS | settings
        words = [*(f"--{name}={value}" for name, value in fields.items()), *map(str, flags)]
        return finetune(*parse("plt finetune", None, (ChatArguments, FinetuneArguments, BaseArguments), words), "it")

    return run


@torch.inference_mode()
def logits_of(model) -> torch.Tensor:
    return model.eval()(tiny_ids(2, 9)).logits


def test_experts_are_adapted_saved_loaded_and_merged(run, base, tmp_path):
    trainer = run("--use-peft", "--merge")
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    modules = {name.partition(".lora_")[0].partition(".layers.0.")[2] for name in trained} - {""}
    mlp = {"experts", "experts.base_layer", "shared_expert_gate"} | {
        f"shared_expert.{name}_proj" for name in ("gate", "up", "down")
    }
    assert modules == {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}" for name in mlp}
    plain = PLTForCausalLM.from_pretrained(base)
    before = logits_of(plain)
    adapted = logits_of(PeftModel.from_pretrained(plain, tmp_path / "output"))
    assert not torch.allclose(adapted, before, atol=0.1)
    torch.testing.assert_close(adapted, logits_of(trainer.model), rtol=0, atol=1e-6)
    merged = PLTForCausalLM.from_pretrained(tmp_path / "output/merged")
    torch.testing.assert_close(logits_of(merged), adapted, rtol=0, atol=1e-4)  # one product for two, in float32
    unchanged = PLTForCausalLM.from_pretrained(base).state_dict()
    changed = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, unchanged[name])}
    assert {name for name in unchanged if ".experts." in name} <= changed
    assert not any(name.endswith("mlp.gate.weight") for name in changed)  # the router


def test_dora_adapts_attention_beside_experts(run):
    trainer = run("--use-peft", "--use-dora", "--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj")
    assert not any("mlp" in name for name, weight in trainer.model.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--use-peft", "--use-dora"], "need experts without an adapter: name what gets one"),
        (["--use-peft", "--lora-dropout", "0.1"], "need experts without an adapter: name what gets one"),
        (["--use-peft", "--load-in-4bit"], "need a model without experts"),
        (["--label-smoothing-factor", "0.1"], "does not go with `--label-smoothing-factor`"),
    ],
    ids=str,
)
def test_what_experts_do_not_have_is_refused(run, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(finetune_arguments, "is_bitsandbytes_available", lambda: True)
    with pytest.raises(SystemExit):
        run(*flags)
    assert message in capsys.readouterr().err and not (tmp_path / "output").exists()


def test_a_balance_loss_needs_experts(run, chat_folder, capsys):
    with pytest.raises(SystemExit):
        run("--router-aux-loss-coef", "0.1", model=chat_folder)
    assert "`--router-aux-loss-coef` needs a model with experts, got 0.1" in capsys.readouterr().err


def test_micro_batches_train_as_one_batch_and_are_balanced(run):
    weights = {}
    for name, settings in {
        "whole": {},
        "parts": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        "unbalanced": {"router_aux_loss_coef": 0.0},
    }.items():
        trainer = run(output=name, **ONE_STEP | settings)
        weights[name] = dict(trainer.model.named_parameters())
    for name, weight in weights["whole"].items():
        torch.testing.assert_close(weights["parts"][name], weight, rtol=0, atol=1e-5, msg=name)
    router = "model.layers.0.mlp.gate.weight"
    assert not torch.allclose(weights["unbalanced"][router], weights["whole"][router], atol=1e-3)


def test_evaluations_and_saved_configs_leave_the_balance_loss_out(run, tmp_path):
    trainer = run("--eval-dataset", tmp_path / "chats.jsonl", learning_rate=0, router_aux_loss_coef=5.0)
    (logged,) = (entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    model, ids = trainer.model.eval(), torch.tensor([trainer.processing_class.apply_chat_template(CHAT)["input_ids"]])
    with torch.no_grad():
        assert logged == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-4)
    saved = json.loads((tmp_path / "output/config.json").read_text())
    assert saved["output_router_logits"] is False and saved["router_aux_loss_coef"] == 5.0
