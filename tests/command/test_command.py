"""The command `plt`: its help is fast, its refusals are one sentence with the next step, and it hides no failure."""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import conversion_plt.inspection
from command_plt import programs
from command_plt.main import main
from command_plt.programs import PROGRAMS

COMMANDS = ("convert", "inspect", "bench", *PROGRAMS)
TRAININGS = ("pretrain", "heal", "finetune", "diagnose")
BENCHMARKS = ("memory", "decode", "loops", "prefill", "train", "masks", "all", "fit", "products", "compare")


def ended(capsys, line):
    """Exit status and standard error of a command line."""
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    if isinstance(end.value.code, str):  # which Python prints, and leaves with status 1
        return 1, end.value.code
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("line", ["", "--help"])
def test_help_names_every_command_and_the_next_step(capsys, line):
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    output = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"\n  {name} " in output for name in COMMANDS)
    assert "`plt COMMAND --help`" in output and "`plt inspect SOURCE`" in output


@pytest.mark.parametrize("name", [*COMMANDS[:3], *(f"bench {name}" for name in BENCHMARKS)])
def test_every_command_has_help(capsys, name):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    output = capsys.readouterr().out
    assert end.value.code == 0 and f"Usage: plt {name} [OPTIONS]" in output
    if name == "bench":
        assert all(f"\n  {name} " in output for name in BENCHMARKS)


@pytest.mark.parametrize("line", ["--help", "bench decode --help", "convert a", "bench decode --rounds x"])
def test_help_and_refused_options_import_nothing_heavy(line):
    code = """
import sys
from command_plt.main import main
try:
    main(sys.argv[1:])
finally:
    print({"torch", "transformers", "pandas", "matplotlib"} & set(sys.modules), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("line", "message", "step"),
    [
        ("sing", "No such command 'sing'", "plt"),
        ("--loud", "No such option: --loud", "plt"),
        ("convert", "Missing argument 'SOURCE'", "plt convert"),
        ("convert a", "Missing argument 'TARGET'", "plt convert"),
        ("convert a b c", "Got unexpected extra argument(s) (c)", "plt convert"),
        ("convert a b --loops two", "Invalid value for '--loops': must be an integer, got 'two'", "plt convert"),
        ("convert a b --gate-start x", "Invalid value for '--gate-start': must be a number, got 'x'", "plt convert"),
        ("convert a b --windows 3", "No such option: --windows (Possible options: --window)", "plt convert"),
        ("inspect", "Missing argument 'SOURCE'", "plt inspect"),
        ("inspect a --revision", "Option '--revision' requires an argument", "plt"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(capsys, line, message, step):
    assert ended(capsys, line) == (2, f"plt: {message}. See `{step} --help`.\n")


def test_lists_take_their_values_after_one_name_or_several(monkeypatch):
    seen = []
    monkeypatch.setattr("conversion_plt.convert.convert", lambda request: seen.append(request) or [])
    main(shlex.split("convert a b --ignore c d --keep-nan"))
    main(shlex.split("convert --ignore c --ignore d --keep-nan a b"))
    assert [request.ignored for request in seen] == [{"c", "d"}] * 2
    assert [request.source for request in seen] == ["a", "a"] and all(request.keep_nan for request in seen)
    assert seen[0].command == "plt convert a b --ignore c d --keep-nan"


def test_options_have_underscores_too(monkeypatch):
    seen = []
    monkeypatch.setattr("conversion_plt.convert.convert", lambda request: seen.append(request) or [])
    main(shlex.split("convert a_b c_d --to_plt --embedding_scale=0.5 --ignore e_f"))
    (request,) = seen
    assert (request.source, str(request.target), request.ignored) == ("a_b", "c_d", {"e_f"})
    assert request.start.embedding_scale == 0.5


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("two\nlines"), 1, "plt: two lines"),
        (FileNotFoundError(2, "No such file", "x"), 1, "plt: [Errno 2] No such file: 'x'"),
        (ImportError("torch is missing"), 1, "plt: torch is missing"),
        (NotImplementedError("bf16 needs instructions"), 1, "plt: bf16 needs instructions"),
        (MemoryError(), 1, "plt: the memory does not suffice"),
        (KeyboardInterrupt(), 130, "plt: interrupted\n"),
        (SystemExit(7), 7, ""),
    ],
    ids=repr,
)
def test_what_the_user_can_act_on_is_one_sentence(capsys, monkeypatch, error, status, message):
    monkeypatch.setattr(conversion_plt.inspection, "inspect", raiser(error))
    assert ended(capsys, "inspect a") == (status, message)


def test_a_mistake_of_ours_is_raised(monkeypatch):
    monkeypatch.setattr(conversion_plt.inspection, "inspect", raiser(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        main(["inspect", "a"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_whatever_a_library_makes_of_a_signal_it_ends_as_one(capsys, monkeypatch, number, status):
    def hidden(*_):
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt:
            raise RuntimeError("a library failed") from None

    monkeypatch.setattr(conversion_plt.inspection, "inspect", hidden)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found, message = ended(capsys, "inspect a")
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert found == status and message.strip() == ("plt: interrupted" if status == 130 else "plt: terminated")


@pytest.mark.parametrize("name", ["pandas", "laboratory"])  # the one is of the extra, the other in no wheel
def test_what_a_measurement_needs_is_named(name):
    code = f"import sys; sys.modules[{name!r}] = None; from command_plt.main import main; main(sys.argv[1:])"
    line = ["bench", "prefill", "--size", "tiny"]
    result = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True)
    place = (
        "`plt bench` runs in a checkout of parallel-loop-transformer, after `pip install --editable '.[bench]'` there"
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(f"plt: [^:]*{name}[^:]*: {re.escape(place)}\n", result.stderr), result.stderr


def test_help_of_every_benchmark_needs_neither_the_laboratory_nor_an_extra():
    code = """
import sys
sys.modules |= dict.fromkeys(["laboratory", "pandas", "matplotlib", "seaborn", "tabulate", "cpuinfo", "datasets"])
from command_plt.main import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as end:
        assert not end.code, end.code
"""
    lines = ["bench --help", *(f"bench {name} --help" for name in BENCHMARKS)]
    result = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage: plt bench") == len(lines)


def test_the_programs_are_these():
    assert list(PROGRAMS) == [*TRAININGS, "eval", "transformers"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gets_every_argument_as_it_is(monkeypatch, name):
    started = []
    module = importlib.import_module(PROGRAMS[name].module)
    monkeypatch.setattr(module, "main", started.append)
    main([name, "FOLDER", "--help", "--x_y", "--", "-q", "a b"])
    assert started == [["FOLDER", "--help", "--x_y", "--", "-q", "a b"]]


@pytest.mark.parametrize("name", TRAININGS)
def test_the_help_of_a_training_is_its_own(capsys, name):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    output = capsys.readouterr().out
    assert not end.value.code and output.startswith(f"usage: plt {name} [-h]") and f"\n    plt {name} --" in output


def test_an_error_in_the_middle_of_a_program_keeps_its_traceback(monkeypatch):
    module = importlib.import_module(PROGRAMS["heal"].module)
    monkeypatch.setattr(module, "main", raiser(ValueError("of a library")))
    with pytest.raises(ValueError, match="of a library"):
        main(["heal"])


def test_a_missing_extra_of_a_program_is_named_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setattr(programs, "is_installed", lambda name: name not in ("trl", "seaborn"))
    needed = "seaborn, trl must be installed: `pip install 'parallel-loop-transformer[train]'`."
    assert ended(capsys, "heal --max-steps 1") == (1, f"plt: {needed}")
    main(["heal", "--help"])
    assert capsys.readouterr().out == f"{PROGRAMS['heal'].help}\n\nTo see its arguments, {needed}\n"
    monkeypatch.undo()
    assert [program.missing() for program in PROGRAMS.values()] == [[]] * len(PROGRAMS)
    assert not programs.is_installed("no-such-package")


@pytest.mark.parametrize(
    ("line", "module", "program"),
    [
        ("transformers serve FOLDER --help", "transformers.cli.transformers", "main"),
        ("eval --model hf --help", "lm_eval.__main__", "cli_evaluate"),
    ],
)
def test_other_peoples_programs_see_their_arguments_and_know_plt(line, module, program):
    code = """
import importlib, sys
import transformers  # as the module of the command holds it
from command_plt.main import main
line, module, program = sys.argv[1:]
def see():
    config = transformers.AutoConfig.for_model("plt")
    print(sys.argv, transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__)
    print(hasattr(transformers, "PLTForCausalLM"))
setattr(importlib.import_module(module), program, see)
main(line.split())
"""
    result = subprocess.run([sys.executable, "-c", code, line, module, program], capture_output=True, text=True)
    name, *words = line.split()
    seen = [f"plt {name}", *(["run"] if name == "eval" else []), *words]
    assert result.stdout.splitlines() == [f"{seen} PLTForCausalLM", str(name == "transformers")], result.stderr


def test_the_installed_command_runs():
    command = Path(sys.executable).with_name("plt")
    source = Path(__file__).parents[1] / "data" / "ouro"
    result = subprocess.run([command, "inspect", source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Ouro (`ouro`)" in result.stdout


def raiser(error):
    def raising(*_):
        raise error

    return raising
