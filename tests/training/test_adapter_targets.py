# SPDX-License-Identifier: Apache-2.0
"""Adapters without `target_modules`: PEFT takes for a PLT what it takes for Llama, and neither gates nor scales."""

import peft
import pytest
from chat_folder import ascii_tokenizer
from clean_process import run_in_clean_process
from datasets import Dataset
from peft.utils import constants
from tiny import tiny_model
from trl import SFTConfig, SFTTrainer

TABLES = {
    name: table
    for name, table in vars(constants).items()
    if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "llama" in table
}

PROJECTIONS = ["q", "k", "v", "o", "gate", "up", "down"]

REMOTE_CODE = """
import sys
sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = None  # as if the package were not installed

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
adapted = get_peft_model(model, LoraConfig())
assert sorted(adapted.peft_config["default"].target_modules) == ["q_proj", "v_proj"]
"""


def trained(model) -> set[str]:
    """The modules of a PEFT model that have trained parameters."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {part for name in names for part in name.split(".") if part.endswith(("_proj", "norm", "gate", "_scale"))}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_of_peft_has_the_modules_of_llama_for_a_plt(name):
    tiny_model()
    assert TABLES[name]["plt"] == TABLES[name]["llama"]


@pytest.mark.parametrize(
    "config, expected",
    [
        (peft.LoraConfig(), {"q_proj", "v_proj"}),
        (peft.IA3Config(), {"k_proj", "v_proj", "down_proj"}),
        (peft.LNTuningConfig(), {"input_layernorm", "post_attention_layernorm", "norm"}),
        (peft.LoraConfig(target_modules="all-linear"), {f"{name}_proj" for name in PROJECTIONS}),
    ],
    ids=["LoRA", "IA3", "norms", "all linear layers"],
)
def test_gates_and_scales_are_not_adapted_by_accident(config, expected):
    config.task_type = "CAUSAL_LM"
    model = tiny_model(learned_scales=True, qk_norm=True, norm_placement="sandwich")
    assert trained(peft.get_peft_model(model, config)) == expected


def test_a_trainer_of_trl_adapts_a_plt_without_being_told_where(tmp_path):
    tokenizer = ascii_tokenizer()
    arguments = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    trainer = SFTTrainer(
        tiny_model(vocab_size=len(tokenizer)),
        SFTConfig(tmp_path, max_steps=1, **arguments),
        train_dataset=Dataset.from_dict({"text": ["def wrap(text, width):", "return lines"] * 4}),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(),
    )
    trainer.train()
    assert trained(trainer.model) == {"q_proj", "v_proj"}


def test_a_folder_loaded_as_remote_code_tells_peft_too(tmp_path):
    tiny_model().save_pretrained(tmp_path / "plt")
    run_in_clean_process(REMOTE_CODE, tmp_path / "plt", cwd=tmp_path)
