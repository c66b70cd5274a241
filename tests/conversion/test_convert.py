"""Published checkpoints become PLT: exactly, or not at all.

`data/<name>/` holds tiny checkpoints in the publishers' formats, and logits of the publishers' own code.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from converting import (
    DATA,
    PLAIN,
    PUBLISHED,
    copy_source,
    digests,
    logits_in_clean_process,
    plain_model,
    plt,
    plt_convert,
    refused,
)
from huggingface_hub import metadata_load
from reference import ReferencePLT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import conversion_plt.convert
import conversion_plt.reading.hub
import conversion_plt.target.write_weights
import modeling_plt
from conversion_plt.reading import checkpoint
from conversion_plt.reading.checkpoint import open_checkpoint
from conversion_plt.sources import all_sources
from modeling_plt import PLTForCausalLM
from modeling_plt.attention_plt import PLTAttention
from modeling_plt.modeling_plt import PLTModel


@pytest.mark.slow
def test_published_logits_are_reproduced_without_the_package(tmp_path, capsys):
    expected = {name: load_file(DATA / name / "expected.safetensors") for name in PUBLISHED}
    for name in PUBLISHED:
        plt_convert(DATA / name, tmp_path / name, "--expected", DATA / name / "expected.safetensors")
        assert "agree with expected.safetensors" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == set(PUBLISHED)
    logits = logits_in_clean_process(tmp_path, {name: expected[name]["input_ids"] for name in PUBLISHED})
    for name in PUBLISHED:
        torch.testing.assert_close(logits[name], expected[name]["logits"], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["loopcoder_v2", "loopcoder_v2_query_gate"])
def test_published_plt_weights_are_copied_unchanged(tmp_path, name):
    plt_convert(DATA / name, tmp_path / "target")
    assert digests(tmp_path / "target") == digests(DATA / name)


def test_a_norm_once_loop_equals_the_naive_reference(tmp_path):
    source = copy_source("nanbeige", tmp_path / "source", skip_loop_final_norm=True, loop_loss_weights=[0.5, 0.5])
    plt_convert(source, tmp_path / "target")
    model = PLTForCausalLM.from_pretrained(tmp_path / "target").eval()
    assert (model.config.num_loops, model.config.loop_norm) == (3, False)
    input_ids = load_file(source / "expected.safetensors")["input_ids"][:1]
    reference = ReferencePLT(model.config, load_file(source / "model.safetensors"))
    expected = torch.from_numpy(reference.logits(input_ids[0].tolist())).float()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids).logits[0], expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_plain_models_keep_their_logits_without_the_package(tmp_path, capsys):
    input_ids, expected = torch.randint(97, (2, 30), generator=torch.Generator().manual_seed(1)), {}
    for name in PLAIN:
        model = plain_model(name)
        model.save_pretrained(tmp_path / "source")
        plt_convert(tmp_path / "source", tmp_path / name)
        assert f"agree with transformers' {type(model).__name__}" in capsys.readouterr().out
        shutil.rmtree(tmp_path / "source")
        with torch.no_grad():
            expected[name] = model(input_ids).logits
    logits = logits_in_clean_process(tmp_path, dict.fromkeys(PLAIN, input_ids))
    for name in PLAIN:
        torch.testing.assert_close(logits[name], expected[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "olmoe", "mixtral", "olmo2", "flex_olmo"]
)
def test_plain_models_become_vanilla_loops_of_their_stack(tmp_path, name):
    model = plain_model(name)
    model.save_pretrained(tmp_path / "source")
    plt_convert(tmp_path / "source", tmp_path / "target", "--loops", 3)
    input_ids = torch.randint(97, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = model.model(input_ids).last_hidden_state
        for _ in range(2):
            states = model.model(inputs_embeds=states).last_hidden_state
        actual = PLTForCausalLM.from_pretrained(tmp_path / "target").eval()(input_ids).logits
    torch.testing.assert_close(actual, model.lm_head(states), rtol=0, atol=1e-4)


def window_one_short(monkeypatch):
    change_field(monkeypatch, sliding_window=4)  # 4 keys to the left, and not the token itself


def no_shift(monkeypatch):
    change_field(monkeypatch, loop_shift=False)


def change_field(monkeypatch, **fields):
    source = all_sources()["iquestpltcoder"]
    wrong = replace(source, read_fields=lambda given: source.read_fields(given) | fields)
    monkeypatch.setattr(conversion_plt.convert, "find_source", lambda config: wrong)


def gate_on_normed_input(monkeypatch):
    forward = PLTAttention.forward
    monkeypatch.setattr(
        PLTAttention, "forward", lambda self, normed, _, *rest, **kw: forward(self, normed, normed, *rest, **kw)
    )


def final_norm_twice(monkeypatch):
    run_passes = PLTModel.run_passes

    def norm_again(self, *args, **kwargs):
        states = run_passes(self, *args, **kwargs)
        return [*states[:-1], self.norm(states[-1])]

    monkeypatch.setattr(PLTModel, "run_passes", norm_again)


@pytest.mark.parametrize("mistake", [window_one_short, no_shift, gate_on_normed_input, final_norm_twice])
def test_known_mistakes_do_not_pass_the_check(tmp_path, capsys, monkeypatch, mistake):
    mistake(monkeypatch)
    source = DATA / "loopcoder_v2"
    message = refused(capsys, source, tmp_path / "target", "--expected", source / "expected.safetensors")
    assert "Logits differ from those of expected.safetensors" in message
    assert not list(tmp_path.iterdir())


def test_a_window_that_a_source_overlooks_does_not_pass_the_check(tmp_path, capsys, monkeypatch):
    source = all_sources()["mistral"]

    def overlook(fields):
        fields.left.pop("sliding_window")
        return source.read_fields(fields)

    wrong = replace(source, read_fields=overlook)
    monkeypatch.setattr(conversion_plt.convert, "find_source", lambda config: wrong)
    model = plain_model("mistral")
    model.config.sliding_window = 64
    model.save_pretrained(tmp_path / "source")
    assert "Logits differ from those of transformers' MistralForCausalLM" in refused(
        capsys, tmp_path / "source", tmp_path / "target"
    )


def test_bfloat16_stays_bfloat16_to_the_bit_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion_plt.target.write_weights, "LARGEST", 20_000)
    model = plain_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    plt_convert(tmp_path / "source", tmp_path / "target", "--loops", 2)
    assert len(list((tmp_path / "target").glob("model-*-of-0*.safetensors"))) > 2
    written = open_checkpoint(tmp_path / "target")
    assert {tensor.dtype for tensor in written.tensors.values()} == {"BF16"}
    for name, parameter in model.state_dict().items():
        assert torch.equal(written.tensors[name].load(), parameter)
    loaded = PLTForCausalLM.from_pretrained(tmp_path / "target")
    assert loaded.dtype == torch.bfloat16


def test_what_belongs_to_a_model_travels_with_it(tmp_path):
    source = copy_source("ouro", tmp_path / "source")
    generation = json.dumps({"eos_token_id": [2, 75, 76], "temperature": 0.7, "do_sample": True})
    files = {"generation_config.json": generation, "LICENSE": "the license", "NOTICE.txt": "a notice"}
    for name, text in files.items():
        (source / name).write_text(text)
    (source / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Ouro\n")
    (source / "modeling_ouro.py").write_text("raise RuntimeError('code of the source ran')\n")
    plt_convert(source, tmp_path / "target")
    target = tmp_path / "target"
    assert {name: (target / name).read_text() for name in files} == files
    assert PLTForCausalLM.from_pretrained(target).generation_config.eos_token_id == [2, 75, 76]
    card = (target / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        "plt convert",
        "`ouro`",
        "early-exit gate",
        "36 equal to the source's",
        "4 loops",
    ):
        assert part in card, part
    code = Path(modeling_plt.__file__).parent.glob("*_plt.py")
    assert {path.name for path in target.glob("*.py")} == {path.name for path in code}


@pytest.mark.parametrize(
    "front_matter, named",
    [
        ("license: apache-2.0\ntags: [x]", {"license": "apache-2.0"}),
        ('license: other\nlicense_name: "a: b"', {"license": "other", "license_name": "a: b"}),
        ("license_link: >-\n  https://a.b/\n  c", {"license_link": "https://a.b/ c"}),
        ("tags: [x]", {}),
        ("", {}),
    ],
)
def test_a_card_names_the_license_of_the_source(tmp_path, front_matter, named):
    source = copy_source("ouro", tmp_path / "source")
    (source / "README.md").write_text(f"---\n{front_matter}\n---\n# Ouro\n")
    plt_convert(source, tmp_path / "target")
    expected = {"library_name": "transformers", "tags": ["plt", "looped-transformer", "parallel-loop-transformer"]}
    assert metadata_load(tmp_path / "target" / "README.md") == expected | named


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\n", b"---\n- mit\n---\n", b"---\nlicense: \xff\n---\n"])
def test_a_card_that_cannot_be_read_is_told_about(tmp_path, card):
    source = copy_source("ouro", tmp_path / "source")
    (source / "README.md").write_bytes(card)
    plt_convert(source, tmp_path / "target")
    written = tmp_path / "target" / "README.md"
    assert "The license is not named here, as the source's README.md cannot be read: " in written.read_text()
    assert "license" not in metadata_load(written)


@torch.no_grad()
def test_a_tied_head_that_is_stored_is_dropped_if_equal_and_else_kept_as_transformers_does(tmp_path):
    plain_model("qwen3").save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    plt_convert(tmp_path / "source", tmp_path / "target")
    assert "lm_head.weight" not in load_file(tmp_path / "target" / "model.safetensors")
    save_file(tensors | {"lm_head.weight": head + 1}, file, metadata={"format": "pt"})
    plt_convert(tmp_path / "source", tmp_path / "other")
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("source", "other")]
    logits = [model(torch.arange(3, 20).unsqueeze(0)).logits for model in models]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert not models[1].config.tie_word_embeddings and torch.equal(models[1].lm_head.weight, head + 1)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("target", "other")]
    assert ["it is kept untied" in card for card in cards] == [False, True]


def test_pickle_weights_are_read_only_on_request(tmp_path, capsys):
    source = copy_source("nanbeige", tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert "`--allow-pickle`" in refused(capsys, source, tmp_path / "target")
    plt_convert(source, tmp_path / "target", "--allow-pickle", "--expected", source / "expected.safetensors")
    torch.save({"weights": print}, source / "pytorch_model.bin")
    assert "more than tensors" in refused(capsys, source, tmp_path / "other", "--allow-pickle")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("ouro", {"model_type": "huginn_raven"}, "must be named `transformer.core_block.N.`"),
        ("ouro", {"use_sliding_window": True}, "`use_sliding_window`"),
        ("ouro", {"layer_types": ["sliding_attention"] * 3}, "`layer_types`"),
        ("nanbeige", {"loop_kv_share": True}, "`loop_kv_share` = True"),
        ("nanbeige", {"kv_channels": 16}, "`kv_channels`"),
        ("loopcoder_v2", {"plt_window_size": [4, 1]}, "`plt_window_size`"),
        ("loopcoder_v2", {"plt_use_router": "yes"}, "`plt_use_router` = 'yes'"),
        ("loopcoder_v2", {"rope_scaling": {"type": "mrope"}}, "rope type"),
        ("iquest_loop", {"loop_window_size": 0}, "sliding_window"),
        ("iquest_loop", {"quantization_config": {"bits": 4}}, "`quantization_config`"),
        ("iquest_loop", {"num_hidden_layers": 4}, "once renamed, got 4"),
        ("iquest_loop", {"num_hidden_layers": 2}, "once renamed, got 2"),
        ("iquest_loop", {"intermediate_size": 50}, "must have the shape (50, 32) by the config, got (48, 32)"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, capsys, name, fields, message):
    source = copy_source(name, tmp_path / "source", **fields)
    assert message in refused(capsys, source, tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_missing_field_is_named_and_an_ignored_one_left_out(tmp_path, capsys):
    source = copy_source("ouro", tmp_path / "source", trained_with="love")
    assert "`trained_with` = 'love'" in refused(capsys, source, tmp_path / "target")
    plt_convert(source, tmp_path / "target", "--ignore", "trained_with")
    config = json.loads((source / "config.json").read_text())
    del config["total_ut_steps"]
    (source / "config.json").write_text(json.dumps(config))
    assert "must have the field `total_ut_steps`" in refused(capsys, source, tmp_path / "other")


def test_mistral_with_its_window_on_is_refused(tmp_path, capsys):
    model = plain_model("mistral")
    model.config.sliding_window = 16
    model.save_pretrained(tmp_path / "source")
    assert "`sliding_window`" in refused(capsys, tmp_path / "source", tmp_path / "target")


def test_values_that_are_not_finite_are_refused_unless_kept(tmp_path, capsys):
    source = copy_source("nanbeige", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert "`model.layers.1.mlp.up_proj.weight` 1 times" in refused(capsys, source, tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_too_little_space_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(conversion_plt.convert, "write_folder", None)
    assert "must have 134.9 kB free for the weights, got 1.0 kB" in refused(capsys, DATA / "ouro", tmp_path / "target")
    assert not list(tmp_path.iterdir())


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(tmp_path, capsys):
    assert "must be a folder or a hub id" in refused(capsys, tmp_path / "nowhere", tmp_path / "target")
    assert "`--revision` is for hub ids" in refused(capsys, DATA / "ouro", tmp_path / "target", "--revision", "main")
    (tmp_path / "empty").mkdir()
    assert "`config.json` is missing" in refused(capsys, tmp_path / "empty", tmp_path / "target")


def test_of_a_hub_id_only_data_is_downloaded(tmp_path, capsys, monkeypatch):
    wanted = {}

    def download(repository, revision, allow_patterns, ignore_patterns):
        wanted.update(repository=repository, revision=revision, allowed=allow_patterns, ignored=ignore_patterns)
        return str(DATA / "ouro")

    monkeypatch.setattr(conversion_plt.reading.hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    plt_convert("ByteDance/Ouro-1.4B", tmp_path / "target", "--revision", "main")
    assert (wanted["repository"], wanted["revision"], wanted["ignored"]) == ("ByteDance/Ouro-1.4B", "main", ["*.py"])
    assert "*.safetensors" in wanted["allowed"] and not {"*", "*.bin", "*.py"} & set(wanted["allowed"])
    assert "base_model: ByteDance/Ouro-1.4B" in (tmp_path / "target" / "README.md").read_text()
    plt("inspect", "ByteDance/Ouro-1.4B")
    assert not [pattern for pattern in wanted["allowed"] if "safetensors" in pattern and "json" not in pattern]
    assert "num_loops = 4" in capsys.readouterr().out


def test_inspecting_says_what_a_source_would_become(tmp_path, capsys):
    plt("inspect", DATA / "ouro")
    output = capsys.readouterr().out
    for part in (
        "Ouro (`ouro`)",
        "36 kept, 0 computed, 2 dropped",
        "num_loops = 4",
        "norm_placement = 'sandwich'",
        "early-exit gate",
    ):
        assert part in output, part
    source = copy_source("nanbeige", tmp_path / "source", loop_kv_share=True)
    with pytest.raises(SystemExit, match="plt: .*`loop_kv_share`"):
        plt("inspect", source)


def test_help_and_documents_name_every_source(capsys):
    with pytest.raises(SystemExit):
        plt_convert("--help")
    output, page = capsys.readouterr().out, (DATA.parent.parent / "docs/convert.md").read_text()
    for source in all_sources().values():
        assert source.model_type in output and source.title in output
        assert f"`{source.model_type}`" in page and source.becomes in page


def test_a_file_of_many_tensors_is_opened_a_few_times(tmp_path, monkeypatch):
    """Opening takes time for every tensor in the file, so opening for each takes the square of their number."""
    plain_model("qwen3_moe").save_pretrained(tmp_path / "source")
    opened = []

    def noted(file, **kwargs):
        opened.append(file)
        return safe_open(file, **kwargs)

    monkeypatch.setattr(checkpoint, "safe_open", noted)
    plt_convert(tmp_path / "source", tmp_path / "target")
    assert 0 < len(opened) <= 6
