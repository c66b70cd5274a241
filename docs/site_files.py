# SPDX-License-Identifier: Apache-2.0
"""The files of the site, which `mkdocs.yml` calls: the pages, and every file of the repository that they link to.

The site has the folders of the repository, so that a relative link leads to the same file on both.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")
LINK = re.compile(r"\]\(([^)\s#:]+)")
CODE = re.compile(r"^```.*?^```|`[^`]*`", re.DOTALL | re.MULTILINE)


def linked_files(page: Path) -> set[Path]:
    """The files that a page links to; what does not exist is for mkdocs to name."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    targets = {(page.parent / target).resolve() for target in LINK.findall(text)}
    return {target for target in targets if target.is_file()}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Replace the files of `docs` by those of the site, each under its path in the repository."""
    root = Path(config.config_file_path).parent
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    found: set[Path] = set()
    waiting = {page for pattern in PAGES for page in root.glob(pattern)}
    while waiting:
        file = waiting.pop()
        found.add(file)
        if file.suffix == ".md":
            waiting |= linked_files(file) - found
    for file in sorted(found):
        files.append(File.generated(config, str(file.relative_to(root)), abs_src_path=str(file)))
