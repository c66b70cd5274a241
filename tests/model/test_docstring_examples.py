"""The examples in the docstrings of public classes run, and print what they say."""

from doctest import DocTestFinder, DocTestRunner

import pytest
import torch
from tiny import tiny_ids, tiny_model

import modeling_plt

WITH_EXAMPLE = ("PLTCache", "PLTForCausalLM", "PLTStaticCache")


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_an_example_prints_what_it_says(name):
    given = {name: getattr(modeling_plt, name) for name in modeling_plt.__all__}
    given |= {"PLTConfig": modeling_plt.PLTConfig, "torch": torch, "model": tiny_model(), "input_ids": tiny_ids(1, 8)}
    (example, *others) = DocTestFinder(recurse=False).find(getattr(modeling_plt, name), name, globs=given)
    failed, attempted = DocTestRunner(verbose=False).run(example)
    assert not others and attempted >= 4 and not failed
