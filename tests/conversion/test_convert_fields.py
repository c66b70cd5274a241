"""What a source's config says is checked where it is read: one sentence says what was expected, and what came."""

import itertools
import json

import pytest
import torch
import transformers
from converting import DATA, PLAIN, assert_refused, copy_source, plain_model, plt_convert
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from configuration_plt import PLTConfig
from conversion_plt.reading.kinds_of_values import KINDS, is_kind
from conversion_plt.sources import all_sources
from modeling_plt import PLTForCausalLM

HUGE = 10**30


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder per plain source, of transformers' own classes."""
    folders = {}
    for name in PLAIN:
        folders[name] = tmp_path_factory.mktemp(name)
        plain_model(name).save_pretrained(folders[name])
    return folders


@pytest.fixture
def changed(tmp_path, plain):
    """A copy of a source with other fields in its config."""

    def change(name, **fields):
        if name in PLAIN:
            (tmp_path / "source").mkdir()
            for file in plain[name].iterdir():
                (tmp_path / "source" / file.name).write_bytes(file.read_bytes())
            change_config(tmp_path / "source", **fields)
            return tmp_path / "source"
        return copy_source(name, tmp_path / "source", **fields)

    return change


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("nanbeige", {"skip_loop_final_norm": "false"}, "`skip_loop_final_norm` of the source must be true or false"),
        ("nanbeige", {"skip_loop_final_norm": 0}, "must be true or false, got 0"),
        ("nanbeige", {"loop_loss_weights": 3}, "`loop_loss_weights` of the source must be a list of numbers, got 3"),
        ("nanbeige", {"num_loops": True}, "`num_loops` of the source must be an integer of 64 bits, got True"),
        ("nanbeige", {"num_loops": 2.0}, "must be an integer of 64 bits, got 2.0"),
        ("nanbeige", {"vocab_size": None}, "`vocab_size` of the source must be an integer of 64 bits, got None"),
        ("nanbeige", {"tie_word_embeddings": "yes"}, "must be true or false, got 'yes'"),
        ("nanbeige", {"rms_norm_eps": "1e-5"}, "`rms_norm_eps` of the source must be a finite number"),
        ("nanbeige", {"rms_norm_eps": float("nan")}, "must be a finite number of 64 bits, got nan"),
        ("nanbeige", {"hidden_act": "nope"}, "one of transformers' names, got 'nope'"),
        ("nanbeige", {"hidden_act": ["silu"]}, "`hidden_act` of the source must be text"),
        ("nanbeige", {"layer_types": 5}, "`layer_types` of the source must be a list of texts, got 5"),
        ("nanbeige", {"layer_types": [[]]}, "`layer_types` of the source must be a list of texts"),
        ("nanbeige", {"eos_token_id": [2, "x"]}, "must be an integer or a list of integers"),
        ("nanbeige", {"eos_token_id": True}, "must be an integer or a list of integers, got True"),
        ("loopcoder_v2", {"plt_gate_use_hidden_states": "false"}, "must be true or false, got 'false'"),
        ("loopcoder_v2", {"plt_normalize_per_loop": 1}, "must be true or false, got 1"),
        ("loopcoder_v2", {"plt_window_size": [True, 0]}, "`plt_window_size` of the source must be a list of integers"),
        ("loopcoder_v2", {"plt_window_size": ["a", 0]}, "must be a list of integers"),
        ("loopcoder_v2", {"plt_emb_scale": "0.7"}, "must be a finite number of 64 bits, got '0.7'"),
        ("iquest_loop", {"attention_bias": "no"}, "must be true or false, got 'no'"),
        ("ouro", {"use_sliding_window": 0}, "is not supported unless False, got 0"),
        ("olmoe", {"clip_qkv": 5.0}, "`clip_qkv` of the source is not supported unless None, got 5.0"),
        ("mixtral", {"router_jitter_noise": 0.1}, "`router_jitter_noise` of the source is not supported unless 0.0"),
        ("ouro", {"model_type": []}, "`model_type` must be one of"),
        ("ouro", {"model_type": {"a": 1}}, "`model_type` must be one of"),
    ],
)
def test_a_value_of_another_kind_is_refused(capsys, changed, name, fields, message):
    assert message in assert_refused(capsys, changed(name, **fields))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"plt_gate_use_hidden_states": "false"}, "plt_gate_use_hidden_states"),
        ({"plt_window_size": ["a", 0]}, "plt_window_size"),
        ({"plt_window_size": [4, 1]}, r"`plt_window_size` must be \[keys to the left, 0\], got \[4, 1\]"),
        ({"plt_num_loops": True}, "plt_num_loops"),
        ({"plt_emb_scale": "0.7"}, "plt_emb_scale"),
        ({"plt_use_router": "yes"}, "not supported: `plt_use_router` = 'yes'"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config`"),
        ({"hidden_act": "nope"}, "hidden_act"),
    ],
    ids=str,
)
def test_a_published_plt_that_loads_directly_is_checked_too(tmp_path, fields, message):
    source = copy_source("loopcoder_v2", tmp_path / "source", **fields)
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        transformers.AutoConfig.from_pretrained(source)


@pytest.mark.parametrize(
    "name", ["plt_num_loops", "plt_gate_use_hidden_states", "hidden_size", "rms_norm_eps", "rope_theta"]
)
def test_a_published_plt_that_lacks_a_field_does_not_load(tmp_path, name):
    source = copy_source("loopcoder_v2", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config[name]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"must have {name}"):
        transformers.AutoConfig.from_pretrained(source)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"plt_emb_scale": None, "plt_hidden_scale": None, "plt_gate_use_hidden_states": False},
        {"plt_num_loops": 3, "plt_window_size": [0, 0], "plt_normalize_per_loop": False},
        {"bos_token_id": None, "eos_token_id": [2, 75], "pad_token_id": 0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    ids=str,
)
def test_a_published_config_is_read_alike_with_and_without_conversion(tmp_path, fields):
    source = copy_source("loopcoder_v2", tmp_path / "source", **fields)
    given = json.loads((source / "config.json").read_text())
    direct = transformers.AutoConfig.from_pretrained(source)
    converted = PLTConfig(**all_sources()["iquestpltcoder"].config_fields(given, set()))
    about_the_file = ("_name_or_path", "architectures", "dtype", "transformers_version")
    fields = [name for name in {**direct.to_dict(), **converted.to_dict()} if name not in about_the_file]
    assert {name: direct.to_dict().get(name) for name in fields} == {
        name: converted.to_dict().get(name) for name in fields
    }


def test_scales_that_a_published_config_lacks_are_one_with_and_without_conversion(tmp_path):
    source = copy_source("loopcoder_v2", tmp_path / "source")
    given = json.loads((source / "config.json").read_text())
    del given["plt_emb_scale"], given["plt_hidden_scale"]
    (source / "config.json").write_text(json.dumps(given))
    direct = transformers.AutoConfig.from_pretrained(source)
    converted = PLTConfig(**all_sources()["iquestpltcoder"].config_fields(given, set()))
    for config in (direct, converted):
        assert (config.embedding_scale, config.hidden_scale) == (1.0, 1.0)


@pytest.mark.parametrize(
    "value, kinds",
    [
        (True, {bool}),
        (3, {int, float, float | int | None, int | list[int]}),
        (0.5, {float, float | int | None}),
        (HUGE, set()),
        (10**400, set()),
        (float("inf"), set()),
        (float("nan"), set()),
        ("3", {str}),
        ({}, {dict}),
        ([], {list[str], list[int], list[float], int | list[int]}),
        ([1], {list[int], list[float], int | list[int]}),
        ([HUGE], set()),
        (1e300, {float, float | int | None}),
        ([True], set()),
        (None, {float | int | None}),
    ],
    ids=lambda part: "" if isinstance(part, set) else repr(part),  # sets have no order
)
def test_kinds_are_told_apart(value, kinds):
    assert {kind for kind in KINDS if is_kind(value, kind)} == kinds


@pytest.mark.parametrize("value", [1.0, 1, None])
def test_ouro_that_reads_the_last_loop_out_converts(tmp_path, value):
    source = copy_source("ouro", tmp_path / "source", early_exit_threshold=value, early_exit_step=value and 3)
    plt_convert(source, tmp_path / "target", "--expected", source / "expected.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"early_exit_threshold": 0.5},
        {"early_exit_threshold": True},
        {"early_exit_threshold": "1.0"},
        {"early_exit_threshold": 0},
        {"early_exit_step": 1},
        {"early_exit_step": 0},
        {"early_exit_step": 4},
        {"early_exit_step": -1},
    ],
    ids=str,
)
def test_ouro_that_reads_another_loop_out_is_refused(capsys, changed, fields):
    ((name, value),) = fields.items()
    message = assert_refused(capsys, changed("ouro", **fields))
    assert f"`{name}` of the source is not supported unless" in message and message.endswith(f"got {value!r}.")


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": "61"},
        {"head_dim": 1e308},
        {"pad_token_id": ""},
        {"initializer_range": HUGE},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"rope_parameters": [1]},
        {"rope_parameters": None, "rope_scaling": "yarn"},
        {"self": 1},
        {"cls": 1},
        {"to_dict": 1},
        {"layer_types": 5},
        {"hidden_act": "nope"},
        {"hidden_act": None},
        {"hidden_size": HUGE},
        {"head_dim": 2**64},
        {"num_hidden_layers": HUGE},
        {"num_hidden_layers": 10**9},
        {"max_position_embeddings": HUGE},
        {"per_layer_config": {"0": {"hidden_size": 16}}},
        {"per_layer_config": 3},
        {"is_encoder_decoder": True},
        {"chunk_size_feed_forward": 8},
        {"attention_dropout": {"a": []}},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_transformers_does_not_accept_is_one_sentence(capsys, changed, name, fields):
    assert_refused(capsys, changed(name, **fields))


ROPE = [
    [1],
    "yarn",
    {"rope_type": "nope"},
    {"rope_type": ["default"]},
    {"full_attention": {"rope_theta": 1e4}},
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": "2"},
    {"rope_type": "linear", "factor": None},
    {"rope_type": "linear", "factor": 0},
    {"rope_type": "linear", "factor": True},
    {"rope_type": "linear", "factor": float("nan")},
    {"rope_type": "dynamic", "factor": -2.0},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": "x"},
    {"rope_type": "yarn", "factor": 2.0, "partial_rotary_factor": 0.5},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0},
    {"rope_type": "yarn", "factor": 2.0, "truncate": "no"},
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
    {"rope_type": "longrope", "short_factor": 1.0, "long_factor": 1.0},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": ["a"] * 4},
    {"rope_type": "default", "mystery": 1},
    {"rope_type": "default", "rope_theta": "big"},
    {"rope_type": "default", "rope_theta": 1.0, "factor": {}},
]


WAYS = itertools.product(["iquest_loop", "llama"], ["rope_parameters", "rope_scaling"])


# each setting in one of the four ways in which it comes
@pytest.mark.parametrize(
    "settings, way", list(zip(ROPE, itertools.cycle(WAYS), strict=False)), ids=lambda part: str(part)[:60]
)
def test_rope_settings_that_give_no_rotation_are_one_sentence(capsys, changed, settings, way):
    name, form = way
    assert "rope" in assert_refused(capsys, changed(name, **{"rope_parameters": None, form: settings}))


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2, "original_max_position_embeddings": 256},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "mscale": 0.7, "mscale_all_dim": 0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0},
    ],
    ids=str,
)
def test_rope_settings_that_transformers_knows_convert(tmp_path, changed, settings):
    plt_convert(changed("llama", rope_parameters=None, rope_theta=5000.0, rope_scaling=settings), tmp_path / "target")
    config = PLTForCausalLM.from_pretrained(tmp_path / "target").config
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert config.rope_parameters["rope_type"] == settings.get("rope_type", settings.get("type"))


def test_the_base_beside_todays_rope_settings_counts(tmp_path):
    source = copy_source("ouro", tmp_path / "source", rope_parameters={"rope_type": "default"}, rope_theta=5000.0)
    plt_convert(source, tmp_path / "target")
    assert PLTForCausalLM.from_pretrained(tmp_path / "target").config.rope_parameters["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_hidden_layers": 10**4}, "`num_hidden_layers` must be 3"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` must be at most 10000, got 1000000000"),
        ({"vocab_size": 10**12}, "`model.embed_tokens.weight` must have the shape (1000000000000, 32)"),
        ({"hidden_size": 2**40}, "must have the shape"),
        ({"intermediate_size": 2**62}, "must have the shape"),
        ({"num_attention_heads": 10**12, "num_key_value_heads": 10**12}, "must have the shape"),
        ({"head_dim": 2**40}, "must have the shape"),
        ({"total_ut_steps": 10**9}, "`num_loops` must be at most 1000, got 1000000000"),
        ({"total_ut_steps": 1001}, "`num_loops` must be at most 1000, got 1001"),
    ],
    ids=str,
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_they_are_made(capsys, changed, fields, message):
    assert message in assert_refused(capsys, changed("ouro", **fields))


def test_a_layer_that_is_missing_in_the_middle_is_refused(capsys, changed):
    source = changed("ouro", num_hidden_layers=2)
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    assert "missing `model.layers.1." in assert_refused(capsys, source)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--loops", 10**9], "`num_loops` must be at most 1000"),
        (["--loops", 0], "num_loops"),
        (["--to-plt", "--loops", 10**9], "`num_loops` must be at most 1000"),
        (["--to-plt", "--loops", HUGE], "`num_loops` must be at most 1000"),
        (["--to-plt", "--window", 99999999999], "`--window` must be at most the source's 256 positions"),
        (["--to-plt", "--window", 257], "got 257"),
        (["--to-plt", "--window", -3], "sliding_window"),
        (["--to-plt", "--hidden-scale", 1e40], "`--hidden-scale` must be a number of torch.float32, got 1e+40"),
        (["--to-plt", "--embedding-scale", "nan"], "`--embedding-scale` must be a number of torch.float32, got nan"),
        (["--to-plt", "--no-learned-scales", "--embedding-scale", "inf"], "got inf"),
        (["--to-plt", "--gate-start", "nan"], "`--gate-start` must be between 0 and 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_meant_are_refused(capsys, changed, options, message):
    assert message in assert_refused(capsys, changed("llama"), *options)


WRITTEN_BY_TRANSFORMERS = {
    "_attn_implementation": "sdpa",
    "_attn_implementation_autoset": True,
    "_commit_hash": "0123abcd",
    "_experts_implementation": "eager",
    "_flash_attn_2_enabled": True,
    "_model_name_or_path": "somebody/something",
    "_name_or_path": "somebody/something",
    "attn_implementation": "flash_attention_2",
    "bad_words_ids": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "finetuning_task": "text",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "pruned_heads": {},
    "repetition_penalty": 1,
    "return_dict": True,
    "temperature": 1.0,
    "tokenizer_class": "LlamaTokenizer",
    "top_k": 50,
    "top_p": 1.0,
    "transformers_weights": "model.safetensors",
    "typical_p": 1.0,
}


@pytest.mark.parametrize("name", ["ouro", "llama", "qwen2"])
def test_what_transformers_writes_into_every_config_is_accepted(tmp_path, changed, name):
    plt_convert(changed(name, **WRITTEN_BY_TRANSFORMERS), tmp_path / "target")
    assert not set(json.loads((tmp_path / "target" / "config.json").read_text())) & {"top_k", "_commit_hash"}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7},
        {"top_k": True},
        {"max_length": 4096},
        {"transformers_weights": "other.safetensors"},
        {"is_encoder_decoder": True},
        {"add_cross_attention": True},
        {"quantization_config": {"bits": 4}},
        {"mtp_layers": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["ouro", "llama"])
def test_what_differs_from_transformers_defaults_is_named(capsys, changed, name, fields):
    ((field, value),) = fields.items()
    assert f"`{field}` = {value!r}" in assert_refused(capsys, changed(name, **fields))


def test_what_a_config_of_a_plt_says_is_checked(tmp_path, capsys):
    plt_convert(DATA / "nanbeige", tmp_path / "source")
    for fields in (
        {"num_loops": "2"},
        {"num_loops": HUGE},
        {"hidden_act": "nope"},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "llama3"}},
        {"eos_token_id": [HUGE]},
        {"loop_attention": []},
        {"layer_types": ["full_attention"]},
        {"is_encoder_decoder": True},
        {"hidden_scale": 10**400},
    ):
        config = (tmp_path / "source" / "config.json").read_text()
        change_config(tmp_path / "source", **fields)
        assert_refused(capsys, tmp_path / "source")
        (tmp_path / "source" / "config.json").write_text(config)
    plt_convert(tmp_path / "source", tmp_path / "target")


def test_long_names_and_values_are_cut_in_a_message(capsys, changed):
    message = assert_refused(capsys, changed("ouro", **{"x" * 20_000: "y\n" * 20_000, "z": ["w" * 20_000] * 1000}))
    assert "`xxx" in message and "..." in message


@pytest.mark.parametrize("name", sorted(all_sources()))
def test_a_config_of_nothing_but_a_name_is_refused(tmp_path, capsys, name):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps({"model_type": name}))
    save_file({"model.norm.weight": torch.ones(3)}, tmp_path / "source" / "model.safetensors")
    assert_refused(capsys, tmp_path / "source")
