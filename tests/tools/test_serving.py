# SPDX-License-Identifier: Apache-2.0
"""A PLT behind `plt transformers serve`, asked over HTTP on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason="needs the extra `tools`")

COMMAND = [sys.executable, "-c", "from command_plt.main import main; main()", "transformers"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1"}
MESSAGES = [{"role": "user", "content": "def wrap(text):"}]
NUM_NEW = 16


def connect(port: int) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", port, timeout=60)


def is_up(port: int) -> bool:
    connection = connect(port)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope="module")
def port(chat_folder, tmp_path_factory) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    options = ["--host", "127.0.0.1", "--port", str(number), "--device", "cpu", "--continuous-batching"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*COMMAND, "serve", *options], env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        limit = time.monotonic() + 120
        while not is_up(number):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.5)
        yield number
    finally:
        server.kill()
        server.wait()


def post(port: int, path: str, **body) -> HTTPResponse:
    connection = connect(port)
    body = json.dumps(body | {"max_tokens": NUM_NEW, "temperature": 0})
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    return response


@pytest.fixture(scope="module")
def expected(chat_folder) -> dict[str, str]:
    """What `generate` says: to the messages as a chat, and behind their text."""
    model = AutoModelForCausalLM.from_pretrained(chat_folder)
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    chat = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    texts = {}
    for name, prompt in {"chat": chat, "text": MESSAGES[0]["content"]}.items():
        input_ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(input_ids, max_new_tokens=NUM_NEW, do_sample=False, use_cache=False)
        texts[name] = tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)
    return texts


@pytest.mark.proves(tool="transformers", what="`plt transformers serve`: `/v1/chat/completions`")
def test_a_chat_completion_is_what_generate_says(port, chat_folder, expected):
    answer = json.load(post(port, "/v1/chat/completions", model=str(chat_folder), messages=MESSAGES))
    assert answer["choices"][0]["message"]["content"] == expected["chat"]
    assert answer["usage"]["completion_tokens"] == NUM_NEW


@pytest.mark.proves(tool="transformers", what="`plt transformers serve`: `/v1/chat/completions`, streamed")
def test_a_streamed_chat_completion_is_what_generate_says(port, chat_folder, expected):
    response = post(port, "/v1/chat/completions", model=str(chat_folder), messages=MESSAGES, stream=True)
    lines = [line.decode().removeprefix("data: ").strip() for line in response if line.startswith(b"data: {")]
    pieces = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
    assert sum(map(bool, pieces)) > 4
    assert "".join(pieces) == expected["chat"]


@pytest.mark.proves(tool="transformers", what="`plt transformers serve`: `/v1/completions`")
def test_a_completion_is_what_generate_says(port, chat_folder, expected):
    answer = json.load(post(port, "/v1/completions", model=str(chat_folder), prompt=MESSAGES[0]["content"]))
    assert answer["choices"][0]["text"] == expected["text"]


@pytest.mark.proves(tool="transformers", what="`plt transformers chat`, a client of `serve`")
def test_the_chat_client_prints_what_generate_says(port, chat_folder, expected, tmp_path):
    client = subprocess.run(
        [
            *COMMAND,
            "chat",
            str(chat_folder),
            f"http://127.0.0.1:{port}/v1",
            f"max_new_tokens={NUM_NEW}",
            "do_sample=False",
        ],
        # offline, it would not ask this machine either
        env=os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "200"},
        cwd=tmp_path,
        input=f"{MESSAGES[0]['content']}\nn\n!exit\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert client.returncode == 0, client.stderr
    assert expected["chat"] in client.stdout


@pytest.mark.proves(
    tool="transformers",
    what="`plt transformers serve --continuous-batching`",
    note="falls back to one request at a time",
)
def test_a_server_with_continuous_batching_serves_a_plt_without(chat_folder):
    from transformers.cli.serving.utils import GenerationState, Modality

    model = AutoModelForCausalLM.from_pretrained(chat_folder)
    assert not GenerationState(continuous_batching=True).use_continuous_batching(model, Modality.LLM)


@pytest.mark.proves(tool="transformers", what="`transformers serve`, which knows transformers' own classes only")
def test_the_server_without_our_launcher_finds_no_class(chat_folder, refused):
    from transformers.cli.serving.model_manager import ModelManager

    with refused(AttributeError, "has no attribute PLTForCausalLM"):
        ModelManager(device="cpu", trust_remote_code=True).load_model_and_processor(str(chat_folder))
