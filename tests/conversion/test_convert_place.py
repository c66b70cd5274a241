"""Where a conversion may write: nothing that exists is touched, and nothing is left of a run that fails."""

import contextlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import checkout
import pytest
from converting import DATA, plt_convert, refused, snapshot

import conversion_plt.convert
from conversion_plt.target.staging import staged

SOURCE = DATA / "nanbeige"
EXISTING = ["a folder", "an empty folder", "a file", "a link to a folder", "a link to nowhere"]


def appear(kind, target):
    """Put something at the place of a target."""
    if kind.startswith("a link"):
        target.symlink_to(target.parent)
        if kind == "a link to nowhere":
            target.unlink()
            target.symlink_to("nowhere")
    elif kind == "a file":
        target.write_text("years of work")
    else:
        target.mkdir()
        if kind == "a folder":
            (target / "thesis.txt").write_text("years of work")


def assert_kept(tmp_path, capsys, *arguments):
    """The command is refused and changes nothing; its sentence."""
    before = snapshot(tmp_path)
    message = refused(capsys, *arguments)
    assert snapshot(tmp_path) == before
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", EXISTING)
def test_a_target_that_exists_is_refused_and_kept(tmp_path, capsys, kind):
    appear(kind, tmp_path / "target")
    assert "The target must not exist yet, got" in assert_kept(tmp_path, capsys, SOURCE, tmp_path / "target")


@pytest.mark.parametrize("target", ["source", ".", "source/../source/."])
def test_the_source_and_what_holds_it_are_kept(tmp_path, capsys, monkeypatch, target):
    shutil.copytree(SOURCE, tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    assert "must not exist yet" in assert_kept(tmp_path, capsys, "source", target)


@pytest.mark.parametrize("kind", [kind for kind in EXISTING if kind != "an empty folder"])
def test_a_target_that_appears_meanwhile_is_kept(tmp_path, kind):
    with pytest.raises(FileExistsError), staged(tmp_path / "target") as new:
        (new / "config.json").write_text("new")
        appear(kind, tmp_path / "target")
        expected = snapshot(tmp_path)
    assert snapshot(tmp_path) == {name: data for name, data in expected.items() if "unfinished" not in name}


def test_a_folder_is_called_unfinished_until_it_is_complete(tmp_path):
    with staged(tmp_path / "link" / ".." / "target") as new:
        (new / "new").touch()
        (new.parent / "temporary").touch()
        assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["target.unfinished"]
    assert snapshot(tmp_path) == {"target": False, "target/new": b""}


def test_a_source_of_links_into_the_hubs_cache_converts(tmp_path):
    cache = tmp_path / "models--own--model"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for number, file in enumerate([*SOURCE.iterdir(), Path(__file__).parents[2] / "LICENSE"]):
        shutil.copy(file, cache / "blobs" / str(number))
        (cache / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{number}")
    before = snapshot(cache)
    plt_convert(cache / "snapshots" / "abc", tmp_path / "target")
    assert (tmp_path / "target" / "LICENSE").is_file()
    assert snapshot(cache) == before


def test_new_parents_of_a_target_go_when_the_run_fails(tmp_path, capsys):
    assert_kept(tmp_path, capsys, DATA, tmp_path / "a" / "b" / "target")
    plt_convert(SOURCE, tmp_path / "a" / "b" / "target")
    assert (tmp_path / "a" / "b" / "target" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "number, code, sentence",  # with a sentence as its code, a command ends with status 1
    [(signal.SIGINT, 130, "plt: interrupted"), (signal.SIGTERM, 1, "plt: terminated")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_ends_the_command_in_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, request, number, code, sentence
):
    for handled in (signal.SIGINT, signal.SIGTERM):  # the command sets handlers of its own
        request.addfinalizer(partial(signal.signal, handled, signal.getsignal(handled)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(conversion_plt.convert, "verify_files", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as ended:
        plt_convert(SOURCE, tmp_path / "target")
    said = ended.value.code if code == 1 else capsys.readouterr().err.splitlines()[-1]
    assert said == sentence and (code == 1 or ended.value.code == code)
    assert not list(tmp_path.iterdir())


class Interruption:
    """Raise SIGINT when a function of `FILES`, or one that it calls, is entered or left for the n-th time."""

    FILES = ("staging.py", "shutil.py", "pathlib.py")

    def __init__(self, number):
        self.number, self.count = number, 0

    def __call__(self, frame, event, argument):
        # not where a generator stops and goes on: Python looks for no signals there, and would skip its `finally`
        is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR and event in ("call", "return")
        if not is_generator and frame.f_code.co_filename.endswith(self.FILES):
            self.count += 1
            if self.count == self.number:
                signal.raise_signal(signal.SIGINT)

    def __enter__(self):
        self.handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        signal.signal(signal.SIGINT, self.handler)


def write(target, error, number):
    """Write a target, with an interruption or an error; how many interruptions were possible."""
    interrupted = Interruption(number)
    with contextlib.suppress(KeyboardInterrupt, ValueError, OSError), interrupted, staged(target) as new:
        (new / "config.json").write_text("new")
        (new / "code").mkdir()
        if error:
            raise error
    return interrupted.count


@pytest.mark.parametrize("error", [None, ValueError("a check failed")], ids=["written", "failed"])
def test_an_interruption_leaves_the_whole_target_or_nothing(tmp_path, error):
    target, outcomes = tmp_path / "parent" / "target", set()
    for number in range(1, write(target, error, -1) + 1):
        shutil.rmtree(tmp_path / "parent", ignore_errors=True)
        write(target, error, number)
        left = snapshot(tmp_path).keys()
        assert left in (set(), {"parent", *(f"parent/target{name}" for name in ("", "/config.json", "/code"))}), number
        outcomes.add(len(left))
    assert outcomes == ({0} if error else {0, 4})


def test_an_interruption_of_the_imports_is_one_line_too(tmp_path):
    command = [sys.executable, "-c", "from command_plt.main import main; print('go', flush=True); main()"]
    with subprocess.Popen(
        [*command, "convert", str(SOURCE), str(tmp_path / "target")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "go\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.splitlines()[-1]) == (130, "plt: interrupted") and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_an_interruption_waits_for_the_end_of_an_import(tmp_path):
    """C++ code that calls Python while torch is imported ends the process at any exception: here a module does."""
    (tmp_path / "typer.py").write_text(
        "import os, signal, sys, time\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    os.abort()\n"
        "main = sys.modules[__name__]\nget_command = lambda app: time.sleep(60)\n"
        "sys.modules['command_plt.app'] = sys.modules[__name__]\napp = None\n"
    )
    command = [sys.executable, "-c", "from command_plt.main import main; main(['--help'])"]
    environment = os.environ | {"PYTHONPATH": checkout.on_path(tmp_path)}
    ended = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=50)
    assert (ended.returncode, ended.stderr) == (130, "plt: interrupted\n")
