# SPDX-License-Identifier: Apache-2.0
"""Links that lead to themselves or to nothing, wherever the converter follows one: one sentence, and no target."""

import shutil
from pathlib import Path

import pytest

from conversion_plt.convert import Request, convert

DATA = Path(__file__).parents[1] / "data" / "nanbeige"
READ = ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "any other file"]


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(DATA, tmp_path / "source"))


def link(path, to):
    path.unlink(missing_ok=True)
    path.symlink_to(to)
    return path


def attempt(source, **request):
    convert(Request(str(source), **{"target": source.parent / "target", "command": "plt convert"} | request))


@pytest.mark.parametrize("to", ["itself", "nothing"])
@pytest.mark.parametrize("name", READ)
def test_a_link_that_leads_nowhere_in_the_source_is_refused(source, name, to):
    link(source / name, name if to == "itself" else "nothing")
    with pytest.raises(ValueError, match=f"{name} must lead to a file"):
        attempt(source)
    assert [path.name for path in source.parent.iterdir()] == ["source"]


@pytest.mark.parametrize("argument", ["expected", "text"])
def test_a_link_that_leads_to_itself_is_refused_as_a_further_file(source, tmp_path, argument):
    with pytest.raises((ValueError, OSError), match="must be a safetensors file|symbolic links"):
        attempt(source, **{argument: link(tmp_path / "loop", "loop")})


def test_a_link_to_itself_among_chat_templates_is_refused(source):
    (source / "additional_chat_templates").mkdir()
    link(source / "additional_chat_templates" / "loop.jinja", "loop.jinja")
    with pytest.raises(ValueError, match="`loop.jinja` must be a file in the source's folder"):
        attempt(source, expected=source / "expected.safetensors")


@pytest.mark.parametrize("name", ["", "target"])
def test_a_target_at_or_below_a_link_to_itself_is_refused(source, tmp_path, name):
    with pytest.raises(OSError, match="must not exist yet|symbolic links|File exists"):
        attempt(source, target=link(tmp_path / "loop", "loop") / name)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "loop"}


def test_a_source_that_is_a_link_to_itself_is_refused(tmp_path):
    with pytest.raises(ValueError, match="SOURCE must be a folder"):
        attempt(link(tmp_path / "loop", "loop"))
