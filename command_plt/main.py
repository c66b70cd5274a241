# SPDX-License-Identifier: Apache-2.0
"""How the command `plt` starts and ends."""

import re
import shlex
import signal
import sys
from types import FrameType
from typing import Any

from conversion_plt.error_text import one_line

from .programs import PROGRAMS


def main(arguments: list[str] | None = None) -> None:
    """Run a command line; what the user can act on ends with one sentence, a mistake of ours with a traceback.

    A program ends as it does by itself: an error in the middle of a training shows where it came from.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in PROGRAMS:
        PROGRAMS[arguments[0]].start(arguments[1:])
        return
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if not is_importing(frame):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, 0.005)

    # an interrupted run cleans up after itself
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        run(arguments)
    except BaseException as error:
        # a library can make any other error of an interruption
        if signal.SIGTERM in came:
            sys.exit("plt: terminated")
        if came or isinstance(error, KeyboardInterrupt):
            say_and_exit("interrupted", 128 + signal.SIGINT)
        if isinstance(error, MemoryError):
            sys.exit("plt: the memory does not suffice")
        if isinstance(error, ValueError | OSError | ImportError | NotImplementedError):
            sys.exit(f"plt: {one_line(error)}")
        raise


def is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: an exception ends the process where C++ code of a library calls Python."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def run(arguments: list[str]) -> None:
    """Do what a command line says; without arguments, it asks for help."""
    # an interruption of these imports ends like any other
    import typer

    from .app import app

    command, line = typer.main.get_command(app), shlex.join(["plt", *arguments])
    try:
        with command.make_context("plt", with_dashes(arguments) or ["--help"], obj=line) as context:
            command.invoke(context)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        message = one_line(ValueError(error.format_message())).removesuffix(".")
        # an option at the end without its value is refused outside of any subcommand
        context_of: Any = getattr(error, "ctx", None)
        path = context_of.command_path if context_of else "plt"
        say_and_exit(f"{message}. See `{path} --help`.", error.exit_code)


def with_dashes(arguments: list[str]) -> list[str]:
    """Options as they are declared: the programs take underscores, too."""
    return [re.sub(r"^--[a-z_]+", lambda option: option[0].replace("_", "-"), argument) for argument in arguments]


def say_and_exit(message: str, status: int) -> None:
    print(f"plt: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
