# SPDX-License-Identifier: Apache-2.0
"""`plt-transformers`: the `transformers` command, also for PLT. `plt-transformers serve FOLDER --host 127.0.0.1`."""

import transformers
from transformers.cli.transformers import main as transformers_main

import modeling_plt


def main() -> None:
    # `transformers serve` looks for a model's class by its name in the module, and there only
    transformers.PLTForCausalLM = modeling_plt.PLTForCausalLM
    transformers_main()
