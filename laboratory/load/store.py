# SPDX-License-Identifier: Apache-2.0
"""The results on disk, a file for each piece of the load, so that a run that was stopped goes on."""

import json
from dataclasses import asdict
from pathlib import Path

from ..report import write_whole
from .plan import Piece, Plan, pieces


class Store:
    """A folder with the plan and the pieces that there are."""

    def __init__(self, folder: Path):
        self.pieces, self.plan = folder / "pieces", folder / "pieces" / "plan.json"

    def rates(self) -> list[float] | None:
        """Those of the plan that is followed here; None if there is none yet."""
        return json.loads(self.plan.read_text(encoding="utf-8"))["rates"] if self.plan.exists() else None

    def follow(self, plan: Plan) -> None:
        """Begin a plan, or go on with it.

        Raises:
            ValueError: another one is followed here.
        """
        if self.plan.exists():
            found = json.loads(self.plan.read_text(encoding="utf-8"))
            for name, value in asdict(plan).items():
                if found[name] != value:
                    raise ValueError(
                        f"{self.plan} must have {name} = {value}, got {found[name]}: choose another `--output`."
                    )
        else:
            write_whole(self.plan, json.dumps(asdict(plan), indent=1) + "\n")

    def file(self, piece: Piece) -> Path:
        return self.pieces / f"{piece.name}.json"

    def has(self, piece: Piece) -> bool:
        return self.file(piece).exists()

    def write(self, piece: Piece, result: dict) -> None:
        write_whole(self.file(piece), json.dumps(asdict(piece) | result, indent=1) + "\n")

    def results(self, plan: Plan) -> list[dict]:
        """Of all pieces that there are, in the order of their turns."""
        found = (self.file(piece) for piece in pieces(plan) if self.has(piece))
        return [json.loads(file.read_text(encoding="utf-8")) for file in found]
