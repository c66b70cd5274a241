"""Code that runs in a process of its own, as a user without this package would run it."""

import os
import shutil
import subprocess
import sys


def run_in_clean_process(code, *args, cwd):
    """Run code in the folder `cwd`, which holds the caches of the hub and of remote code too."""
    caches = {"HF_HUB_CACHE": str(cwd / "hub"), "HF_MODULES_CACHE": str(cwd / "modules")}
    environment = os.environ | caches | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def put_into_hub_cache(folder, repo_id, cwd):
    """Store a folder as if it had been downloaded as `repo_id`, for a process that runs in `cwd`."""
    commit = 40 * "a"
    repository = cwd / "hub" / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
