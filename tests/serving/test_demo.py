"""`make serve`: the server answers as `generate` does, and is gone whatever happens."""

import json
import socket

import pytest
import torch

from serving_plt.vllm import demo
from serving_plt.vllm.tiny import byte_tokenizer, save_tiny

OPTIONS = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--max-model-len", "128")


def port_of(client) -> int:
    return client.base_url.port


def test_the_server_answers_as_generate_does_and_is_gone_after_an_error(tmp_path):
    model, tokenizer, prompt = save_tiny(tmp_path / "plt").eval(), byte_tokenizer(), "def reach("
    message = [{"role": "user", "content": prompt}]
    chat = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    with (
        pytest.raises(KeyError, match="of the body"),
        demo.serving(tmp_path / "plt", tmp_path / "log", *OPTIONS) as client,
    ):
        port = port_of(client)
        answers = demo.ask(client, prompt, 12)
        raise KeyError("of the body")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    for text, answer in zip((prompt, chat), answers, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        new = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert answer == tokenizer.decode(new, skip_special_tokens=True)


def test_a_server_that_ends_says_why(tmp_path):
    save_tiny(tmp_path / "plt")
    config = json.loads((tmp_path / "plt/config.json").read_text())
    (tmp_path / "plt/config.json").write_text(json.dumps(config | {"num_loop": 3}))
    with (
        pytest.raises(RuntimeError, match="is `num_loops` meant"),
        demo.serving(tmp_path / "plt", tmp_path / "log", *OPTIONS),
    ):
        pass


def test_a_model_that_is_no_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--model", str(tmp_path / "nowhere")])
    assert "must be a folder" in capsys.readouterr().err
