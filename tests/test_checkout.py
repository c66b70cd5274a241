"""The tests, and the processes that they start, import this checkout, whatever is installed."""

import importlib
import subprocess
import sys
from pathlib import Path

from checkout import FOLDERS

FIND = """
import importlib.util, sys
for name in sys.argv[1:]:
    print(importlib.util.find_spec(name).origin)
"""


def test_this_process_imports_the_checkout():
    for name in FOLDERS:
        assert Path(importlib.import_module(name).__file__).resolve().parent == FOLDERS[name]


def test_processes_import_the_checkout(tmp_path):
    """Without `site-packages` there is no installed copy that could take the checkout's place."""
    command = [sys.executable, "-S", "-c", FIND, *FOLDERS]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [Path(line).resolve().parent for line in result.stdout.split()] == list(FOLDERS.values())
