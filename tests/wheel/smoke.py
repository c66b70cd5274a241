"""What `make build` runs in an environment that holds nothing but the wheel and what it depends on.

A tiny PLT generates and is saved; a process that cannot import the package loads the folder and generates the same;
the commands start, or name the extra that they need.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import modeling_plt
from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

NAME = "parallel-loop-transformer"
PROMPT = list(range(3, 9))

LOAD = """
import sys
folder, prompt, *packages = sys.argv[1:]
sys.modules.update(dict.fromkeys(packages))  # as if the package were not installed

import json
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
print(model.generate(torch.tensor([json.loads(prompt)]), max_new_tokens=8, do_sample=False).tolist())
"""


def tiny_model() -> PLTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = PLTConfig(num_loops=3, num_hidden_layers=2, sliding_window=4, initializer_range=0.3, **sizes)
    return PLTForCausalLM(config).eval()


def load_and_generate(folder: str) -> list[list[int]]:
    """The tokens that a process without the package generates from a saved folder."""
    packages = [name for name, owners in packages_distributions().items() if NAME in owners]
    assert {"configuration_plt", "modeling_plt"} <= set(packages), packages
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{folder}/modules"}
    command = [sys.executable, "-c", LOAD, folder, json.dumps(PROMPT), *packages]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    assert "site-packages" in modeling_plt.__file__, f"expected the wheel, got {modeling_plt.__file__}"
    for package in ("configuration_plt", "modeling_plt"):
        assert (files(package) / "py.typed").is_file(), f"{package} must hold py.typed"
    model = tiny_model()
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False).tolist()
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokens = load_and_generate(folder)
    assert tokens == expected, f"expected {expected}, got {tokens}"
    commands = [entry.name for entry in distribution(NAME).entry_points if entry.group == "console_scripts"]
    for command in commands:
        path = Path(sys.executable).with_name(command)
        result = subprocess.run([path, "--help"], capture_output=True, text=True)
        assert result.returncode == 0 or "Install the extra" in result.stderr, result.stderr
    plt = Path(sys.executable).with_name("plt")
    for arguments in (["bench", "--help"], ["bench", "decode", "--help"]):
        subprocess.run([plt, *arguments], check=True, stdout=subprocess.DEVNULL)
    result = subprocess.run([plt, "bench", "decode"], capture_output=True, text=True)
    assert result.returncode == 1 and "runs in a checkout" in result.stderr, result.stderr
    print(f"{NAME} {distribution(NAME).version}: generates, saves, loads without the package; {', '.join(commands)}")


if __name__ == "__main__":
    main()
