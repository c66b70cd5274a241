"""Fine-tuning on chats: what is trained, saved and merged, over which tokens the loss goes, and what is refused."""

import json
import re
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from tiny import tiny_ids, tiny_model
from train_tiny import losses
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import is_bitsandbytes_available

from modeling_plt import PLTForCausalLM
from training_plt.command.arguments import parse
from training_plt.finetune import arguments as finetune_arguments
from training_plt.finetune.__main__ import finetune
from training_plt.finetune.arguments import BaseArguments, ChatArguments, FinetuneArguments

CHATS = [
    [{"role": "user", "content": f"def f{number}"}, {"role": "assistant", "content": "(text, width):"}]
    for number in range(12)
]
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
)
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
    "max_steps": 6,
    "max_length": 64,  # tokens, of two or three of the chats
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 4,
}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
CLASSES = (ChatArguments, FinetuneArguments, BaseArguments)


def write_chats(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def chats(tmp_path):
    return write_chats(tmp_path / "chats.jsonl", [{"messages": messages} for messages in CHATS])


@pytest.fixture
def run(chat_folder, chats, tmp_path, monkeypatch):
    """Fine-tune the tiny chat model on the chats; the trainer."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def run(*arguments, model=chat_folder, dataset=chats):
        fields = {"model": model, "dataset": dataset, "output_dir": tmp_path / "output"} | SETTINGS
        flags = [f"--{name}={value}" for name, value in fields.items()]
        return finetune(*parse("plt finetune", None, CLASSES, [*flags, *map(str, arguments)]), "the command")

    return run


@torch.inference_mode()
def logits_of(model) -> torch.Tensor:
    return model.eval()(tiny_ids(2, 9)).logits


def test_all_weights_are_trained_and_saved(run, chat_folder, tmp_path):
    trainer = run()
    assert losses(trainer)[-1] < 0.9 * losses(trainer)[0]
    assert not any("plt_gate" in name for name in trainer.get_decay_parameter_names(trainer.model))
    saved = PLTForCausalLM.from_pretrained(tmp_path / "output")
    assert torch.equal(logits_of(saved), logits_of(trainer.model))
    before = PLTForCausalLM.from_pretrained(chat_folder).state_dict()
    unchanged = [name for name, tensor in saved.state_dict().items() if torch.equal(tensor, before[name])]
    assert not unchanged
    names = {path.name for path in (tmp_path / "output").iterdir()}
    assert {"config.json", "model.safetensors", "modeling_plt.py", "tokenizer.json", "chat_template.jinja"} <= names


@pytest.mark.parametrize("flags", [[], ["--use-dora", "True"]], ids=["LoRA", "DoRA"])
def test_an_adapter_is_trained_saved_and_merged(run, chat_folder, tmp_path, flags):
    trainer = run("--use-peft", "--merge", "--learning-rate", "5e-2", "--eos-token", "<|user|>", *flags)
    assert losses(trainer)[-1] < 0.9 * losses(trainer)[0]
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in trained} == PROJECTIONS
    base = PLTForCausalLM.from_pretrained(chat_folder)
    plain = logits_of(base)
    adapted = logits_of(PeftModel.from_pretrained(base, tmp_path / "output"))
    assert not torch.allclose(adapted, plain, atol=0.1)
    torch.testing.assert_close(adapted, logits_of(trainer.model), rtol=0, atol=1e-6)
    merged = PLTForCausalLM.from_pretrained(tmp_path / "output/merged")
    assert type(merged) is PLTForCausalLM and not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(logits_of(merged), adapted, rtol=0, atol=1e-4)  # one product for two, in float32
    assert AutoTokenizer.from_pretrained(tmp_path / "output/merged").chat_template
    end = AutoTokenizer.from_pretrained(chat_folder).convert_tokens_to_ids("<|user|>")
    assert merged.config.eos_token_id == end and end in merged.generation_config.eos_token_id


def test_gates_are_trained_whole_where_that_is_asked_for(run, chat_folder, tmp_path):
    run("--use-peft", "--merge", "--lora-modules-to-save", "plt_gate")
    before = PLTForCausalLM.from_pretrained(chat_folder).state_dict()
    after = PLTForCausalLM.from_pretrained(tmp_path / "output/merged").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    gates = {name for name in before if "plt_gate" in name}
    assert changed == gates | {name for name in before if name.split(".")[-2] in PROJECTIONS}


def test_a_run_shows_how_it_goes_and_the_folder_says_how_it_was_made(run, chats, tmp_path, capsys):
    trainer = run("--use-peft", "--merge", "--eval-dataset", chats)
    assert "'<|user|> def f0<|end|><|assistant|>" in capsys.readouterr().out
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["tokens_per_second"] > 0 and entry["mfu"] > 0 for entry in logged)
    for folder in ("output", "output/merged"):
        assert (tmp_path / folder / "loss.png").read_bytes().startswith(b"\x89PNG")
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert (
            "the command" in card.text and f"| held-out loss, nats per token | {eval_loss(trainer):.4f} |" in card.text
        )
        (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
        values = {}
        exec(code.replace('"."', repr(str(tmp_path / folder))), values)
        torch.testing.assert_close(logits_of(values["model"]), logits_of(trainer.model), rtol=0, atol=1e-4)


def eval_loss(trainer) -> float:
    (loss,) = (entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    return loss


def naive_loss(folder: Path, of_the_assistant: bool) -> float:
    """Per token of the chats, each alone in the model, that follows another one and counts."""
    model, tokenizer = PLTForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for user, assistant in CHATS:
        question = f"<|user|>{user['content']}<|end|><|assistant|>"
        whole = tokenizer(f"{question}{assistant['content']}<|end|>").input_ids
        first = len(tokenizer(question).input_ids) if of_the_assistant else 1
        with torch.inference_mode():
            scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        total -= sum(scores[i - 1, whole[i]].item() for i in range(first, len(whole)))
        count += len(whole) - first
    return total / count


@pytest.mark.parametrize("of_the_assistant", [False, True], ids=["all", "assistant"])
def test_packed_chats_have_the_loss_of_chats_alone(run, chat_folder, chats, tmp_path, of_the_assistant):
    template = tmp_path / "chat.jinja"
    template.write_text(MARKED)
    arguments = ["--assistant-only-loss", of_the_assistant, "--chat-template-path", template, "--learning-rate", 0]
    trainer = run("--eval-dataset", chats, *arguments)
    assert len(trainer.train_dataset) < len(CHATS), "packed"
    assert eval_loss(trainer) == pytest.approx(naive_loss(chat_folder, of_the_assistant), abs=1e-4)


def test_a_resumed_run_ends_as_if_never_stopped(run, tmp_path):
    flags = ["--use-peft", "--save-strategy", "steps", "--save-steps", 3]
    whole = run(*flags)
    expected = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    resumed = run(*flags, "--resume-from-checkpoint", tmp_path / "output/checkpoint-3")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs the extra `tools`")
def test_an_adapter_of_quantized_weights_is_merged_into_the_weights(run, chat_folder, tmp_path):
    trainer = run("--use-peft", "--merge", "--load-in-4bit", "--learning-rate", "5e-2")
    assert losses(trainer)[-1] < losses(trainer)[0]
    adapted = PeftModel.from_pretrained(PLTForCausalLM.from_pretrained(chat_folder), tmp_path / "output")
    merged = PLTForCausalLM.from_pretrained(tmp_path / "output/merged")
    assert not hasattr(merged.config, "quantization_config")
    torch.testing.assert_close(logits_of(merged), logits_of(adapted), rtol=0, atol=1e-4)


@pytest.fixture
def refusal(run, tmp_path, capsys):
    """The sentence by which a run ends before anything is trained."""

    def refusal(*arguments, **places):
        with pytest.raises(SystemExit):
            run(*arguments, **places)
        assert not (tmp_path / "output").exists()
        return capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")

    return refusal


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "words"}, "must be a list of objects with the strings `role` and `content`, got {"),
        ({"messages": "words"}, "must be a list of objects"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be a list of objects"),
        ({"messages": [{"from": "user", "value": "words"}]}, "must be a list of objects"),
        ({"messages": []}, "must have one of the role 'assistant' to learn, got the roles []"),
        ({"messages": [{"role": "user", "content": "words"}]}, "to learn, got the roles ['user']"),
    ],
    ids=str,
)
def test_a_row_of_another_form_is_named_by_its_line(refusal, tmp_path, row, message):
    good = {"messages": CHATS[0]}
    wrong = refusal(dataset=write_chats(tmp_path / "wrong.jsonl", [good, good, row]))
    assert wrong.startswith(f"{tmp_path / 'wrong.jsonl'}, line 3: ") and message in wrong


def test_datasets_without_a_chat_are_refused(refusal, tmp_path):
    assert "got none in" in refusal(dataset=write_chats(tmp_path / "empty.jsonl", []))
    (tmp_path / "no.jsonl").write_text("\nwords\n")
    assert "no.jsonl, line 2: must be JSON, got words" in refusal(dataset=tmp_path / "no.jsonl")
    (tmp_path / "input.txt").write_text("words")
    assert refusal(dataset=tmp_path / "input.txt").endswith("; `pretrain --model` goes on with plain text.")
    assert "No such file or directory: 'missing.jsonl'" in refusal(dataset="missing.jsonl")


def test_models_and_tokenizers_that_do_not_fit_are_refused(refusal, chat_folder, tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path / "llama")
    assert "must be a PLT" in refusal(model=tmp_path / "llama")
    tiny_model().save_pretrained(tmp_path / "model")
    assert "must come with its tokenizer" in refusal(model=tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    tokenizer.save_pretrained(tmp_path / "model")
    assert "as the model has embeddings" in refusal(model=tmp_path / "model")


def test_chats_need_a_template(refusal, chat_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    tokenizer.chat_template = None
    PLTForCausalLM.from_pretrained(chat_folder).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert "give one by `--chat-template-path FILE.jinja`" in refusal(model=tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(chat_folder, pad_token=None, eos_token=None)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    assert "name one by `--eos-token TOKEN`" in refusal(model=tmp_path / "model")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--load-in-4bit"], "need `use_peft`"),
        (["--merge"], "`--merge` needs `--use-peft`"),
        (["--load-in-4bit", "--use-peft"], "need bitsandbytes"),
        (["--chat-template-path", "nothing.jinja"], "must be a file that ends in .jinja or .j2, got nothing.jinja"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused(refusal, flags, message, monkeypatch):
    monkeypatch.setattr(finetune_arguments, "is_bitsandbytes_available", lambda: False)
    assert message in refusal(*flags)


def test_what_needs_no_chats_is_refused_before_they_are_read(refusal, monkeypatch):
    monkeypatch.setattr("training_plt.finetune.__main__.load_messages", None)
    assert "`--report-to` must be trackers that are installed, got clearml." in refusal("--report-to", "clearml")
    assert "needs a GPU" in refusal("--attn-implementation", "flex_attention")
    assert "`--learning-rate` must be a number of at least 0, got -1.0." in refusal("--learning-rate", "-1")


@pytest.mark.parametrize(
    "flags, made, folder",
    [
        ([], "a fine-tuned PLT", "output"),
        (["--use-peft"], "an adapter", "output"),
        (["--use-peft", "--merge"], "a fine-tuned PLT", "output/merged"),
    ],
)
def test_a_run_ends_with_what_it_made_where_it_lies_and_what_is_next(
    run, chats, tmp_path, capsys, flags, made, folder
):
    trainer = run("--eval-dataset", chats, *flags)
    *_, first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"Made:  {made}, held-out loss, nats per token: {eval_loss(trainer):.4f}"
    assert second == f"Where: {tmp_path / folder}"
    expected = f"plt transformers serve {tmp_path / folder}"
    assert third.removeprefix("Next:  ") == ("README.md there says how to load it" if "adapter" in made else expected)
    assert {"eval_loop_0_loss", "eval_loop_2_gate"} <= trainer.state.log_history[-1].keys()


def test_the_loss_of_the_assistant_needs_a_template_that_marks_it(refusal):
    assert "generation" in refusal("--assistant-only-loss")


def test_a_run_resumes_from_a_checkpoint_with_its_settings_only(refusal, run, chat_folder, tmp_path):
    assert f"must be a checkpoint with a trainer_state.json, got {chat_folder}" in refusal(
        f"--resume-from-checkpoint={chat_folder}"
    )
    run("--save-strategy=steps", "--save-steps=2", "--max-steps=2", "--use-peft")
    (tmp_path / "output").rename(tmp_path / "before")
    resume = f"--resume-from-checkpoint={tmp_path / 'before/checkpoint-2'}"
    assert "where `lora_r` is 16 and not 8." in refusal(resume, "--use-peft", "--lora-r=8")
