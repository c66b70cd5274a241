"""Two processes that share a model's heads, those of the gate included, and its experts give the tokens of one."""

from engines import engine, generated, random_prompts, save_tiny, served
from tiny import EXPERTS

# one KV head, of which both have a copy; a norm of the heads of both; MLPs of both kinds
FIELDS = EXPERTS | {"hidden_size": 64, "qk_norm": "whole", "num_key_value_heads": 1, "mlp_only_layers": [1]}


def test_two_processes(tmp_path):
    model, prompts = save_tiny(tmp_path, num_loops=3, **FIELDS), random_prompts()
    expected = generated(model, prompts)
    with engine(tmp_path, tensor_parallel_size=2) as llm:
        assert served(llm, prompts) == expected
        assert served(llm, prompts) == expected  # from cached prefixes
