"""What clients of OpenAI's interface use, asked of one server: each answer is that of `generate`, or of a grammar."""

import contextlib
import json
import re

import openai
import pytest
import torch

from serving_plt.vllm import demo
from serving_plt.vllm.server import NAME, serving
from serving_plt.vllm.tiny import byte_tokenizer, save_tiny

OPTIONS = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--max-model-len", "256")
# a parser whose calls need no tokens of their own; compact JSON, because a random model likes spaces
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "pythonic")
COMPACT = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
PRUNED = ("--kv-sharing-fast-prefill", "--no-enable-prefix-caching")
PROMPT, NEW = "def reach(", 12
CHAT = [{"role": "user", "content": PROMPT}]
GREEDY = {"model": NAME, "temperature": 0}
VALUES = {"loops": [1, 2, 3], "gate": ["head", "token"]}  # few: a random model may never end a string or a list
SCHEMA = {
    "type": "object",
    "properties": {name: {"enum": values} for name, values in VALUES.items()},
    "required": [*VALUES],
    "additionalProperties": False,
}
FUNCTIONS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("set_window", "set_loops")
]
CHOSEN = {"type": "function", "function": {"name": "set_loops"}}
PRUNED_POSITIONS = "plt_pruned_positions_total"
CHOICES = ("one loop", "two loops", "one pass")


@pytest.fixture(scope="module")
def model(folder):
    return save_tiny(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def server(folder, model, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(folder, log, *OPTIONS, *TOOLS, *COMPACT, *PRUNED) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return demo.client_of(server)


@pytest.fixture(scope="module")
def rendered(tokenizer):
    """The chat as the template writes it."""
    return tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)


@pytest.fixture(scope="module")
def said(model, tokenizer, rendered):
    """What `generate` says to the prompt, and to the chat."""

    def answer(text: str) -> str:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        new = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True)

    assert answer(PROMPT) != answer(rendered)
    return answer(PROMPT), answer(rendered)


def check_schema(text: str) -> None:
    found = json.loads(text)
    assert found.keys() == VALUES.keys()
    assert all(value in VALUES[name] for name, value in found.items())


def test_the_demo_prints_what_generate_says(server, folder, said, monkeypatch, capsys):
    monkeypatch.setattr(demo, "serving", lambda *_: contextlib.nullcontext(server))
    demo.main(["--model", str(folder), "--prompt", PROMPT, "--max_tokens", str(NEW)])
    _, completion, answer = capsys.readouterr().out.splitlines()
    assert completion == f"Completion of {PROMPT!r}: {said[0]!r}"
    assert answer == f"Answer to {PROMPT!r}: {said[1]!r}"


def test_a_chat_is_a_completion_of_the_rendered_template(client, rendered, said):
    assert client.completions.create(prompt=rendered, max_tokens=NEW, **GREEDY).choices[0].text == said[1]


def test_streamed_parts_make_the_whole_text(client, said):
    parts = [
        part.choices[0].text
        for part in client.completions.create(prompt=PROMPT, max_tokens=NEW, stream=True, **GREEDY)
    ]
    assert len(parts) > NEW / 2  # bytes of one character come together
    assert "".join(parts) == said[0]
    deltas = client.chat.completions.create(messages=CHAT, max_tokens=NEW, stream=True, **GREEDY)
    assert "".join(part.choices[0].delta.content or "" for part in deltas) == said[1]


def test_a_schema_is_kept(client):
    form = {"type": "json_schema", "json_schema": {"name": "settings", "schema": SCHEMA}}
    answer = client.chat.completions.create(messages=CHAT, max_tokens=64, response_format=form, **GREEDY).choices[0]
    check_schema(answer.message.content)


def test_an_expression_is_kept(client):
    asked = {"structured_outputs": {"regex": "[a-f]{3}-[0-9]{2}"}}
    text = client.completions.create(prompt=PROMPT, max_tokens=64, extra_body=asked, **GREEDY).choices[0].text
    assert re.fullmatch("[a-f]{3}-[0-9]{2}", text)


@torch.no_grad()
def likeliest_choice(model, tokenizer) -> str:
    """Token by token, the likeliest of those that lead to one of the choices."""
    ids, text = tokenizer(PROMPT)["input_ids"], ""
    tokens = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    while text not in CHOICES:
        logits = model(torch.tensor([ids])).logits[0, -1]
        allowed = [token for token, part in tokens.items() if part and any(c.startswith(text + part) for c in CHOICES)]
        best = max(allowed, key=lambda token: logits[token].item())
        ids, text = [*ids, best], text + tokens[best]
    return text


def test_the_likeliest_of_some_choices_is_taken(client, model, tokenizer):
    asked = {"structured_outputs": {"choice": CHOICES}}
    text = client.completions.create(prompt=PROMPT, max_tokens=64, extra_body=asked, **GREEDY).choices[0].text
    assert text == likeliest_choice(model, tokenizer)


def test_a_function_is_called_with_arguments_of_its_schema(client):
    asked = {"messages": CHAT, "tools": FUNCTIONS, "tool_choice": CHOSEN, "max_tokens": 64}
    (call,) = client.chat.completions.create(**asked, **GREEDY).choices[0].message.tool_calls
    assert call.function.name == "set_loops"
    check_schema(call.function.arguments)
    # and the same in parts, the name in one of them
    parts = [
        delta.function
        for part in client.chat.completions.create(**asked, stream=True, **GREEDY)
        for delta in part.choices[0].delta.tool_calls or ()
    ]
    assert [part.name for part in parts if part.name] == ["set_loops"]
    assert "".join(part.arguments or "" for part in parts) == call.function.arguments


def test_a_model_that_may_call_functions_calls_some(client):
    """With `required`."""
    asked = {"messages": CHAT, "tools": FUNCTIONS[1:], "tool_choice": "required", "max_tokens": 200}
    calls = client.chat.completions.create(**asked, parallel_tool_calls=False, **GREEDY).choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["set_loops"]


def counted(server) -> dict[str, float]:
    lines = [line.split(" ") for line in server.page("/metrics").splitlines() if line.startswith("plt_")]
    return {name: float(value) for name, value in lines}


def test_the_server_is_healthy_and_shows_what_its_model_counts(server, client, model):
    """Of a prompt of 100 tokens, the first layer of the second loop needs 31, and the second 16."""
    assert server.page("/health") == ""
    before = counted(server)
    assert before == {"plt_loops": 2, "plt_window": 16} | {PRUNED_POSITIONS: before[PRUNED_POSITIONS]}
    for _ in range(2):
        client.completions.create(prompt=[7] * 100, max_tokens=2, **GREEDY)
    assert counted(server)[PRUNED_POSITIONS] - before[PRUNED_POSITIONS] == 2 * (100 - 31 + 100 - 16)
    assert "vllm:kv_cache_usage_perc{" in server.page("/metrics")


def test_log_probabilities_of_a_pruned_prompt_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="kv-sharing-fast-prefill"):
        client.completions.create(prompt=[7] * 100, extra_body={"prompt_logprobs": 1}, **GREEDY)
