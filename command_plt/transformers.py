# SPDX-License-Identifier: Apache-2.0
"""`plt transformers`: the command `transformers`, for PLT too."""

import sys
from typing import Any


def main(arguments: list[str]) -> None:
    """Run the command `transformers`, `serve` and `chat` among others, with PLT's class where it looks for classes.

    It takes the arguments as they are: `plt transformers serve FOLDER --host 127.0.0.1`.
    """
    import transformers as library
    from transformers.cli.transformers import main as run

    import modeling_plt

    # `serve` looks for a model's class by its name in the module, and there only
    transformers: Any = library
    transformers.PLTForCausalLM = modeling_plt.PLTForCausalLM
    sys.argv = ["plt transformers", *arguments]
    run()
