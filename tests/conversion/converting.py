"""What tests of the converter share: sources, the command, and its refusals."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import transformers
from clean_process import run_in_clean_process
from safetensors.torch import load_file, save_file
from tiny import randomize

from command_plt.main import main
from conversion_plt.error_text import LONGEST_MESSAGE

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = ["loopcoder_v2", "loopcoder_v2_query_gate", "iquest_loop", "nanbeige", "ouro", "huginn", "retrofit_llama"]
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2}
PLAIN = {
    "llama": {},
    "llama-biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "head_dim": 12},
    "qwen2": {},
    "qwen3": {"head_dim": 12, "tie_word_embeddings": True},
    "qwen3_moe": EXPERTS
    | {"head_dim": 12, "moe_intermediate_size": 24, "norm_topk_prob": True, "mlp_only_layers": [1]},
    "qwen2_moe": EXPERTS | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 16},
    "olmoe": EXPERTS | {"pad_token_id": 0, "eos_token_id": 2, "norm_topk_prob": False},
    "olmo2": {"pad_token_id": 0, "eos_token_id": 2},
    "flex_olmo": EXPERTS | {"pad_token_id": 0, "eos_token_id": 2, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
}
LOAD_IN_CLEAN_PROCESS = """
import sys
sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = sys.modules["conversion_plt"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), report
    input_ids = load_file(folder + "/inputs.safetensors")["input_ids"]
    with torch.no_grad():
        save_file({"logits": model.eval()(input_ids).logits.float()}, folder + "/outputs.safetensors")
"""


def plt(*arguments):
    main([str(argument) for argument in arguments])


def plt_convert(*arguments):
    plt("convert", *arguments)


def refused(capsys, *arguments):
    """The sentence with which the command ends when it fails."""
    with pytest.raises(SystemExit) as raised:
        plt_convert(*arguments)
    assert raised.value.code not in (0, None)
    return str(raised.value.code)


def copy_source(name, folder, **fields):
    """A copy of a reference checkpoint whose config has other fields."""
    folder.mkdir()
    for file in (DATA / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def plain_model(name):
    """A model of transformers' own class whose every weight matters, in float32."""
    model_type = name.split("-")[0]
    config = transformers.CONFIG_MAPPING[model_type](
        **{
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
        | PLAIN[name]
    )
    return randomize(transformers.AutoModelForCausalLM.from_config(config)).eval()


def assert_refused(capsys, source, *options):
    """The command ends in one line of bounded length, and leaves nothing; the line."""
    message = refused(capsys, source, source.parent / "target", *options)
    assert {path.name for path in source.parent.iterdir()} == {source.name}
    assert message.startswith("plt: ") and "\n" not in message
    assert len(message) <= LONGEST_MESSAGE + 20
    return message


def logits_in_clean_process(folder, input_ids):
    """Logits of the models in `folder/<name>` for `input_ids[name]`, from one process without the package."""
    for name, ids in input_ids.items():
        save_file({"input_ids": ids}, folder / name / "inputs.safetensors")
    run_in_clean_process(LOAD_IN_CLEAN_PROCESS, *(folder / name for name in input_ids), cwd=folder)
    return {name: load_file(folder / name / "outputs.safetensors")["logits"] for name in input_ids}


def snapshot(folder):
    """Every path below a folder, and what is there."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def digests(folder):
    """A digest of each tensor of a folder, whatever its name."""
    weights = [load_file(file) for file in folder.glob("*.safetensors") if file.name != "expected.safetensors"]
    weights += [torch.load(file, weights_only=True) for file in folder.glob("*.bin")]
    flat = [tensor.flatten().view(torch.uint8) for tensors in weights for tensor in tensors.values()]
    return {sha256(tensor.numpy().tobytes()).hexdigest() for tensor in flat}
