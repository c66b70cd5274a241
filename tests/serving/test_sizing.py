"""The table of cache sizes on docs/deploying.md; test_variants.py holds its formula against vLLM's count."""

import re
import shlex

import pytest
from checkout import ROOT

from serving_plt.vllm.sizing import main

PAGE = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")


def test_the_table_of_the_page_is_what_its_command_prints(capsys):
    command = re.search(r"^python -m serving_plt.vllm.sizing (.*)$", PAGE, flags=re.MULTILINE)[1]
    table = re.search(r"\n(\| context .*)\n\n", PAGE, flags=re.DOTALL)[1] + "\n"
    main(shlex.split(command))
    assert capsys.readouterr().out == table
    main([*shlex.split(command), "--cache-dtype", "float32"])
    assert capsys.readouterr().out != table


@pytest.mark.parametrize(
    ("options", "of_carry"),
    [([], 3), (["--drafts", "1"], 4), (["--drafts", "1", "--no-prefix-caching"], 2)],
)
def test_a_folder_has_the_table_of_its_model(options, of_carry, folder, model, capsys):
    asked = ["--contexts", "256", "--batches", "1", "2", "--block-size", "32", "--in-flight", "64"]
    main([str(folder), *asked, *options])
    header, _, line = capsys.readouterr().out.splitlines()
    assert header == "| context | to plain | batch 1, GB | batch 2, GB |"
    # 8 blocks of all keys, two loops whose windows need 4, and those of the carry
    assert line.startswith(f"| 256 | {(8 + 2 * 4 + of_carry) / 8:.2f} |")


def test_a_model_that_is_neither_folder_nor_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["2.7b"])
    assert "`model` must be a folder or one of tiny, 0.3b" in capsys.readouterr().err
