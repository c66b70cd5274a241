"""Every kind of model that the package has is served with the tokens of `generate`, anew and from cached prefixes."""

import pytest
from engines import engine, generated, logprobs_of, random_prompts, save_tiny, served_with_logprobs

VARIANTS = {
    "plt-2": {},
    "plt-3, query gate": {"num_loops": 3, "gate_input": "query"},
    "plt-4": {"num_loops": 4},
    "window 1": {"sliding_window": 1},
    "window of everything": {"sliding_window": 256, "num_loops": 3},
    "no loop norm, learned scales": {"loop_norm": False, "learned_scales": True, "num_loops": 3},
    "query-key norm, biases, tied head": {
        "qk_norm": True,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "bias of queries, keys and values alone": {"attention_bias": True, "attention_output_bias": False},
    "sandwich norms, gelu": {"norm_placement": "sandwich", "hidden_act": "gelu_pytorch_tanh"},
    "shared KV": {"loop_attention": "shared", "num_loops": 3},
    "shift": {"loop_attention": "own", "num_loops": 3},
    "vanilla loop": {"loop_attention": "own", "loop_shift": False, "num_loops": 3},
    "plain": {"num_loops": 1},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in VARIANTS] + [("plt-2", {"hf_overrides": {"one_pass": False}})],
    ids=[*VARIANTS, "loops in turn"],
)
def test_greedy_tokens_are_those_of_generate(name, options, tmp_path):
    model, prompts = save_tiny(tmp_path, **VARIANTS[name]), random_prompts()
    tokens = generated(model, prompts)
    logprobs = logprobs_of(model, prompts, tokens)
    assert len({tuple(row) for row in tokens}) >= len(prompts) - 1  # they can tell a wrong answer
    with engine(tmp_path, **options) as llm:
        for _ in range(2):
            given_tokens, given_logprobs = served_with_logprobs(llm, prompts)
            assert given_tokens == tokens
            assert sum(given_logprobs, []) == pytest.approx(sum(logprobs, []), abs=1e-3)
