# SPDX-License-Identifier: Apache-2.0
"""The subcommands of `plt`."""

import typer

from . import bench
from .convert import ConvertCommand, convert
from .inspect import inspect
from .programs import PROGRAMS

app = typer.Typer(
    help="Train, convert, measure and serve Parallel Loop Transformers (PLT).",
    epilog="Next: `plt COMMAND --help`, or `plt inspect SOURCE` with a folder or a hub id.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 119},
)
app.command()(inspect)
app.command(cls=ConvertCommand)(convert)
app.add_typer(bench.app, name="bench")
for name, program in PROGRAMS.items():
    app.command(name, help=program.help)(program.start)  # listed here; `main` starts them
