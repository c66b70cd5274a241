"""LoRA adapters: each request gets the tokens of the model that its adapter is merged into."""

import pytest
import torch
from engines import ADAPTER, NEW, as_prompts, engine, generated, greedy, layer_calls, random_prompts, save_tiny, served
from torch import nn
from vllm.forward_context import set_forward_context
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from modeling_plt import PLTForCausalLM
from serving_plt.vllm.gpu_checks.adapters import RANK, add_adapter
from serving_plt.vllm.lora import LoopByLoop, all_loops

LOOPS, LOOPED = 3, 2
FIELDS = {"num_loops": LOOPS, "num_hidden_layers": LOOPED + 2, "num_prelude_layers": 1, "num_coda_layers": 1}
# a matrix for the input of later loops, which has fewer rows than the layers
FIELDS |= ADAPTER


@pytest.fixture(scope="module")
def adapters(folder) -> list[LoRARequest]:
    return [LoRARequest(f"adapter-{number}", number + 1, str(folder / f"adapter-{number}")) for number in range(2)]


@pytest.fixture(scope="module")
def expected(folder, adapters) -> list[list[list[int]]]:
    """For each prompt: without an adapter, with the one, with the other."""
    save_tiny(folder / "base", **FIELDS)
    prompts, model = random_prompts(), PLTForCausalLM.from_pretrained(folder / "base").eval()
    answers = [generated(model, prompts)]
    for number, adapter in enumerate(adapters):
        model = PLTForCausalLM.from_pretrained(folder / "base").eval()
        add_adapter(model, folder / adapter.name, seed=number)
        answers.append(generated(model, prompts))
    assert all(len({*map(tuple, of_prompt)}) == 3 for of_prompt in zip(*answers, strict=True))
    return answers


@pytest.fixture(scope="module")
def llm(folder, expected):
    with engine(folder / "base", enable_lora=True, max_lora_rank=8, max_loras=2) as llm:
        yield llm


def served_in_turns(llm, adapters, prompts=None, max_tokens: int = NEW) -> list[list[int]]:
    """One prompt with the one adapter, the next with the other, all in one batch."""
    prompts = prompts or random_prompts()
    requests = [adapters[number % 2] for number in range(len(prompts))]
    outputs = llm.generate(as_prompts(prompts), greedy(max_tokens), use_tqdm=False, lora_request=requests)
    return [list(output.outputs[0].token_ids) for output in outputs]


def in_turns(expected) -> list[list[int]]:
    return [answers[number % 2] for number, answers in enumerate(zip(*expected[1:], strict=True))]


def test_requests_with_two_adapters_in_one_batch_and_without_any(llm, adapters, expected):
    """Not both in one batch: on a CPU, vLLM 0.32 gives the last adapter to requests without one."""
    assert served_in_turns(llm, adapters) == in_turns(expected)
    assert served(llm, random_prompts()) == expected[0]


@pytest.fixture
def calls(monkeypatch):
    """Of every layer: loops and rows."""
    return layer_calls(monkeypatch, lambda loops, rows: (len(loops), rows))


def test_a_step_that_only_decodes_calls_each_layer_once(llm, adapters, calls):
    """Those that loop with the rows of all loops."""
    served_in_turns(llm, adapters, random_prompts((5, 9, 7)), max_tokens=4)
    in_prefill = 1 + LOOPS * LOOPED + 1
    assert calls[:in_prefill] == [(1, 21)] * in_prefill
    assert calls[in_prefill:] == [(1, 3), *[(LOOPS, LOOPS * 3)] * LOOPED, (1, 3)] * 3


def test_memory_is_measured_with_an_adapter_for_every_row(llm, adapters, calls):
    """Of as many tokens as vLLM has told adapters for; with fewer, a GPU's kernel would read past the rows."""
    served_in_turns(llm, adapters, random_prompts((5, 9)), max_tokens=1)
    tokens, settings = 64, llm.llm_engine.vllm_config
    mapping = LoRAMapping((1,) * 40 + (2,) * (tokens - 40), (1, 2), is_prefill=True)

    def run(model):
        model.lora_manager.set_adapter_mapping(mapping)
        with torch.inference_mode(), set_forward_context(None, settings, num_tokens=tokens, slot_mapping={}):
            return model(torch.ones(tokens, dtype=torch.long), torch.arange(tokens))

    calls.clear()
    llm.apply_model(run)
    assert calls == [(1, tokens)] * (1 + LOOPS * LOOPED) + [(LOOPS, LOOPS * tokens)] * LOOPED + [(1, tokens)]


def of_other_loops(self: LoopByLoop, out, states, *rest, **more) -> None:
    """Rows dealt out to the loops one by one, as if each token's were together."""
    for number in range(self.times):
        self.of_tokens.add_lora_linear(out[number :: self.times], states[number :: self.times], *rest, **more)


def of_loop_0_alone(self: LoopByLoop, out, states, *rest, **more) -> None:
    self.of_tokens.add_lora_linear(out.chunk(self.times)[0], states.chunk(self.times)[0], *rest, **more)


@pytest.mark.parametrize("mistake", [of_other_loops, of_loop_0_alone])
def test_rows_with_the_adapter_of_another_token_show(mistake, llm, adapters, expected, monkeypatch):
    monkeypatch.setattr(LoopByLoop, "add_lora_linear", mistake)
    right = zip(served_in_turns(llm, adapters), in_turns(expected), strict=True)
    assert sum(given == wanted for given, wanted in right) <= 1


class Kernels:
    """Those of a GPU: an adapter for each row, and tensors without gaps."""

    def __init__(self, adapter_of_token):
        self.adapter_of_token = adapter_of_token

    def add_lora_linear(self, out, states, first, second, scale, slices):
        shrunk = out.new_zeros(len(first), len(states), RANK)
        self.add_shrink(shrunk, states, first, scale)
        self.add_expand(out, shrunk, second, slices)

    def add_shrink(self, out, states, first, scale):
        assert out.is_contiguous() and len(states) == len(self.adapter_of_token)
        out += torch.einsum("ti,stri->str", states, first[:, self.adapter_of_token]) * scale

    def add_expand(self, out, states, second, slices, add_input=True):
        assert out.is_contiguous() and states.shape[1] == len(self.adapter_of_token) and add_input
        parts = torch.einsum("str,stor->sto", states, second[:, self.adapter_of_token])
        assert slices == (parts.shape[-1],) * len(parts)
        out += parts.transpose(0, 1).flatten(1)


class Layer(nn.Module):
    """As vLLM's, whose adapters each process has whole, or a part of the rank of."""

    def __init__(self, kernels: Kernels, is_sharded: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        sizes = (16, 8), (2, 3, RANK, 8), (2, 3, 8, RANK)  # two slices, three adapters
        self.weight, self.first, self.second = (torch.randn(*size, generator=generator) for size in sizes)
        self.punica_wrapper, self.is_sharded = kernels, is_sharded

    def forward(self, states):
        out = states @ self.weight.T
        if self.is_sharded:
            shrunk = out.new_zeros(2, len(states), RANK)
            self.punica_wrapper.add_shrink(shrunk, states, self.first, 2.0)
            self.punica_wrapper.add_expand(out, shrunk, self.second, (8, 8), add_input=True)
        else:
            self.punica_wrapper.add_lora_linear(out, states, self.first, self.second, 2.0, (8, 8))
        return out.relu()


@torch.inference_mode()
@pytest.mark.parametrize("is_sharded", [False, True], ids=["whole adapters", "of a part of the rank"])
def test_compiled_and_with_adapters_that_processes_share_each_loop_is_a_call(is_sharded):
    """Rows of three loops are what three calls make; with steps of other sizes than the one that was compiled."""
    adapter_of_token = torch.tensor([0, 2, 1, 1, 0])
    alone = Layer(Kernels(adapter_of_token), is_sharded)
    layer = Layer(LoopByLoop(alone.punica_wrapper, LOOPS), is_sharded)
    states = torch.randn(LOOPS, 5, 8, generator=torch.Generator().manual_seed(2))
    wanted = torch.cat([alone(each) for each in states])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with all_loops([layer.punica_wrapper]):
        for run in (layer, compiled):
            torch.testing.assert_close(run(states.flatten(0, 1)), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(states[0]), wanted[:5], rtol=0, atol=0)  # and a pass of one loop is one call
