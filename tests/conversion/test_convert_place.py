"""Where a conversion may write: what it did not write is never deleted, however it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkout
import pytest
from converting import DATA, plt_convert, refused, signalled, snapshot, write_documents, write_plt
from safetensors import safe_open

import conversion_plt.convert
import conversion_plt.target.staging
from conversion_plt.target.held_signals import HeldSignals
from conversion_plt.target.staging import staged

SOURCE = DATA / "nanbeige"


def is_converted(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return "model.norm.weight" in opened.keys()  # noqa: SIM118, not a dict


def assert_kept(tmp_path, capsys, *arguments):
    """The command is refused and changes nothing; its sentence."""
    before = snapshot(tmp_path)
    message = refused(capsys, *arguments)
    assert snapshot(tmp_path) == before
    assert "\n" not in message
    return message


def test_only_a_plt_or_an_empty_folder_is_overwritten(tmp_path, capsys):
    write_plt(tmp_path / "model")
    assert "`--overwrite` replaces it" in assert_kept(tmp_path, capsys, SOURCE, tmp_path / "model")
    for target in ("model", "empty"):
        (tmp_path / target).mkdir(exist_ok=True)
        plt_convert(SOURCE, tmp_path / target, "--overwrite")
        assert is_converted(tmp_path / target)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "empty"}


@pytest.mark.parametrize("content", ["documents", "another model", "a broken config", "a list", "a deep folder"])
def test_a_folder_of_other_things_is_kept(tmp_path, capsys, content):
    target = tmp_path / "target"
    write_documents(target)
    if content == "another model":
        shutil.copytree(DATA / "ouro", target, dirs_exist_ok=True)
    elif content != "documents":
        (target / "config.json").write_text({"a broken config": "{", "a list": "[]"}.get(content, "[" * 100_000))
    message = assert_kept(tmp_path, capsys, SOURCE, target, "--overwrite")
    assert "must hold a PLT to be replaced" in message and "`thesis.txt`" in message


def test_a_file_is_kept(tmp_path, capsys):
    (tmp_path / "target").write_text("years of work")
    assert "got a file" in assert_kept(tmp_path, capsys, SOURCE, tmp_path / "target", "--overwrite")


@pytest.mark.parametrize("points_to", ["model", "documents", "nowhere"])
def test_a_link_is_kept_and_so_is_what_it_points_to(tmp_path, capsys, points_to):
    write_plt(tmp_path / "model")
    write_documents(tmp_path / "documents")
    (tmp_path / "target").symlink_to(tmp_path / points_to)
    for option in ([], ["--overwrite"]):
        assert "got a link to" in assert_kept(tmp_path, capsys, SOURCE, tmp_path / "target", *option)


@pytest.mark.parametrize(
    "target", ["models/x", "models", "models/x/inside", "models/../models/x", "link/x", "link", "models/x/../x", "."]
)
def test_the_source_what_holds_it_and_what_it_holds_are_kept(tmp_path, capsys, monkeypatch, target):
    models = tmp_path / "models"
    plt_convert(SOURCE, models / "x")
    write_plt(models / "pretended")  # so that only the source stands in the way
    (models / "pretended" / "config.json").rename(models / "config.json")
    write_documents(models / "other")
    (tmp_path / "link").symlink_to(models)
    monkeypatch.chdir(models)
    path = "." if target == "." else tmp_path / target
    assert_kept(tmp_path, capsys, models / "x", path, "--overwrite")
    assert_kept(tmp_path, capsys, tmp_path / "link" / "x", path, "--overwrite")
    assert_kept(tmp_path, capsys, "x", path, "--overwrite")


def test_files_that_are_read_from_the_target_are_kept(tmp_path, capsys):
    target = tmp_path / "target"
    write_plt(target)
    shutil.copytree(SOURCE, tmp_path / "source")
    for name in ("expected.safetensors", "model.safetensors"):
        shutil.copy(SOURCE / name, target / name)
    message = assert_kept(
        tmp_path, capsys, tmp_path / "source", target, "--overwrite", "--expected", target / "expected.safetensors"
    )
    assert "must be apart from what is read" in message
    (tmp_path / "source" / "model.safetensors").unlink()
    (tmp_path / "source" / "model.safetensors").symlink_to(target / "model.safetensors")
    assert "which holds" in assert_kept(tmp_path, capsys, tmp_path / "source", target, "--overwrite")


def test_a_source_of_links_into_the_hubs_cache_converts(tmp_path):
    cache = tmp_path / "models--own--model"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for number, file in enumerate([*SOURCE.iterdir(), Path(__file__).parents[2] / "LICENSE"]):
        shutil.copy(file, cache / "blobs" / str(number))
        (cache / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{number}")
    before = snapshot(cache)
    plt_convert(cache / "snapshots" / "abc", tmp_path / "target")
    assert is_converted(tmp_path / "target") and (tmp_path / "target" / "LICENSE").is_file()
    assert snapshot(cache) == before


def appear(kind, target):
    """What somebody else does at the place of the target meanwhile."""
    time.sleep(0.02)  # a clock tick of the file system
    if target.is_dir():
        shutil.rmtree(target)
    if kind == "a file":
        target.write_text("years of work")
    elif kind == "documents":
        write_documents(target)
    elif kind == "a plt":
        write_plt(target, "of another run")
    elif kind == "a link":
        write_documents(target.with_name("documents"))
        target.symlink_to(target.with_name("documents"))


@pytest.mark.parametrize("kind", ["a file", "documents", "a plt", "a link"])
@pytest.mark.parametrize(
    "before, overwrite", [("nothing", False), ("nothing", True), ("an empty folder", True), ("a plt", True)]
)
def test_a_target_that_appears_or_changes_meanwhile_is_kept(tmp_path, kind, before, overwrite):
    target = tmp_path / "target"
    if before != "nothing":
        target.mkdir() if before == "an empty folder" else write_plt(target)
    with pytest.raises(FileExistsError), staged(target, overwrite) as new:
        (new / "config.json").write_text("new")
        appear(kind, target)
        expected = snapshot(tmp_path)
    assert snapshot(tmp_path) == {name: data for name, data in expected.items() if not name.startswith(".")}


def test_documents_that_come_into_an_empty_target_meanwhile_are_kept(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(FileExistsError, match="got a change"), staged(target, overwrite=True):
        time.sleep(0.02)
        (target / "thesis.txt").write_text("years of work")
    assert snapshot(tmp_path) == {"target": False, "target/thesis.txt": b"years of work"}


def test_a_target_that_goes_away_meanwhile_is_written(tmp_path):
    write_plt(tmp_path / "target")
    with staged(tmp_path / "target", overwrite=True) as new:
        (new / "new").touch()
        shutil.rmtree(tmp_path / "target")
    assert snapshot(tmp_path) == {"target": False, "target/new": b""}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk"), SystemExit("terminated")], ids=repr)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", [0, 1])
def test_the_old_target_is_put_back_if_the_exchange_is_interrupted(tmp_path, monkeypatch, error, moment, call):
    """One of the two renames fails, or is interrupted when it has just been done."""
    write_plt(tmp_path / "target")
    replace, calls = os.replace, []

    def interrupted(*paths):
        calls.append(paths)
        if len(calls) == call + 1:
            if moment == "after":
                replace(*paths)
            raise error
        replace(*paths)

    monkeypatch.setattr(conversion_plt.target.staging.os, "replace", interrupted)
    with pytest.raises(BaseException) as raised, staged(tmp_path / "target", overwrite=True) as new:
        (new / "new").touch()
    assert raised.value is error or raised.type is error
    is_new = moment == "after" and call == 1
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / ("new" if is_new else "config.json")).is_file()


def test_an_old_target_that_cannot_be_put_back_is_left_and_named(tmp_path, monkeypatch):
    write_plt(tmp_path / "target")
    replace = os.replace

    def taken(source, target):
        if source.name == "new":
            write_documents(tmp_path / "target")  # between the two renames
        replace(source, target)

    monkeypatch.setattr(conversion_plt.target.staging.os, "replace", taken)
    with pytest.raises(OSError, match=r"could not be put back, it is now .*/old"):  # noqa: SIM117, the order matters
        with staged(tmp_path / "target", overwrite=True):
            pass
    assert (tmp_path / "target" / "thesis.txt").read_text() == "years of work"
    (old,) = tmp_path.glob(".target.*/old/config.json")
    assert json.loads(old.read_text())["note"] == "old"


def test_signals_wait_for_the_exchange_and_the_clean_up(tmp_path, monkeypatch):
    write_plt(tmp_path / "target")
    for name in ("exchange", "clean_up"):
        work = getattr(conversion_plt.target.staging, name)

        def signalled(*arguments, work=work):
            signal.raise_signal(signal.SIGINT)
            work(*arguments)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(conversion_plt.target.staging, name, signalled)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "target", overwrite=True) as new:
        (new / "new").touch()
    assert snapshot(tmp_path) == {"target": False, "target/new": b""}


def test_signals_wait_only_while_they_must_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    done = []
    with pytest.raises(KeyboardInterrupt), HeldSignals():
        signal.raise_signal(signal.SIGINT)
        done.append("waited")
    with pytest.raises(KeyboardInterrupt), HeldSignals() as signals:
        signals.waiting = False
        signal.raise_signal(signal.SIGINT)
        done.append("not reached")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert done == ["waited"]


def test_new_parents_of_a_target_go_when_the_run_fails(tmp_path, capsys):
    assert_kept(tmp_path, capsys, DATA, tmp_path / "a" / "b" / "target")
    (tmp_path / "source").mkdir()
    assert_kept(tmp_path, capsys, tmp_path / "source", tmp_path / "a" / "b" / "target")
    plt_convert(SOURCE, tmp_path / "a" / "b" / "target")
    assert is_converted(tmp_path / "a" / "b" / "target")


def test_what_a_killed_run_left_is_named_and_kept(tmp_path, capsys):
    left, other = tmp_path / ".target.0123abcd", tmp_path / ".target.x.0123abcd"
    write_documents(left / "old")
    write_documents(other)
    plt_convert(SOURCE, tmp_path / "target")
    output = capsys.readouterr().out
    assert f"{left} belongs to another run" in output and str(other) not in output
    assert (left / "old" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    "number, code, sentence",
    [(signal.SIGINT, 130, "plt: interrupted"), (signal.SIGTERM, 1, "plt: terminated")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_ends_the_command_in_one_line_and_leaves_nothing(
    tmp_path, tmp_path_factory, monkeypatch, number, code, sentence
):
    write_plt(tmp_path / "target")
    before, log = snapshot(tmp_path), tmp_path_factory.mktemp("log") / "log"
    monkeypatch.setattr(conversion_plt.convert, "verify_files", lambda *_: time.sleep(60))
    ended, output = signalled(log, number, 2, SOURCE, tmp_path / "target", "--overwrite")
    assert (ended, output.splitlines()[-1]) == (code, sentence) and "Traceback" not in output
    assert snapshot(tmp_path) == before


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
