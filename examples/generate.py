"""Complete a prompt with a saved model.

    python examples/generate.py --model runs/demo/plt --prompt "def read(self, size"

needs nothing but transformers: the folder brings its own code. Without `--model` it completes with a tiny random
model, for which the package must be installed.
"""

import argparse
import importlib.util
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer


def random_model():
    from configuration_plt import PLTConfig
    from modeling_plt import PLTForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return PLTForCausalLM(PLTConfig(vocab_size=256, eos_token_id=None, **sizes))  # no byte ends a text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a saved folder or a hub id; a tiny random model if absent")
    parser.add_argument("--prompt", default="def read(self, size")
    parser.add_argument("--max-new-tokens", type=int, default=60)
    args = parser.parse_args()
    print(f"package importable: {importlib.util.find_spec('modeling_plt') is not None}")
    if args.model is None:
        model, streamer = random_model(), None
        inputs = {"input_ids": torch.tensor([list(args.prompt.encode())])}  # a byte is a token
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
            tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
        except OSError as error:
            reason = str(error).splitlines()[0]
            parser.error(f"--model must be a saved model, such as `make demo` writes, got {args.model}: {reason}")
        streamer = TextStreamer(tokenizer)
        inputs = tokenizer(args.prompt, return_tensors="pt")

    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False, streamer=streamer)
    seconds = time.perf_counter() - start
    num_new = output.shape[1] - inputs["input_ids"].shape[1]
    print(f"{num_new} tokens by {type(model).__module__}, {num_new / seconds:.0f} tokens/s with the prompt")


if __name__ == "__main__":
    main()
