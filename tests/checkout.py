"""The packages of this checkout, under their names: what the tests import, and every process that they start.

Another copy may be installed, or none; `PYTHONPATH` comes before what is installed.
"""

import os
import sys
from configparser import ConfigParser
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]


def read_folders() -> dict[str, Path]:
    """The folder of every package that is installed, by its name there."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options = setup["options"]
    moved = dict(line.split(" = ") for line in options["package_dir"].split("\n") if line)
    packages = [name for name in options["packages"].split() if "." not in name]
    return {name: ROOT / moved.get(name, name) for name in packages}


def on_path(*folders: Path | str) -> str:
    """`PYTHONPATH` for a process that imports from these folders too."""
    return os.pathsep.join([*map(str, folders), os.environ["PYTHONPATH"]])


FOLDERS = read_folders()
LINKS = TemporaryDirectory(prefix="packages-")  # some folders are called otherwise than their packages
for name, folder in FOLDERS.items():
    Path(LINKS.name, name).symlink_to(folder)
sys.path.insert(0, LINKS.name)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (LINKS.name, os.environ.get("PYTHONPATH"))))
