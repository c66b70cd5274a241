"""Two processes that share a model's heads give the tokens of one."""

import pytest
from engines import engine, generated, random_prompts, save_tiny, served


@pytest.mark.parametrize("gate_input", ["hidden", "query"])
def test_two_processes(gate_input, tmp_path):
    model, prompts = save_tiny(tmp_path, num_loops=3, gate_input=gate_input), random_prompts()
    expected = generated(model, prompts)
    with engine(tmp_path, tensor_parallel_size=2) as llm:
        assert served(llm, prompts) == expected
        assert served(llm, prompts) == expected
