"""Every kind of model that the package has is served with the tokens of `generate`, anew and from cached prefixes."""

import pytest
from engines import (
    ADAPTER,
    engine,
    generated,
    kv_bytes_by_formula,
    logprobs_of,
    random_prompts,
    save_tiny,
    served_with_logprobs,
)
from tiny import EXPERTS

from serving_plt.vllm.timed_engine import kv_bytes_per_token

HUGINN = ADAPTER | {
    "num_hidden_layers": 4,
    "num_prelude_layers": 1,
    "num_coda_layers": 1,
    "coda_norm": True,
    "norm_placement": "residual",
    "embedding_multiplier": 2.0,
    "num_loops": 3,
}
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
    "query-key norm of all heads": {"qk_norm": "whole", "num_loops": 3},
    "sandwich norms, gelu": {"norm_placement": "sandwich", "hidden_act": "gelu_pytorch_tanh"},
    "shared KV": {"loop_attention": "shared", "num_loops": 3},
    "shift": {"loop_attention": "own", "num_loops": 3},
    "vanilla loop": {"loop_attention": "own", "loop_shift": False, "num_loops": 3},
    "plain": {"num_loops": 1},
    "prelude and coda": {"num_hidden_layers": 5, "num_prelude_layers": 2, "num_coda_layers": 1, "num_loops": 3},
    "prelude alone, norm of the output": {"num_prelude_layers": 1, "norm_placement": "output", "loop_norm": False},
    "Huginn": HUGINN | {"initial_state": "zeros", "loop_attention": "own", "loop_shift": False},
    "Huginn as a PLT": HUGINN | {"initial_state": "prelude", "loop_norm": False},
    "adapter in later loops alone": ADAPTER | {"num_coda_layers": 1},
}
MIXTURES = {
    "experts, shared expert with a gate": {},
    "experts, shared expert without a gate": {"num_loops": 3, "shared_expert_gate": False},
    "one sparse layer, weights not normed, no shared expert": {
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": None,
        "mlp_only_layers": [0, 2],
        "mlp_bias": True,
        "num_loops": 3,
    },
    "every second layer sparse, query-key norm of all heads": {"qk_norm": "whole", "decoder_sparse_step": 2},
    "experts, gelu, sandwich norms": {"hidden_act": "gelu", "norm_placement": "sandwich"},
    "experts, gelu of tanh, tied head": {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "experts, vanilla loop": {"loop_attention": "own", "loop_shift": False},
    "experts, plain": {"num_loops": 1},
}
# on a CPU, vLLM's kernel of experts has hidden sizes that are multiples of 32
VARIANTS |= {name: EXPERTS | {"hidden_size": 64} | fields for name, fields in MIXTURES.items()}
IN_TURN = ("plt-2", "experts, shared expert without a gate")


BORROWING = ("together_attn", *(f"shared_attn_{loop}" for loop in range(1, 4)))  # which read the keys of others


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in VARIANTS] + [(name, {"hf_overrides": {"one_pass": False}}) for name in IN_TURN],
    ids=[*VARIANTS, *(f"{name}, loops in turn" for name in IN_TURN)],
)
def test_greedy_tokens_are_those_of_generate(name, options, tmp_path):
    """Tokens go to the same experts: no choice is so close that the order of a sum decides it."""
    model, prompts = save_tiny(tmp_path, **VARIANTS[name]), random_prompts()
    tokens = generated(model, prompts)
    logprobs = logprobs_of(model, prompts, tokens)
    assert len({tuple(row) for row in tokens}) >= len(prompts) - 1  # they can tell a wrong answer
    with engine(tmp_path, **options) as llm:
        check_groups(llm)
        assert kv_bytes_per_token(llm) == pytest.approx(kv_bytes_by_formula(model.config), rel=0.01)
        for _ in range(2):
            given_tokens, given_logprobs = served_with_logprobs(llm, prompts)
            assert given_tokens == tokens
            assert sum(given_logprobs, []) == pytest.approx(sum(logprobs, []), abs=1e-3)


def check_groups(llm) -> None:
    """The carry is one group of vLLM's, and little memory is for layers that fill others up."""
    core = llm.llm_engine.engine_core.engine_core
    every = [group.layer_names for group in core.scheduler.kv_cache_config.kv_cache_groups]
    own = [[name for name in names if not name.endswith(BORROWING)] for names in every]
    carries = [names for names in own if names[0].endswith(".carry")]
    others = [len(names) for names in own if names not in carries]
    if carries:
        assert len(carries) == 1
        assert sum(max(map(len, own)) - number for number in others) <= 0.1 * sum(others)
