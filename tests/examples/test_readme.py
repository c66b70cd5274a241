"""README.md is short; its picture and badges are what their commands write, and badges say what other files say."""

import re
from configparser import ConfigParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from laboratory import badges, decode_step

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BADGES = re.findall(r"^\[!\[(\w+)\]\((\S+)\)\]\((\S+)\)$", README, flags=re.MULTILINE)


def words_of(file: Path) -> list[str]:
    return [each.text for each in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]


def luminance(colour: str) -> float:
    """Of WCAG 2, between 0 and 1."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_readme_is_short():
    assert len(README.split()) < 1200


def test_the_picture_is_the_one_that_its_command_draws():
    assert f"]({decode_step.FILE.relative_to(ROOT)})" in README
    assert decode_step.FILE.read_text() == decode_step.picture(), "run `python -m laboratory.decode_step`"
    assert "embedding" in words_of(decode_step.FILE)


@pytest.mark.parametrize("colours", [decode_step.LIGHT, decode_step.DARK], ids=["light", "dark"])
def test_the_picture_is_readable(colours):
    ink = luminance(colours["ink"])
    for name, colour in colours.items():
        lighter, darker = sorted((ink, luminance(colour)), reverse=True)
        assert name == "ink" or (lighter + 0.05) / (darker + 0.05) >= 7, name  # WCAG 2, level AAA


def test_badges_are_what_their_command_writes():
    assert [label for label, _, _ in BADGES] == list(badges.values())
    for label, value in badges.values().items():
        file = badges.FOLDER / f"{label}.svg"
        assert file.read_text() == badges.badge(label, value), "run `python -m laboratory.badges`"
    assert len(list(badges.FOLDER.iterdir())) == 4


def test_badges_say_what_other_files_say():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    said = {label: words_of(ROOT / image) for label, image, _ in BADGES}
    assert all(words[0] == label for label, words in said.items()) and len(said) == 4
    matrix = yaml.safe_load((ROOT / said["tests"][1]).read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert said["python"][1].split(", ") == matrix["python"]
    assert setup["options"]["python_requires"] == f">={matrix['python'][0]}"
    assert said["license"][1] == setup["metadata"]["license"] and "Apache License" in (ROOT / "LICENSE").read_text()
    papers = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert f"https://arxiv.org/abs/{said['arxiv'][1]}" == papers[0]["url"] == BADGES[3][2]
