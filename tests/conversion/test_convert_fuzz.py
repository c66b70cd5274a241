"""Random damage: one sentence or a right target, and no file lost or left.

Every case is drawn from a seed that is part of its assertion.
"""

import json
import random
import shutil
import warnings

import pytest
import torch
from converting import DATA, digests, plain_model, plt_convert, snapshot
from safetensors.torch import load_file
from tokenizer_folders import special, write_files
from transformers import AutoTokenizer, GPT2Tokenizer

from conversion_plt.error_text import LONGEST_MESSAGE
from modeling_plt import PLTForCausalLM

NESTED = json.loads("[" * 60 + "]" * 60)
ODD = [None, True, False, 0, 1, -1, 2, 3, 7, 0.5, 1e-300, 1e308, float("nan"), float("inf")]
ODD += [2**31, 2**63, 2**64, 10**30, 10**400, "", "3", "false", "x" * 20_000, "a\nb", "\ud800", "\x00"]
ODD += [[], [1], [True, 0], ["a", 0], [None], NESTED]
ODD += [{}, {"a": 1}, {"rope_type": "yarn"}, {"rope_type": "llama3", "factor": 8.0}, {"type": "linear", "factor": "2"}]
NAMES = ["self", "cls", "config_dict", "kwargs", "layer_types", "rope_parameters", "rope_scaling", "sliding_window"]
NAMES += ["quantization_config", "partial_rotary_factor", "attn_implementation", "per_layer_config", "head_dim"]
NAMES += ["get_text_config", "early_exit_step", "num_key_value_heads", "eos_token_id", "x" * 20_000, "a\nb", ""]
TOKENS = {"<|end|>": 0, "a": 1, "b": 2, "ab": 3, "c": 4}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders of every format, some with a tokenizer, generation settings, two shards or pickle weights."""
    root = tmp_path_factory.mktemp("sources")
    for folder in (path for path in DATA.iterdir() if path.is_dir()):
        shutil.copytree(folder, root / folder.name)
    for name in ("llama", "mistral", "qwen2", "qwen3"):
        plain_model(name).save_pretrained(root / name, max_shard_size="60KB")
    (root / "pickle").mkdir()
    shutil.copy(DATA / "nanbeige" / "config.json", root / "pickle")
    torch.save(load_file(DATA / "nanbeige" / "model.safetensors"), root / "pickle" / "pytorch_model.bin")
    plt_convert(DATA / "nanbeige", root / "plt")
    write_files(
        root / "ouro",
        vocab__json=TOKENS,
        merges__txt="#version: 0.2\na b\n",
        generation_config__json={"eos_token_id": [2, 75], "do_sample": True, "temperature": 0.7},
        tokenizer_config__json={
            "tokenizer_class": "OwnTokenizer",
            "eos_token": "<|end|>",
            "added_tokens_decoder": {"0": special("<|end|>", special=True)},
            "chat_template": "{{ messages }}",
        },
        LICENSE="the license",
    )
    GPT2Tokenizer(vocab=TOKENS, merges=[("a", "b")]).save_pretrained(root / "qwen3")
    return root


def attempt(draw, *arguments):
    """Run the command; its sentence, or None if it ended well."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plt_convert(*arguments)
    except SystemExit as end:
        message = str(end.code)
        assert message == "130" or message.startswith("plt: "), draw
        assert message.isprintable() and len(message) <= LONGEST_MESSAGE + 20, draw
        return message
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {draw}") from error
    return None


def assert_right(draw, source, target):
    """The target loads, computes, and holds only tensors of the source, if none is computed."""
    model = PLTForCausalLM.from_pretrained(target).eval()
    with torch.no_grad():
        logits = model(torch.arange(8)[None] % model.config.vocab_size).logits
    assert logits.isfinite().all(), draw
    if json.loads((source / "config.json").read_text())["model_type"] != "huginn_raven":  # which has fused tensors
        assert digests(target) <= digests(source), draw
    if (target / "tokenizer_config.json").is_file():
        AutoTokenizer.from_pretrained(target)


def convert_damaged(sources, tmp_path, seed, damage):
    """Damage a copy of a random source and convert it; whether that was refused."""
    rng = random.Random(seed)
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.rmtree(source, ignore_errors=True)
    names = [folder for folder in sorted(sources.iterdir()) if folder.name != "plt" or damage is damage_config]
    shutil.copytree(rng.choice(names), source)
    draw = (seed, damage(rng, source))
    before = snapshot(source)
    options = ["--allow-pickle"] if (source / "pytorch_model.bin").exists() else []
    message = attempt(draw, source, target, *options)
    assert snapshot(source) == before, draw
    if message is None:
        assert_right(draw, source, target)
        shutil.rmtree(target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"], draw
    return message is not None


def change_json(rng, file, names):
    """Give a random field, or one in a nested object, an odd value, or leave it out."""
    content = json.loads(file.read_text())
    inner = content
    while nested := [value for value in inner.values() if isinstance(value, dict) and value and rng.random() < 0.3]:
        inner = rng.choice(nested)
    name = rng.choice([*inner, *names] if inner is content else list(inner))
    if name in inner and rng.random() < 0.1:
        del inner[name]
        value = "nothing"
    else:
        value = inner[name] = rng.choice(ODD)
    try:
        file.write_text(json.dumps(content))
    except ValueError:  # more digits than Python writes
        return change_json(rng, file, names)
    return file.name, name[:50], str(value)[:50]


def change_bytes(rng, file):
    """Cut a file, or flip some of its bits."""
    data = bytearray(file.read_bytes())
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.choice([1, 1, 3])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return file.name, "bytes"


def damage_config(rng, source):
    return [change_json(rng, source / "config.json", NAMES) for _ in range(rng.choice([1, 1, 2]))]


def damage_file(rng, source):
    files = [file for file in sorted(source.iterdir()) if file.suffix in (".json", ".txt", ".bin")]
    file = rng.choice(files)
    return (
        change_json(rng, file, ["a", "auto_map"])
        if file.suffix == ".json" and rng.random() < 0.6
        else change_bytes(rng, file)
    )


def damage_header(rng, source):
    file = rng.choice(sorted(source.glob("*.safetensors")) or sorted(source.glob("*.bin")))
    data = bytearray(file.read_bytes())
    size = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else len(data)
    data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return file.name, "header"


def damage_body(rng, source):
    file = rng.choice(sorted(source.glob("model*.safetensors")) or sorted(source.glob("*.bin")))
    return change_bytes(rng, file)


@pytest.mark.parametrize(
    "damage, count, least",
    [(damage_config, 110, 60), (damage_file, 60, 20), (damage_header, 25, 8), (damage_body, 15, 3)],
    ids=["config", "files", "headers", "bodies"],
)
def test_damaged_sources_are_refused_in_one_line_or_give_a_right_target(sources, tmp_path, damage, count, least):
    refusals = sum(convert_damaged(sources, tmp_path, seed, damage) for seed in range(count))
    assert least <= refusals < count
