"""docs/deploying.md and its files, as far as they can be tried without a container engine and without vLLM."""

import json
import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
UNIT = ROOT / "examples/serving/plt-serving.service"


def instructions() -> list[tuple[str, str]]:
    """Those of the recipe, each with its arguments in one line."""
    text = (ROOT / "examples/serving/Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in whole]


def copied() -> dict[str, Path]:
    """Where in the image something lies, and where it comes from."""
    found = {}
    for name, arguments in instructions():
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                place = Path(target, Path(source).name) if target.endswith("/") else Path(target)
                found[str(place)] = ROOT / source
    return found


def test_the_recipe_has_the_form_of_one():
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    names = [name for name, _ in instructions()]
    assert set(names) == known
    assert names[0] == "FROM" and names[-2:] == ["ENTRYPOINT", "CMD"]
    found = dict(instructions())
    assert json.loads(found["ENTRYPOINT"]) == ["vllm", "serve"]
    assert json.loads(found["CMD"])[0] == "/model"
    assert json.loads(found["HEALTHCHECK"].split("CMD")[1])[:2] == ["python", "-c"]


def test_the_recipe_copies_all_that_is_installed():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {package.split(".")[0] for package in setup["options"]["packages"].split()}
    files = {"setup.cfg", "pyproject.toml", setup["metadata"]["long_description"].removeprefix("file: ")}
    assert copied().keys() == packages | files | {setup["metadata"]["license_files"]}
    assert [place for place, source in copied().items() if not source.exists()] == []
    # a link to a folder of this package would be a link to nothing in the image
    assert [place for place, source in copied().items() if source.is_symlink()] == []


def test_the_recipe_installs_as_the_page_says():
    (pip,) = (arguments for name, arguments in instructions() if name == "RUN" and arguments.startswith("pip "))
    package = shlex.split(pip)[-1]
    assert f"`pip install '{package}'`" in PAGE
    assert f"pip install -e '{package}'" in (ROOT / "docs/serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", re.findall(r"^podman .*$", PAGE, flags=re.MULTILINE))
def test_the_commands_of_the_page_are_those_of_the_recipe(command):
    text = (ROOT / "examples/serving/Containerfile").read_text(encoding="utf-8")
    assert command.split() in [line.split() for line in re.sub(r"\\\n#", "", text).replace("#   ", "").splitlines()]


def complaints(unit: str, folder: Path) -> str:
    """What systemd says of a unit, whose programs are there."""
    file = folder / UNIT.name
    file.write_text(re.sub(r"^(ExecStart\w*=)\S+", r"\1/bin/true", unit, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="without systemd")
def test_systemd_reads_the_unit(tmp_path):
    text = UNIT.read_text(encoding="utf-8")
    assert complaints(text, tmp_path) == ""
    for right, wrong in (("Restart=on-failure", "Restart=on-failur"), ("KillMode", "KillMod")):
        assert UNIT.name in complaints(text.replace(right, wrong), tmp_path)


def test_unit_and_container_start_the_same_server():
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    options = {"unit": shlex.split(line)[3:], "container": json.loads(dict(instructions())["CMD"])[1:]}
    hosts = {name: words.pop(words.index("--host") + 1) for name, words in options.items()}
    assert options["unit"] == options["container"]
    assert hosts == {"unit": "127.0.0.1", "container": "0.0.0.0"}  # whose port is published on loopback
