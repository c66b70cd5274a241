"""Code that runs in a process of its own, as a user without this package would run it."""

import os
import subprocess
import sys


def run_in_clean_process(code, *args, cwd):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cwd / "modules")}
    command = [sys.executable, "-c", code, *map(str, args)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result
