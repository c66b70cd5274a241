# SPDX-License-Identifier: Apache-2.0
"""Subcommands of `plt` that are programs of their own, and get their arguments as they are, `--help` included."""

import re
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, requires
from typing import NamedTuple

PACKAGE = "parallel-loop-transformer"


class Program(NamedTuple):
    """What `plt NAME` starts.

    Attributes:
        module: has a `main` that takes the arguments.
        extra: of setup.cfg, which it needs; None: the core suffices.
        help: one line of `plt --help`.
    """

    module: str
    extra: str | None
    help: str

    def start(self, arguments: list[str]) -> None:
        """Run it; without its extra, end with one sentence, which for `--help` stands after what it does."""
        missing = self.missing()
        if missing:
            needed = f"{', '.join(missing)} must be installed: `pip install '{PACKAGE}[{self.extra}]'`."
            if not {"-h", "--help"} & set(arguments):
                sys.exit(f"plt: {needed}")
            print(f"{self.help}\n\nTo see its arguments, {needed}")
            return
        import_module(self.module).main(arguments)

    def missing(self) -> list[str]:
        """The packages of the extra that are not installed."""
        if self.extra is None:
            return []
        lines = [line for line in requires(PACKAGE) or () if line.endswith(f'extra == "{self.extra}"')]
        return [name for name in (re.split(r"[^\w.-]", line)[0] for line in lines) if not is_installed(name)]


def is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


PROGRAMS = {
    "pretrain": Program(
        "training_plt.pretrain.__main__", "train", "Train a new PLT on texts, or go on with a saved one."
    ),
    "heal": Program("training_plt.heal.__main__", "train", "Train a converted PLT towards its source."),
    "finetune": Program("training_plt.finetune.__main__", "train", "Train a saved PLT on chats."),
    "diagnose": Program("training_plt.diagnose.__main__", "train", "Say what each loop of a saved PLT adds."),
    "eval": Program("command_plt.eval", "eval", "Run lm-eval on a saved PLT."),
    "transformers": Program("command_plt.transformers", None, "Run transformers' own command, for PLT too."),
}
