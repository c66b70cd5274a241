"""Huginn and the Retrofits: three families under one name, told by their tensors, as configs say little that holds."""

import json

import pytest
import torch
from converting import DATA, assert_refused, copy_source, plain_model, plt, plt_convert, refused
from ravens import RAVENS, published_config, published_tensors, raven, write, write_expected
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import ConversionOps, WeightConverter

import conversion_plt.inspection
from conversion_plt.checks import verify
from conversion_plt.plan import raven_families
from conversion_plt.plan.plan import make_config
from conversion_plt.reading.checkpoint import open_checkpoint
from conversion_plt.sources import huginn_raven
from modeling_plt import PLTForCausalLM

FIRST_STATES = {"random": "zeros", "embed-init": "prelude", "skip-adapter": "none"}


def convert(source, target, *options):
    plt_convert(source, target, "--expected", source / "expected.safetensors", *options)


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("mode", FIRST_STATES)
@pytest.mark.parametrize("kind", RAVENS)
def test_every_tensor_is_in_its_place_and_the_logits_are_the_references(tmp_path, kind, mode):
    model = raven(kind, initial_state=FIRST_STATES[mode])
    source = write(tmp_path / "source", model, kind, initial_state_mode=mode)
    convert(source, tmp_path / "target")
    converted, report = PLTForCausalLM.from_pretrained(tmp_path / "target", output_loading_info=True)
    assert not any(report.values())
    assert converted.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    expected = load_file(source / "expected.safetensors")
    with torch.no_grad():
        logits = converted.double()(expected["input_ids"]).logits
    # rotary tables and norms are float32, and Huginn's norms of sums amplify what that loses
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-3 if kind == "huginn" else 1e-4)


@pytest.mark.parametrize("loops", [1, 2, 5])
@pytest.mark.parametrize("kind", ["huginn", "olmo"])
def test_the_number_of_loops_is_free(tmp_path, kind, loops):
    model = raven(kind)
    source = write(tmp_path / "source", model, kind)
    expected = load_file(source / "expected.safetensors")
    model.config.num_loops = loops
    write_expected(source / "expected.safetensors", model, expected["input_ids"])
    convert(source, tmp_path / "target", "--loops", loops)
    assert PLTForCausalLM.from_pretrained(tmp_path / "target").config.num_loops == loops


def test_huginn_may_have_fewer_heads_for_keys(tmp_path):
    """No published one has, but the rotary pairs of keys are those of their own heads."""
    model = raven("huginn", num_key_value_heads=2, attention_bias=False)
    source = write(tmp_path / "source", model, "huginn", qk_bias=False)
    convert(source, tmp_path / "target")


# what configs say where nothing is left out; sizes are tiny
REAL = {
    "huginn": ("huginn", {}),
    "llama-3.2": (
        "llama",
        {
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
    ),
    "tinyllama": ("llama", {"max_position_embeddings": 2048, "rope_scaling": None}),
    "olmo": ("olmo", {"max_position_embeddings": 4096, "initial_state_mode": "random"}),
    "saved by transformers 5": (
        "llama",
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "without rope_theta": ("olmo", {"rope_theta": None, "rope_base": 1000.0}),
}
WANTED = {
    "huginn": {
        "embedding_multiplier": 5.66,
        "coda_norm": True,
        "norm_placement": "residual",
        "qk_norm": "none",
        "attention_bias": True,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000},
    },
    "llama-3.2": {
        "embedding_multiplier": 1.0,
        "coda_norm": False,
        "norm_placement": "pre",
        "attention_bias": False,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rope_parameters": REAL["llama-3.2"][1]["rope_scaling"] | {"rope_theta": 500000.0},
    },
    "tinyllama": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "max_position_embeddings": 2048},
    "olmo": {
        "norm_placement": "output",
        "qk_norm": "whole",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    },
    "saved by transformers 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "without rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
}
ALL_WANT = {
    "num_hidden_layers": 7,
    "num_prelude_layers": 2,
    "num_coda_layers": 1,
    "num_loops": 3,
    "loop_input": "adapter",
    "initial_state": "zeros",
    "loop_norm": False,
    "loop_shift": False,
    "loop_attention": "own",
    "bos_token_id": 93,
    "eos_token_id": 94,
    "pad_token_id": 95,
    "rms_norm_eps": 1e-5,
}


def told(model, kind):
    return huginn_raven.by_tensors({name: tuple(t.shape) for name, t in published_tensors(model, kind).items()})


@pytest.mark.parametrize("name", REAL)
def test_real_configs_are_read_field_by_field(name):
    kind, fields = REAL[name]
    model = raven(kind)
    config = published_config(model, kind, **fields)
    found = make_config(told(model, kind).config_fields(config, set()))
    for field, value in (ALL_WANT | WANTED[name]).items():
        assert getattr(found, field) == value, field


def test_configs_that_say_little_are_read_by_the_tensors():
    for name, kind, multiplier in (("huginn", "huginn", 32**0.5), ("retrofit_llama", "llama", 1.0)):
        checkpoint = open_checkpoint(DATA / name)
        source = huginn_raven.by_tensors({key: tensor.shape for key, tensor in checkpoint.tensors.items()})
        found = source.config_fields(checkpoint.config, set())
        assert found["embedding_multiplier"] == pytest.approx(multiplier)
        assert found["num_key_value_heads"] == (4 if kind == "huginn" else 2)


def test_embeddings_have_rows_for_the_padded_vocabulary(tmp_path):
    source = write(tmp_path / "source", raven("llama"), "llama", vocab_size=90)
    convert(source, tmp_path / "target")


@pytest.mark.parametrize("n_layers", [1, 7, 16, 10**9])
def test_the_number_of_layers_that_a_config_gives_does_not_count(tmp_path, n_layers):
    source = write(tmp_path / "source", raven("llama"), "llama", n_layers=n_layers)
    convert(source, tmp_path / "target")


def test_other_spellings_of_transformers_count(tmp_path):
    source = write(tmp_path / "source", raven("llama"), "llama")
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": config.pop("n_embd"), "num_attention_heads": config["n_heads"], "num_hidden_layers": 16}
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "target")


class SwapHalves(ConversionOps):
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        ((weight,),) = input_dict.values()
        return {target_patterns[0]: torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)}


class PermuteLikeQueries(raven_families.PairsToHalves):
    """As transformers' own operation, that divides the keys' rows by the number of heads of the queries."""

    def convert(self, input_dict, source_patterns, target_patterns, config, **kwargs):
        heads = (config.num_attention_heads, -1, 2)
        return {
            name: rows if "v_proj" in name else rows.unflatten(0, heads).transpose(1, 2).flatten(0, 2)
            for name, rows in input_dict.items()
        }


def bend_fields(monkeypatch, kind, **fields):
    read = huginn_raven.read_fields
    monkeypatch.setattr(huginn_raven, "read_fields", lambda *args, **kwargs: read(*args, **kwargs) | fields)


def bend_converters(monkeypatch, kind, *wrong):
    right = huginn_raven.converters
    monkeypatch.setattr(huginn_raven, "converters", lambda kind: (*wrong, *right(kind)))


def unturned(monkeypatch, kind):
    weights = WeightConverter(
        "attn.Wqkv.weight", [f"{name}.weight" for name in raven_families.QKV], [raven_families.SplitHeads()]
    )
    bend_converters(monkeypatch, kind, weights)


def keys_turned_as_queries(monkeypatch, kind):
    monkeypatch.setattr(raven_families, "PairsToHalves", PermuteLikeQueries)


def rope_base_read(monkeypatch, kind):
    parameters = {"rope_type": "default", "rope_theta": 500000.0 if kind != "huginn" else 10000.0}
    bend_fields(monkeypatch, kind, rope_parameters=parameters)


BENDS = {
    "rope_base read": (rope_base_read, ("llama", "olmo")),
    "embed_scale ignored": (lambda *given: bend_fields(*given, embedding_multiplier=1.0), ("huginn",)),
    "no norm before the coda": (lambda *given: bend_fields(*given, coda_norm=False), ("huginn",)),
    "norm before the coda": (lambda *given: bend_fields(*given, coda_norm=True), ("llama", "olmo")),
    "norm between loops": (lambda *given: bend_fields(*given, loop_norm=True), RAVENS),
    "first state": (lambda *given: bend_fields(*given, initial_state="prelude"), RAVENS),
    "halves of the adapter": (
        lambda *given: bend_converters(
            *given, WeightConverter("model.adapter.weight", "model.adapter.weight", [SwapHalves()])
        ),
        RAVENS,
    ),
    "rotary pairs": (unturned, ("huginn",)),
    "rotary pairs of keys": (keys_turned_as_queries, ("huginn",)),
}


@pytest.mark.parametrize("bend, kind", [(name, kind) for name, (_, families) in BENDS.items() for kind in families])
def test_known_mistakes_do_not_pass_the_check(tmp_path, capsys, monkeypatch, bend, kind):
    fields = {"num_key_value_heads": 2, "attention_bias": False} if kind == "huginn" else {}
    source = write(tmp_path / "source", raven(kind, **fields), kind, qk_bias=False)
    BENDS[bend][0](monkeypatch, kind)
    message = assert_refused(capsys, source, "--expected", source / "expected.safetensors")
    assert "Logits differ from those of expected.safetensors" in message


def test_the_number_of_layers_if_read_does_not_fit(tmp_path, capsys, monkeypatch):
    source = write(tmp_path / "source", raven("llama"), "llama")
    bend_fields(monkeypatch, "llama", num_hidden_layers=16)
    assert "`num_hidden_layers` must be 7" in assert_refused(capsys, source)


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        ("huginn", {"test_time_noise": 0.1}, "`test_time_noise` of the source is not supported unless 0, got 0.1"),
        ("huginn", {"injection_type": "add"}, "`injection_type`"),
        ("huginn", {"bias": True}, "`bias`"),
        ("huginn", {"norm_class_name": "RMSNorm_gemma"}, "`norm_class_name`"),
        ("llama", {"initial_state_mode": "learned"}, "one of random, embed-init, skip-adapter, got 'learned'"),
        ("llama", {"init_values": {"std": 0.1}}, "`embed_scale` in `init_values` of the source must be a finite"),
        ("llama", {"n_layers_in_prelude": 3}, "`n_layers_in_prelude` must be 2, the number of layers"),
        ("llama", {"n_layers_in_recurrent_block": 8}, "must be 4, the number of layers"),
        ("llama", {"num_key_value_heads": 4}, "`model.layers.0.self_attn.q_proj.weight` cannot be computed"),
        ("llama", {"tie_word_embeddings": True}, "`tie_word_embeddings`"),
        ("llama", {"hidden_size": 64}, "`hidden_size`"),
        ("llama", {"final_logit_softcapping": 30.0}, "not supported: `final_logit_softcapping` = 30.0"),
        ("huginn", {"rope_base": 10000}, "`freqs_cis` must be the rotation of the config's `rope_base`"),
        ("huginn", {"rope_theta": 10000.0}, "`rope_theta`"),
        ("huginn", {"rope_base": -1}, "`rope_theta` of the source's rope settings must be above 0"),
        ("huginn", {"mean_recurrence": 10**9}, "`num_loops` must be at most 1000"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, capsys, kind, fields, message):
    source = write(tmp_path / "source", raven(kind), kind, **fields)
    assert message in assert_refused(capsys, source)


def test_a_rotation_of_another_shape_is_refused(tmp_path, capsys):
    source = write(tmp_path / "source", raven("huginn"), "huginn")
    change_tensors(source, lambda tensors: tensors.update(freqs_cis=torch.ones(1, 64, 1, 2, 4)))
    assert "`freqs_cis` must have the shape (1, 64, 1, 4, 2)" in assert_refused(capsys, source)


@pytest.mark.parametrize("kind, found", [("huginn", "four norms"), ("llama", "`freqs_cis`"), ("olmo", "`freqs_cis`")])
def test_half_of_what_tells_huginn_is_another_family(tmp_path, capsys, kind, found):
    """As Recurrent-Gemma-2, under the same `model_type`, whose config need not say how it differs."""
    source = write(tmp_path / "source", raven(kind), kind)
    if kind == "huginn":
        change_tensors(source, lambda tensors: tensors.pop("freqs_cis"))
    else:
        change_tensors(source, lambda tensors: tensors.update(freqs_cis=torch.ones(1, 64, 1, 4, 2)))
    assert f"Retrofits have neither, got {found} alone" in assert_refused(capsys, source)


def test_a_layer_that_is_missing_is_refused(tmp_path, capsys):
    def drop(tensors):
        for name in [name for name in tensors if ".core_block.1." in name]:
            del tensors[name]

    source = write(tmp_path / "source", raven("olmo"), "olmo")
    change_tensors(source, drop)
    assert "`n_layers_in_recurrent_block` must be 3" in assert_refused(capsys, source)


def test_a_tied_head_that_is_stored_must_be_the_embeddings(tmp_path, capsys):
    source = write(tmp_path / "source", raven("huginn"), "huginn")
    convert(source, tmp_path / "target")
    assert "lm_head.weight" not in load_file(tmp_path / "target" / "model.safetensors")
    change_tensors(source, lambda tensors: tensors["lm_head.weight"].add_(1))
    assert "`lm_head.weight` differs from the embeddings" in refused(capsys, source, tmp_path / "other")


def test_inspecting_tells_the_family_by_names_alone(tmp_path, capsys, monkeypatch):
    for kind, title in (("huginn", "Huginn"), ("llama", "Retrofit of Llama"), ("olmo", "Retrofit of OLMo-2")):
        source = write(tmp_path / kind, raven(kind), kind)
        plt("inspect", source)
        local = capsys.readouterr().out
        assert f"{source}: {title} (`huginn_raven`)" in local and "num_prelude_layers = 2" in local
        names = load_file(source / "model.safetensors")
        index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (source / "model.safetensors").unlink()
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        with monkeypatch.context() as hub:
            hub.setattr(conversion_plt.inspection, "find_folder", lambda *args, here=source, **kwargs: here)
            plt("inspect", "somebody/something")
            (source / "model.safetensors.index.json").unlink()
            with pytest.raises(SystemExit, match="told by the names of its tensors"):
                plt("inspect", "somebody/something")
        remote = capsys.readouterr().out
        assert f": {title} (`huginn_raven`)" in remote and "tensors: not checked" in remote
        fields = [
            [line for line in text.splitlines() if line.startswith("  ") and "dtype" not in line]
            for text in (local, remote)
        ]
        assert fields[0] == fields[1]


def test_the_card_says_what_loops(tmp_path):
    source = copy_source("huginn", tmp_path / "source")
    plt_convert(source, tmp_path / "target", "--loops", 8)
    card = (tmp_path / "target" / "README.md").read_text()
    assert "# Huginn, as a Parallel Loop Transformer" in card
    assert (
        "8 loops over 4 layers, between a prelude of 2 and a coda of 2; a later loop reads its own token's state"
        in card
    )
    assert "here it reads zeros" in card


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_what_rounding_moves_is_told_apart_from_a_mistake(tmp_path, name, monkeypatch):
    """Logits in float32 of a model that amplifies rounding differ by more than 1e-4 from those of the same model."""
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    published = write(tmp_path / "published", raven("huginn"), "huginn")
    assert load_file(published / "expected.safetensors")["logits"].dtype == torch.float64
    plt_convert(published, tmp_path / "target", "--expected", published / "expected.safetensors")
    plain_model(name).save_pretrained(tmp_path / "plain")
    plt_convert(tmp_path / "plain", tmp_path / "other", "--loops", 2)
    for folder in ("target", "other"):
        assert "in float64; float32 moves them by" in (tmp_path / folder / "README.md").read_text()


def test_logits_that_rounding_alone_decides_are_not_compared(tmp_path, capsys):
    """Random weights of Huginn's kind amplify rounding in every loop; trained ones do not."""
    source = write(tmp_path / "source", raven("huginn", num_loops=24), "huginn")
    message = assert_refused(capsys, source, "--expected", source / "expected.safetensors")
    assert "if float32 moves them by 0.05 at most, got " in message and "run fewer loops" in message


def test_rounding_excuses_little():
    found = [verify.allowed_difference(rounding) for rounding in (0.0, 1e-5, 1e-3, 1.0)]
    assert found == [1e-4, 1e-4, 4e-3, 0.05]
