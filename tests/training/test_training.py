"""Gradients, checkpointing, Trainer and PEFT."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import ABLATION_ROWS, every_expert, num_active, tiny_ids, tiny_model, when_loaded
from train_tiny import fresh_model, losses, train
from transformers import Trainer, TrainingArguments
from transformers.data import DataCollatorWithFlattening
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import modeling_plt
from modeling_plt import PLTForCausalLM

FAMILIES = ("dense", "experts", "core")


def gradients(model, input_ids, **kwargs):
    model.zero_grad()
    model(input_ids, labels=input_ids, use_cache=False, **kwargs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_every_parameter_gets_a_gradient(row, num_loops):
    for name, gradient in gradients(tiny_model(num_loops=num_loops, **ABLATION_ROWS[row]), tiny_ids(2, 9)).items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def exact_norm(norm, states):
    """RMSNorm that does not round to float32."""
    return torch.nn.functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def test_gradients_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(LlamaRMSNorm, "forward", exact_norm)
    model, input_ids = tiny_model(num_loops=3).double(), tiny_ids(1, 9)
    exact, step = gradients(model, input_ids), 2e-4  # not smaller, because a router rounds to float32
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
                logits = model(input_ids).logits[0, :-1]
                losses.append(torch.nn.functional.cross_entropy(logits, input_ids[0, 1:]))  # the model's is in float32
                parameter.sub_(direction, alpha=sign * step)
        numeric = (losses[0] - losses[1]) / (2 * step)
        torch.testing.assert_close((exact[name] * direction).sum(), numeric, rtol=1e-3, atol=5e-4, msg=name)


def test_a_token_learns_also_where_the_pad_is_the_same():
    """Checkpoints often pad with their end token, and chats have it between messages; a mere pad has no label."""
    model, input_ids = tiny_model(eos_token_id=2, pad_token_id=2, tie_word_embeddings=False), tiny_ids(2, 9)
    input_ids[:, 4], input_ids[:, 7:] = 2, 50
    labels = input_ids.clone()
    labels[:, 7:] = -100  # 50 is the pad here
    mask = (labels != -100).long()
    model(input_ids, labels=labels, attention_mask=mask).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[2].abs().max() > 0 and gradient[50].abs().max() == 0


@pytest.mark.parametrize("loop_attention", ["gated_window", "shared"])
def test_losses_of_later_loops_reach_the_shared_keys_and_values(loop_attention):
    """Without the hidden state of the loop before, shared KV is the only way from loop 1 back to loop 0."""
    model = tiny_model(num_loops=2, loop_attention=loop_attention, hidden_scale=0.0, num_hidden_layers=1)
    layer = model.model.layers[model.config.looped_stage.layers.start]
    kept = {}

    def keep(_, args, output):
        run = args[4]
        if run.loops.start == 0:
            kept["key"], kept["value"] = output[2], output[3]
            kept["key"].retain_grad()
            kept["value"].retain_grad()

    layer.self_attn.register_forward_hook(keep)
    input_ids = tiny_ids(1, 9)
    model(input_ids, labels=input_ids, use_cache=False).loss.backward()
    assert kept["key"].grad.abs().max() > 0
    assert kept["value"].grad.abs().max() > 0


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_checkpointing_gives_the_same_gradients(row, use_reentrant):
    model, input_ids = tiny_model(num_loops=3, **ABLATION_ROWS[row]).train(), tiny_ids(2, 9)
    mask = torch.ones_like(input_ids)
    mask[0, :3] = 0
    expected = gradients(model, input_ids, attention_mask=mask)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    calls = []
    layer = model.model.layers[model.config.looped_stage.layers.start]
    layer.self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    for name, gradient in gradients(model, input_ids, attention_mask=mask).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6, msg=name)
    assert len(calls) == 2 * 3, "each of the 3 loops runs again in the backward pass"


def test_gradients_of_a_packed_row_are_those_of_its_documents():
    model = tiny_model(num_loops=3)
    documents = [tiny_ids(1, length, seed=length) for length in (6, 4, 9)]
    batch = DataCollatorWithFlattening()([{"input_ids": document[0].tolist()} for document in documents])
    model.zero_grad()
    model(**batch, use_cache=False, num_items_in_batch=16).loss.backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for document in documents:
        model(document, labels=document, use_cache=False, num_items_in_batch=16).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(dtype):
    model, input_ids = tiny_model(num_loops=3, **every_expert()), tiny_ids(2, 9)
    exact = gradients(model, input_ids)
    for name, gradient in gradients(model.to(dtype), input_ids).items():
        similarity = torch.cosine_similarity(gradient.float().flatten(), exact[name].flatten(), dim=0)
        assert similarity > 0.9, (name, similarity)


@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_trainer_lowers_the_loss_and_the_model_reloads(tmp_path, row):
    trainer = train(fresh_model(num_loops=2, **ABLATION_ROWS[row]), tmp_path, 30)
    curve = losses(trainer)
    assert curve[-1] < 0.5 * curve[0]
    trainer.save_model(tmp_path / "model")
    reloaded = PLTForCausalLM.from_pretrained(tmp_path / "model").eval()
    input_ids = tiny_ids(2, 9)
    expected = trainer.model.eval()(input_ids, use_cache=False).logits
    torch.testing.assert_close(reloaded(input_ids, use_cache=False).logits, expected, **when_loaded())
    assert trainer.evaluate()["eval_loss"] < curve[0]


def test_label_smoothing_shifts_the_labels(tmp_path):
    model = fresh_model().eval()
    arguments = TrainingArguments(
        tmp_path, label_smoothing_factor=0.1, per_device_eval_batch_size=1, report_to=[], use_cpu=True
    )
    row = tiny_ids(1, 9)
    dataset = Dataset.from_dict({"input_ids": row.tolist(), "labels": row.tolist()})
    loss = Trainer(model, arguments, eval_dataset=dataset).evaluate()["eval_loss"]
    logits = model(row).logits
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], row[0, 1:], label_smoothing=0.1)
    assert loss == pytest.approx(expected.item(), abs=1e-4)


def test_a_resumed_run_continues_as_if_never_stopped(tmp_path):
    whole = train(fresh_model(), tmp_path, 20)
    files = {path.name for path in (tmp_path / "checkpoint-10").iterdir()}
    assert {path.name for path in Path(modeling_plt.__file__).parent.glob("*_plt.py")} <= files
    resumed = train(fresh_model(), tmp_path, 20, resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert losses(resumed)[10:] == pytest.approx(losses(whole)[10:], abs=1e-4)


@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_lora_lowers_the_loss_saves_and_reloads(tmp_path, target_modules):
    base = fresh_model()
    before = {name: parameter.clone() for name, parameter in base.state_dict().items()}
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=64, target_modules=target_modules)
    model = get_peft_model(base, config)
    adapted = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    if base.config.num_experts:
        projections |= {"shared_expert_gate"}  # and the shared expert; others are no `nn.Linear`
    assert adapted == (projections if target_modules == "all-linear" else set(target_modules))
    curve = losses(train(model, tmp_path, 40))
    assert curve[-1] < 0.97 * curve[0]  # the base is random: a low rank cannot do much, but must do something
    model.save_pretrained(tmp_path / "adapter")
    plain = fresh_model()
    for name, parameter in plain.state_dict().items():
        assert torch.equal(parameter, before[name])
    reloaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    input_ids = tiny_ids(2, 9)
    expected = model.eval()(input_ids).logits
    torch.testing.assert_close(reloaded(input_ids).logits, expected, rtol=0, atol=1e-6)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(merged(input_ids).logits, expected, rtol=0, atol=1e-4)


def test_new_models_start_with_the_gate_at_one_half():
    model = fresh_model()
    gate = model.model.layers[model.config.looped_stage.layers.start].self_attn.plt_gate
    assert gate.weight.abs().max() == gate.bias.abs().max() == 0
    assert (gate.gate_norm.weight == 1).all()
    values = gate(torch.randn(2, 5, 32), torch.randn(2, 4, 5, 8))
    assert values.shape == (2, 5, 4)
    assert (values == 0.5).all()


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_the_layers_count_once_per_loop_in_floating_point_ops(num_loops, tie_word_embeddings):
    model = tiny_model(num_loops=num_loops, tie_word_embeddings=tie_word_embeddings)
    inputs = {"input_ids": tiny_ids(2, 9)}
    looped = model.config.looped_stage.layers
    layers = num_active(model, model.model.layers[looped.start : looped.stop])
    once = num_active(model, model.model.layers, model.model.norm, model.lm_head)
    assert model.floating_point_ops(inputs) == 6 * 18 * ((num_loops - 1) * layers + once)
    assert model.model.floating_point_ops(inputs) < model.floating_point_ops(inputs)
