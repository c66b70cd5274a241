"""Two processes that share a model's heads, those of the gate included, give the tokens of one."""

from engines import engine, generated, random_prompts, save_tiny, served


def test_two_processes(tmp_path):
    model, prompts = save_tiny(tmp_path, num_loops=3), random_prompts()
    expected = generated(model, prompts)
    with engine(tmp_path, tensor_parallel_size=2) as llm:
        assert served(llm, prompts) == expected
        assert served(llm, prompts) == expected  # from cached prefixes
