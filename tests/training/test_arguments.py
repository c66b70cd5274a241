"""Arguments come from flags, or from a YAML file below flags, and every one of them is checked in the same way."""

from dataclasses import dataclass, field, fields

import pytest

from training_plt.command.arguments import parse
from training_plt.data.texts import TextArguments
from training_plt.diagnose.__main__ import DiagnoseArguments
from training_plt.finetune.arguments import ChatArguments
from training_plt.heal.__main__ import HealArguments
from training_plt.pretrain.new_model import ModelArguments


@dataclass
class Shape:
    block_size: int = 512
    set: list[str] = field(default_factory=list)
    attention: str = field(default="sdpa", metadata={"choices": ["sdpa", "eager"]})
    muon: bool = False
    options: dict | str | None = None


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Parses the text of a YAML file and flags."""
    monkeypatch.chdir(tmp_path)

    def read(text, *flags):
        (tmp_path / "run.yaml").write_text(text)
        return parse("plt pretrain", None, (Shape,), ["run.yaml", *flags])[0]

    return read


@pytest.mark.parametrize(
    "text, expected",
    [
        ("block_size: 64", Shape(block_size=64)),
        ("block-size: 64", Shape(block_size=64)),
        ("set: num_loops=3", Shape(set=["num_loops=3"])),
        ("set: [num_loops=3, head_dim=4]", Shape(set=["num_loops=3", "head_dim=4"])),
        ("attention: eager\nmuon: true", Shape(attention="eager", muon=True)),
        ("muon: no", Shape()),
        ("options: {version: 2}", Shape(options='{"version": 2}')),
    ],
)
def test_a_file_says_what_flags_say(read, text, expected):
    assert read(text) == expected


@pytest.mark.parametrize("flag", ["--block-size", "--block_size"])
def test_flags_of_both_spellings_override_the_file(read, flag):
    assert read("block_size: 64\nattention: eager", flag, "32") == Shape(block_size=32, attention="eager")


@pytest.mark.parametrize(
    "text, message",
    [
        ("block_sise: 64", "--block_sise is no argument of this command; is --block_size meant?"),
        ("env: {HOME: /}", "--env is no argument of this command."),
        ("block_size: 2.5", "argument --block_size/--block-size: invalid int value: '2.5'"),
        ("block_size: [1, 2]", "2 is no argument of this command."),
        ("block_size:", "run.yaml must give every field a value, got none for `block_size`."),
        ("attention: flash", "argument --attention: invalid choice: 'flash' (choose from 'sdpa', 'eager')"),
        ("muon: perhaps", "argument --muon: Truthy value expected"),
        ("- 64", "run.yaml must hold fields and values, got list."),
        ("a: [", "run.yaml must be YAML, got: while parsing a flow node"),
    ],
)
def test_what_is_wrong_in_a_file_is_refused_in_one_sentence(read, capsys, text, message):
    with pytest.raises(SystemExit) as end:
        read(text)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith(f"error: {message}")


def test_a_file_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse("plt pretrain", None, (Shape,), ["absent.yaml"])
    assert capsys.readouterr().err == "error: [Errno 2] No such file or directory: 'absent.yaml'\n"


@pytest.mark.parametrize("arguments", [ModelArguments, TextArguments, HealArguments, ChatArguments, DiagnoseArguments])
def test_every_help_is_a_sentence_that_names_its_noun(arguments):
    for each in fields(arguments):
        words = each.metadata["help"]
        assert words[0].isupper() and words.endswith(".") and words.split()[0] not in ("Of", "For", "Is"), words
