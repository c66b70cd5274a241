"""The packages of this checkout: what the tests import, and every process that they start.

Another copy may be installed, or none; `PYTHONPATH` comes before what is installed.
"""

import os
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read_folders() -> dict[str, Path]:
    """The folder of every package by its name: those that are installed, and the laboratory."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = [name for name in setup["options"]["packages"].split() if "." not in name]
    return {name: (ROOT / name).resolve() for name in [*installed, "laboratory"]}


def on_path(*folders: Path | str) -> str:
    """`PYTHONPATH` for a process that imports from these folders too."""
    return os.pathsep.join([*map(str, folders), os.environ["PYTHONPATH"]])


FOLDERS = read_folders()
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
