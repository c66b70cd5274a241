"""Damaged sources: an error each time, and no target."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from conversion_plt.convert import Request, convert
from conversion_plt.inspection import inspect

DATA = Path(__file__).parents[1] / "data"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path):
    """Nanbeige's reference in three files with an index."""
    source = tmp_path / "source"
    shutil.copytree(DATA / "nanbeige", source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {}
    for number in range(3):
        part = {name: tensors[name] for name in sorted(tensors)[number::3]}
        save_file(part, source / f"part-{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    write_index(source, weight_map)
    return source


def read_index(source):
    return json.loads((source / INDEX).read_text())["weight_map"]


def write_index(source, weight_map):
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def attempt(source):
    target = source.parent / "target"
    convert(Request(str(source), target, "plt convert", expected=source / "expected.safetensors"))
    return target


def assert_refused(source, message):
    with pytest.raises(ValueError, match=message):
        attempt(source)
    assert {path.name for path in source.parent.iterdir()} == {"source"}


def test_the_undamaged_source_converts_to_one_file(source):
    assert [file.name for file in attempt(source).glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1, -1000])
def test_truncated_files_are_refused(source, length):
    file = source / "part-1.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert_refused(source, "part-1.safetensors is truncated or corrupt")


def test_a_file_with_more_behind_its_end_is_refused(source):
    file = source / "part-1.safetensors"
    file.write_bytes(file.read_bytes() + b"0" * 8)
    assert_refused(source, "part-1.safetensors is truncated or corrupt")


@pytest.mark.parametrize("dtype, name", [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int64, "I64")])
def test_other_dtypes_than_those_of_weights_are_refused(source, dtype, name):
    file = source / "part-1.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first].to(dtype)}, file, metadata={"format": "pt"})
    assert_refused(source, f"`{first}` in part-1.safetensors has dtype {name}; supported are F64, F32, F16, BF16")


def test_removed_files_are_refused(source):
    (source / "part-2.safetensors").unlink()
    assert_refused(source, "'part-2.safetensors', which is missing")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/part-0.safetensors", "..", "", 3, None]
)
def test_an_index_that_leaves_its_folder_is_refused(source, name):
    (source / "sub").mkdir()
    shutil.copy(source / "part-0.safetensors", source / "sub")
    weight_map = read_index(source)
    write_index(source, weight_map | {next(iter(weight_map)): name})
    assert_refused(source, "must name files in its own folder")


def test_an_index_that_disagrees_with_its_files_is_refused(source):
    weight_map = read_index(source)
    first = next(iter(weight_map))
    write_index(source, weight_map | {first: "part-2.safetensors"})
    assert_refused(source, "must name the same tensors")
    write_index(source, {name: file for name, file in weight_map.items() if name != first})
    assert_refused(source, "must name the same tensors")
    write_index(source, weight_map | {"model.extra": "part-0.safetensors"})
    assert_refused(source, "must name the same tensors")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": []}', "{}"])
def test_a_broken_index_is_refused(source, text):
    (source / INDEX).write_text(text)
    assert_refused(source, INDEX)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_config_is_refused(source, text):
    (source / "config.json").write_text(text)
    assert_refused(source, "config.json|`model_type`")


def test_flipped_bytes_in_a_header_never_give_a_wrong_model(source):
    """A flip either is refused, or hits what means nothing, and then the logits are the publisher's."""
    file = source / "part-0.safetensors"
    intact = file.read_bytes()
    header_size = 8 + int.from_bytes(intact[:8], "little")
    random.seed(0)
    refusals = 0
    for _ in range(40):
        damaged = bytearray(intact)
        damaged[random.randrange(header_size)] ^= 1 << random.randrange(8)
        file.write_bytes(damaged)
        try:
            shutil.rmtree(attempt(source))
        except ValueError:
            refusals += 1
        assert {path.name for path in source.parent.iterdir()} == {"source"}
    assert refusals > 30


def test_a_base_model_without_its_head_is_refused_by_its_names(source):
    for file in source.glob("part-*.safetensors"):
        tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    write_index(source, {name.removeprefix("model."): file for name, file in read_index(source).items()})
    assert_refused(source, r"those of a whole language model, .* A base model \(`layers.N.`\) has no head")


@pytest.mark.parametrize("run", [attempt, lambda source: inspect(str(source), None)], ids=["convert", "inspect"])
def test_an_adapter_without_its_model_is_refused(tmp_path, run):
    get_peft_model(tiny_model(), LoraConfig()).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="SOURCE must hold a whole model, got an adapter"):
        run(tmp_path / "source")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
