# SPDX-License-Identifier: Apache-2.0
"""Serve a small PLT by vLLM's OpenAI server on loopback, ask it for a completion and for an answer, and stop.

    python -m serving_plt.vllm.demo
    python -m serving_plt.vllm.demo --model runs/plt --prompt "def reach"

Without `--model` it is one of random weights, which answers nonsense.
"""

import argparse
import tempfile
from pathlib import Path

import openai

from .server import NAME, Server, serving
from .tiny import save_tiny


def client_of(server: Server) -> openai.OpenAI:
    """A client that asks once."""
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, prompt: str, max_tokens: int) -> tuple[str, str]:
    """A greedy completion of a prompt, and the answer to it as a user's message."""
    settings = {"model": NAME, "max_tokens": max_tokens, "temperature": 0}
    completion = client.completions.create(prompt=prompt, **settings).choices[0].text
    messages = [{"role": "user", "content": prompt}]
    return completion, client.chat.completions.create(messages=messages, **settings).choices[0].message.content


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder with a PLT and a tokenizer that has a chat template")
    parser.add_argument("--prompt", default="def reach(", help="text to complete; default: %(default)s")
    parser.add_argument("--max_tokens", type=int, default=16, help="tokens of the completion; default: %(default)s")
    args = parser.parse_args(arguments)
    if args.model is not None and not args.model.is_dir():
        parser.error(f"`--model` must be a folder, got {args.model}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary) / "plt"
        if args.model is None:
            save_tiny(folder)
        print("Starting the server; this takes up to a minute.", flush=True)
        options = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(256 << 20))
        with serving(folder, Path(temporary) / "log", *options, "--max-model-len", "256") as server:
            completion, answer = ask(client_of(server), args.prompt, args.max_tokens)
    print(f"Completion of {args.prompt!r}: {completion!r}")
    print(f"Answer to {args.prompt!r}: {answer!r}")


if __name__ == "__main__":
    main()
