# SPDX-License-Identifier: Apache-2.0
"""`plt eval`: `lm_eval run`, for PLT too."""

import sys


def main(arguments: list[str]) -> None:
    """Run lm-eval, whose `--model hf` then loads a PLT without code from its folder.

    It takes the arguments of `lm_eval run`: `plt eval --model hf --model_args pretrained=FOLDER --tasks NAME`.
    """
    from lm_eval.__main__ import cli_evaluate

    import modeling_plt  # noqa: F401, registers the classes

    sys.argv = ["plt eval", "run", *arguments]
    cli_evaluate()
