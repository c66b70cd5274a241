"""The pages as a site: every link and anchor leads somewhere, and the docstrings are on it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert not built.returncode, built.stderr
    return folder


def test_every_page_is_on_the_site(site):
    names = [path.stem for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in names if not (site / "docs" / name / "index.html").exists()] == []
    assert "docs/decode_step.svg" in (site / "index.html").read_text() and (site / "docs/decode_step.svg").exists()


def test_links_into_the_repository_lead_to_files_of_the_site(site):
    linked = re.findall(r'href="\.\./\.\./(results/[^"#]+)"', (site / "docs/benchmark/index.html").read_text())
    assert len(linked) > 20 and all((site / target).exists() for target in linked)


def test_the_docstrings_are_on_the_site(site):
    page = (site / "docs/api/index.html").read_text()
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)
    assert len(names) > 10 and all(f'id="{name}"' in page for name in names)
    assert "num_loops" in page and "Raises:" in page


def test_links_that_lead_nowhere_fail(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("mkdocs.yml", "docs/site_files.py", "docs/plt.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text("[page](docs/nothing.md) [anchor](docs/plt.md#nowhere) [file](results/no.md)")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode
    for target in ("docs/nothing.md", "docs/plt.md#nowhere", "results/no.md"):
        assert f"contains a link '{target}'" in built.stderr, built.stderr
