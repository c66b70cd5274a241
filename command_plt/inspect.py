# SPDX-License-Identifier: Apache-2.0
"""`plt inspect`: what a checkpoint is, and what it would become."""

from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Local folder or hub id.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub id.")]


def inspect(source: Source, revision: Revision = None) -> None:
    """Say what a checkpoint is and what it would become, without reading its weights."""
    from conversion_plt.inspection import inspect

    print(inspect(source, revision))
