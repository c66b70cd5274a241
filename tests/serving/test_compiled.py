"""With vLLM's compiler: each of the two ways through the loops is traced once, and answers stay as they are."""

import pytest
from engines import engine, generated, random_prompts, save_tiny, served


@pytest.mark.parametrize("fields", [{"num_loops": 3}], ids=str)
def test_compiled_answers_are_those_of_generate(fields, tmp_path):
    model = save_tiny(tmp_path, **fields)
    with engine(tmp_path, enforce_eager=False) as llm:
        mode = llm.llm_engine.vllm_config.compilation_config.mode
        (compiled,) = llm.apply_model(lambda model: (model.model.in_turn.compiled, model.model.together.compiled))
        prompts = random_prompts()
        print(mode, compiled)
        assert served(llm, prompts) == generated(model, prompts)
        assert served(llm, prompts[:1]) == generated(model, prompts[:1])
