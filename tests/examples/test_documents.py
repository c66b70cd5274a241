"""What the documents say: their code and commands run, their links and paths exist, their lists are complete."""

import ast
import configparser
import importlib
import re
import shlex
import shutil
from pathlib import Path

import datasets
import pytest
from clean_process import run_in_clean_process
from test_imports import FLOORS
from tiny import tiny_model
from transformers import LlamaConfig, PreTrainedTokenizerFast

from command_plt.main import main
from configuration_plt import PLTConfig
from laboratory import tasks as experiments
from training_plt.data.byte_level_bpe import END, train_byte_level_bpe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*sorted(ROOT.glob("*.md")), *PAGES[1:]]
PUBLISHED = {"Multilingual-Multimodal-NLP/LoopCoder-V2": str(ROOT / "tests/data/loopcoder_v2")}  # in place of the hub
COMMANDS = ("plt", "make", "pip", "python")
OPENING = {"open", "eval", "exec", "compile", "__import__"}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def table_cells(text: str) -> list[str]:
    """The first cell of every row of the tables."""
    return re.findall(r"^\| ([^|]+) \|", text, flags=re.MULTILINE)


def python_blocks() -> list:
    blocks = []
    for path in PAGES:
        found = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
        blocks += [pytest.param(block, id=f"{path.name}-{number}") for number, block in enumerate(found)]
    return blocks


def command_lines() -> list[str]:
    """Every command that a page gives, once, without its comment."""
    lines = []
    for text in (path.read_text() for path in PAGES):
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            lines += [shlex.join(shlex.split(line, comments=True)) for line in block.splitlines() if line.strip()]
        lines += [span for span in inline_code(text) if span.split()[0] in COMMANDS and " " in span]
    return sorted(set(lines))


LINES = command_lines()
CHECKS = [line for line in LINES if line.startswith("python -m serving_plt.vllm.check_on_gpu")]


def of(*programs: str) -> list[str]:
    return [line for line in LINES if line.startswith(tuple(f"{program} " for program in programs))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny PLT and a tokenizer where `make demo` puts them."""
    folder = tmp_path_factory.mktemp("documents")
    tokenizer = train_byte_level_bpe(["def read(self): return self"], 300)
    saved = folder / "runs/demo/plt"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.save_pretrained(saved)
    tiny_model(vocab_size=len(fast)).save_pretrained(saved)
    return folder


@pytest.mark.parametrize("block", python_blocks())
def test_code_runs(folder, block):
    for hub_id, path in PUBLISHED.items():
        block = block.replace(hub_id, path)
    run_in_clean_process(block, cwd=folder)


SWITCHES = [line for line in LINES if line.startswith("export ")]  # of libraries


def test_every_command_is_of_a_kind_that_is_tested():
    kinds = ("plt", "make", "pip install", "accelerate launch")
    # hours, another environment, and what a test of its own calls
    studies = [
        "python -m laboratory.healing",
        "python -m laboratory.costs.pages",
        *of("python -m laboratory.serving", "python -m laboratory.load", "python -m serving_plt.vllm.sizing"),
    ]
    assert set(LINES) == {*of(*kinds, "python -m laboratory.tasks"), *studies, *CHECKS, *SWITCHES}


@pytest.mark.parametrize("line", of("python -m laboratory.tasks"))
def test_experiments_have_these_names(line):
    assert shlex.split(line)[3] in experiments.names()


@pytest.mark.parametrize("line", of("plt diagnose", "plt finetune"))
def test_models_are_diagnosed_and_fine_tuned(line, folder, monkeypatch):
    """With the chats and the template of the page."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")
    shutil.copy(ROOT / "README.md", folder)
    for language, name in (("json", "chats.jsonl"), ("jinja", "chat.jinja")):
        Path(name).write_text(re.search(rf"```{language}\n(.*?)```", page("docs/finetune.md"), flags=re.DOTALL)[1])
    main(shlex.split(line)[1:])


class ArgumentsAreRead(Exception):
    """What a run would begin with has been read."""


# pretraining takes minutes or many GPUs: here the arguments are read, tests/training/test_pretrain.py trains
@pytest.mark.parametrize("line", of("plt pretrain", "plt heal", "accelerate launch"))
def test_pretraining_takes_its_arguments(line, tmp_path, monkeypatch):
    from accelerate.commands.launch import launch_command_parser

    def read(*arguments):
        parse(*arguments)
        raise ArgumentsAreRead

    for name, content in re.findall(r"```yaml\n# (\S+)\n(.*?)```", page("docs/train.md"), flags=re.DOTALL):
        (tmp_path / name).write_text(content)
    launcher, _, launched = line.partition(" -m training_plt.")
    if launched:
        launch_command_parser().parse_args([*shlex.split(launcher)[2:], "-m", "training_plt"])
    name, *words = shlex.split(launched or line.removeprefix("plt "))
    module = importlib.import_module(f"training_plt.{name}.__main__")
    parse = module.parse
    monkeypatch.setattr(module, "parse", read)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentsAreRead):
        main([name, *words])


def test_the_cost_of_pretraining_is_what_its_code_prints(folder):
    """The numbers below the block of the page."""
    blocks = re.findall(r"```python\n(.*?)```", page("docs/train.md"), flags=re.DOTALL)
    (block,) = [block for block in blocks if "floating_point_ops" in block]
    printed = run_in_clean_process(block, cwd=folder).stdout
    (plain, plain_hours), (plt, hours) = re.findall(r"([\d.]+) billion operations a token, (\d+) GPU hours", printed)
    text = " ".join(prose(page("docs/train.md")).split())
    assert f"That is {plain} billion operations a token and {plain_hours} GPU hours for the plain model" in text
    assert f"and {plt} billion and {hours} hours for PLT-2, or {int(hours) // 8} hours on 8 GPUs" in text


def test_the_memory_of_pretraining_is_what_its_code_prints(folder):
    """The table below the block, and the configs above it."""
    text = page("docs/train.md")
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "bytes_of_step" in each]
    printed = run_in_clean_process(block.replace("round(size / 1e9)", "size / 1e9"), cwd=folder).stdout
    computed = [ast.literal_eval(line[line.index("{") :]) for line in printed.splitlines()]
    states = ("weights", "gradients", "AdamW's states", "casts")
    rest = ("activations", "logits", "total")
    rows = [[sum(parts[name] for name in states), *(parts[name] for name in rest)] for parts in computed]
    table = re.findall(r"\| [12] \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", text.partition("## Memory")[2])
    assert [[round(value) for value in row] for row in rows] == [list(map(int, row)) for row in table]
    assert "entries of 4096 tokens, 66 GB in all" in text and "52 GB on each (computed, not run)" in text
    assert "per_device_train_batch_size: 2\n" in text and "block_size: 4096\n" in text
    assert max(row[-1] for row in rows) < 0.9 * 80


@pytest.mark.parametrize("line", of("plt convert", "plt inspect"))
def test_conversions_run(line, tmp_path, monkeypatch):
    words = shlex.split(line)[1:]
    if len(words) == 1:  # the command's name in a sentence
        words.append("--help")
    places = {"SOURCE": str(ROOT / "tests/data/ouro"), "TARGET": "target"}
    monkeypatch.chdir(tmp_path)
    if "FOLDER" in words:
        tiny_model(num_loops=1, num_hidden_layers=3).save_pretrained("FOLDER")
    try:
        main([places.get(word, word) for word in words])
    except SystemExit as end:
        assert "--help" in words and not end.code


# measuring takes minutes at the sizes of the pages: here the options are read, tests/benchmarks measures small ones
@pytest.mark.parametrize("line", of("plt bench"))
def test_benchmarks_take_their_options(line, monkeypatch):
    measured = []
    monkeypatch.setattr("laboratory.costs.measure.measure", lambda *args, **options: measured.append(options))
    monkeypatch.setattr("laboratory.costs.fit.fit", lambda *args: measured.append(args))
    monkeypatch.setattr("laboratory.costs.product_times.measure", lambda *args: measured.append(args))
    monkeypatch.setattr("laboratory.costs.compare.compare", measured.append)
    words = shlex.split(line)[1:]
    try:
        main(words)
    except SystemExit:
        assert (words == ["bench"] or "--help" in words) and not measured
    else:
        assert len(measured) == 1


# the tasks are on the hub: here the arguments are read, test_examples.py scores a text of the demo
@pytest.mark.parametrize("line", of("plt eval"))
def test_evaluations_take_their_arguments(line, monkeypatch):
    from lm_eval._cli.run import Run

    monkeypatch.setattr("sys.argv", [])  # which the command replaces
    evaluated = []
    monkeypatch.setattr(Run, "_execute", staticmethod(evaluated.append))
    main(shlex.split(line)[1:])
    assert len(evaluated) == 1


# it needs a GPU: here the options are read, tests/gpu_checks makes a dry run
@pytest.mark.parametrize("line", CHECKS)
def test_checks_on_a_gpu_take_their_options(line, tmp_path, monkeypatch):
    from serving_plt.vllm import check_on_gpu
    from serving_plt.vllm.gpu_checks.row import Row

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_on_gpu, "run_alone", lambda *_: ([Row("a check", "equal", {"device": "a GPU"})], []))
    check_on_gpu.main(shlex.split(line)[3:])
    assert len(list(Path("runs").glob("*/check_on_gpu.*"))) == 2


def test_the_parts_of_the_gpu_page_are_those_of_the_command():
    from serving_plt.vllm.gpu_checks.agreement import IN_BFLOAT16, IN_FLOAT32, IN_TF32
    from serving_plt.vllm.gpu_checks.parts import PARTS

    text = " ".join(page("docs/gpu.md").split())
    assert [cell.strip("`") for cell in table_cells(page("docs/gpu.md")) if cell.startswith("`")] == list(PARTS)
    assert f"{IN_FLOAT32:g} in float32, {IN_TF32:g} in vLLM's float32" in text and f"{IN_BFLOAT16:g} in bf16" in text


# a server does not end: here its help is read, tests/tools/test_serving.py talks to it
@pytest.mark.parametrize("name", sorted({line.split()[2] for line in of("plt transformers")}))
def test_servers_are_commands(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [])  # which the command replaces
    with pytest.raises(SystemExit) as end:
        main(["transformers", name, "--help"])
    assert not end.value.code and f"plt transformers {name}" in capsys.readouterr().out


# they take minutes and build environments: here the targets are looked up, their recipes are what tests run
def test_make_has_the_targets_of_the_pages_and_the_readme_those_that_are_checked():
    targets = re.findall(r"^([\w-]+):", page("Makefile"), flags=re.MULTILINE)
    named = {line.split()[1] for line in of("make")}
    assert {"demo", "test", "test-all"} <= named <= set(targets)
    checked = re.findall(r"^make test.*", page(".ci/run"), flags=re.MULTILINE)
    assert len(checked) == 3 and all(f"`{command}`" in page("README.md") for command in checked)


# it needs the network: here the extras are looked up
def test_extras_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    installed = {
        name for line in of("pip install") for list_ in re.findall(r"\[(.*)\]", line) for name in list_.split(",")
    }
    further = re.search(r"# further extras: (.*)", page("README.md"))[1].split(", ")
    assert installed | set(further) == extras
    assert set(re.findall(r"extra `(\w+)`", "".join(path.read_text() for path in PAGES))) <= extras


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_lead_to_pages_and_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


def anchors(text: str) -> list[str]:
    """What links to the headings of a page end with."""
    headings = re.findall(r"^#+ (.*)", prose(text), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_paths_exist(path):
    folders = {child.name for child in ROOT.iterdir() if child.is_dir() and child.name != "runs"}
    for span in inline_code(path.read_text()):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", span) and span.split("/")[0] in folders:
            assert (ROOT / span).exists(), span
        if re.fullmatch(r"[\w-]+\.(py|md)", span):
            assert any(any(ROOT.glob(f"{level}{span}")) for level in ("", "*/", "*/*/")), span


def test_tools_have_one_line_each_and_their_tests_exist():
    rows = page("docs/tools.md").partition("\n## ")[0].splitlines()
    cells = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in rows if row.startswith("| ")][1:]
    tools = [row[0].split()[0] for row in cells]
    assert "peft" in tools and len(set(tools)) == len(tools)
    for row in cells:
        files = re.findall(r"`([\w/]+\.py)`", row[-1])
        assert files and all((ROOT / file).exists() for file in files), row[0]


def test_every_option_of_a_conversion_is_listed():
    import typer

    from command_plt.app import app

    command = typer.main.get_command(app).commands["convert"]
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    listed = {name for cell in table_cells(page("docs/convert.md")) for name in re.findall(r"--[\w-]+", cell)}
    assert listed == {name for name in options if name.startswith("--")} - {"--help"}


def test_every_field_of_a_plt_is_listed():
    start = page("docs/use.md").partition("## Configuration")[2].partition("\n## Prefill")[0]  # with those of experts
    listed = {name for cell in table_cells(start) for name in re.findall(r"`(\w+)`", cell)}
    assert listed == set(PLTConfig.__dataclass_fields__) - set(LlamaConfig.__dataclass_fields__)


def test_a_saved_folder_holds_the_code_of_the_trust_page(folder):
    files = sorted((folder / "runs/demo/plt").glob("*.py"))
    listed = [name for cell in table_cells(page("docs/trust.md")) for name in re.findall(r"`(\w+\.py)`", cell)]
    assert sorted(listed) == [file.name for file in files]
    named = re.search(r"They import each other,(.*?)They open", page("docs/trust.md"), flags=re.DOTALL)[1]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    assert {name.partition(".")[0] for name in imported} == set(re.findall(r"`(\w+)`", named))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & OPENING


def test_files_of_the_model_import_only_what_is_listed_below_them():
    listed = [cell.strip("`") for cell in table_cells(page("docs/internals.md")) if cell.endswith(".py`")]
    assert sorted(listed) == sorted(file.name for file in (ROOT / "modeling_plt").glob("*_plt.py"))
    for number, name in enumerate(listed):
        imported = re.findall(r"^from \.(\w+) import", page(f"modeling_plt/{name}"), flags=re.MULTILINE)
        assert {f"{module}.py" for module in imported} <= set(listed[number + 1 :]), name


def test_folders_are_listed_from_the_ground_up():
    listed = [cell.strip("`") for cell in table_cells(page("docs/internals.md")) if re.fullmatch(r"`\w+`", cell)]
    assert sorted(listed) == sorted(FLOORS)
    assert [FLOORS[name] for name in listed] == sorted(FLOORS.values())


def test_names_in_the_walk_through_a_forward_are_those_of_the_code():
    code = "".join(file.read_text() for file in ROOT.glob("*ing_plt/*.py")) + page(
        "configuration_plt/configuration_plt.py"
    )
    known = set(re.findall(r"\w+", code))
    text = page("docs/internals.md")
    spans = [span for span in inline_code(text) if not re.search(r"[/\s]|\.py$", span)]
    picture = re.findall(r"\b[A-Za-z]+_\w+\b", "".join(re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)))
    unknown = {word for span in (*spans, *picture) for word in re.findall(r"[A-Za-z_]\w*", span)} - known
    unknown -= {*FLOORS, "conversion"}
    assert not unknown
