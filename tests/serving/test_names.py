"""All that the plugin and its tests ask of vLLM is there, in the installed release and in the newest that is admitted.

The newest is for GPUs only: of its wheel, 336 MB, the Python files are read. pip downloads it once, to a user's cache;
`PLT_WHEELS=FOLDER` names another place, and `PLT_WHEELS=` means that it is not wanted.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from checkout import ROOT
from sources import Sources
from uses import OBJECTS, Uses, lacking_flags

from laboratory.load.clients import FIGURES
from serving_plt.vllm.checks import NEWEST

OURS = {"sources.py", "uses.py", "test_names.py"}
FILES = [
    file
    for folder in ("serving_plt/vllm", "laboratory/serving", "laboratory/load", "tests/serving")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
assert all(any(folder in file.as_posix() for file in FILES) for folder in ("serving_plt", "laboratory"))
FILES = sorted(path for path in FILES if path.name not in OURS)
STARTING = (
    "docs/serving.md",
    "laboratory/load/served.py",
    "serving_plt/vllm/demo.py",
    "serving_plt/vllm/server.py",
    "tests/serving/test_demo.py",
    "tests/serving/test_openai.py",
)
WHEEL = f"vllm=={NEWEST}.0"
PATIENCE = 300  # seconds for the download
INSTALLED = Path(find_spec("vllm").origin).parents[1]


def uses(sources: Sources) -> list[Uses]:
    return [Uses(path, sources) for path in FILES]


def complaints(sources: Sources) -> list[str]:
    return [each for use in uses(sources) for each in use.complaints]


def gathered(sources: Sources, kind: str) -> set[str]:
    return set().union(*(getattr(use, kind) for use in uses(sources)))


@pytest.fixture(scope="module")
def installed() -> Sources:
    return Sources(INSTALLED)


@pytest.fixture(scope="module")
def newest() -> Sources:
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "plt")
    folder = os.environ.get("PLT_WHEELS", str(default))
    if not folder:
        pytest.skip("`PLT_WHEELS` is empty: no wheel of vLLM is wanted")
    pattern = WHEEL.replace("==", "-") + "-*.whl"
    if not [*Path(folder).glob(pattern)]:
        download(Path(folder), pattern)
    return Sources(next(Path(folder).glob(pattern)))


def download(folder: Path, pattern: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as new:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", new]
        command += ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--retries", "1", WHEEL]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"{WHEEL} is out of reach: {error.stderr.strip().splitlines()[-1]}")
        except subprocess.TimeoutExpired:
            pytest.skip(f"{WHEEL} has not come in {PATIENCE} s")
        (wheel,) = Path(new).glob(pattern)
        wheel.rename(folder / wheel.name)


@pytest.mark.parametrize("release", ["installed", "newest"])
def test_everything_asked_for_is_there(release, request, installed):
    sources = request.getfixturevalue(release)
    assert complaints(sources) == []
    # and it was as much: a class that the reader does not follow any more would have no complaints
    for kind in ("seen", "overrides"):
        names, others = ({name.split(".")[-1] for name in gathered(each, kind)} for each in (installed, sources))
        assert names == others


def test_the_reader_follows_the_plugin(installed):
    """Some of each kind; and no class is told that is not asked for."""
    seen = gathered(installed, "seen")
    assert {
        "vllm.forward_context:get_forward_context",
        "vllm.config.cache.CacheConfig.sliding_window",
        "vllm.model_executor.layers.attention.attention.Attention()",
        "vllm.v1.attention.backends.registry.MambaAttentionBackendEnum.SHORT_CONV",
        "vllm.v1.attention.backends.short_conv_attn.ShortConvAttentionMetadata.num_accepted_tokens",
        "vllm.v1.core.sched.scheduler.Scheduler.kv_cache_config",
        "argument load_format of LLM",
        "argument tensor_parallel_size of engine",
        "module vllm.entrypoints.openai.api_server",
        "variable VLLM_ENABLE_V1_MULTIPROCESSING",
        "call of load_weights in vllm.model_executor.model_loader.default_loader",
    } <= seen
    assert {"CarrySlice.mamba_type", "Checks.verify_and_update_config"} <= gathered(installed, "overrides")
    assert gathered(installed, "told") == OBJECTS.keys()


def own_flags(texts: Iterable[str]) -> set[str]:
    """The options that commands of this package have."""
    return {flag for text in texts for flag in re.findall(r'add_argument\(\s*"(--[\w-]+)"', text)}


@pytest.mark.parametrize("release", ["installed", "newest"])
def test_commands_have_the_options_that_are_named(release, request):
    """In what starts servers, and in the page."""
    texts = {path: path.read_text(encoding="utf-8") for path in [*FILES, *map(ROOT.joinpath, STARTING)]}
    own, sources = own_flags(texts.values()), request.getfixturevalue(release)
    for path in STARTING:
        assert lacking_flags(texts[ROOT / path], own, sources) == set()
    assert lacking_flags("vllm serve --max-num-batch-tokens 1 --enforce-eager", own, sources) == {
        "--max-num-batch-tokens"
    }


@pytest.mark.parametrize("release", ["installed", "newest"])
def test_deployed_servers_have_the_options_that_are_named(release, request):
    """In the unit, whose options are the container's, and on the page, where other programs have options, too."""
    unit, page = ((ROOT / name).read_text() for name in ("examples/serving/plt-serving.service", "docs/deploying.md"))
    named = re.findall(r"^ExecStart=.*", unit, flags=re.MULTILINE) + re.findall(r"`(--[^`]+)`", page)
    own = own_flags([(ROOT / "serving_plt/vllm/sizing.py").read_text()]) | {"--no-prefix-caching"}
    assert len(named) > 4
    assert lacking_flags(" ".join(named), own, request.getfixturevalue(release)) == set()


@pytest.mark.parametrize("release", ["installed", "newest"])
def test_the_benchmark_of_vllm_has_what_the_load_asks_of_it(release, request):
    sources = request.getfixturevalue(release)
    bench, datasets = (sources.read(f"vllm/benchmarks/{name}.py") for name in ("serve", "datasets/datasets"))
    flags = re.findall(r'"(--[\w-]+)"', (ROOT / "laboratory/load/clients.py").read_text(encoding="utf-8"))
    assert len(flags) > 15
    assert [flag for flag in flags if f'"{flag}"' not in bench + datasets] == []
    whole = [key for key in FIGURES.values() if not key.startswith("p")]
    assert [key for key in whole if f'"{key}":' not in bench] == []
    assert 'result[f"p{p_word}_{metric_attribute_name}_ms"]' in bench


@pytest.mark.parametrize("release", ["installed", "newest"])
def test_vllm_finds_the_plugin(release, request):
    (group,) = [name for name in setup_groups() if name.startswith("vllm")]
    assert f'"{group}"' in request.getfixturevalue(release).read("vllm/plugins/__init__.py")


def setup_groups() -> list[str]:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return list(setup["options.entry_points"])


DEMANDING = "class Demanding:\n    @abstractmethod\n    def get_grid(self): ...\n\n\n"
CONFIG, LAYERS, MODELS = "vllm/config", "vllm/model_executor/layers", "vllm/model_executor/models"
CHANGES = {  # a file, a text of it and what is put there; and what the complaint says
    "a function has another name": (
        ("vllm/forward_context.py", "def get_forward_context(", "def forward_context("),
        "vllm.forward_context:get_forward_context",
    ),
    "a method has another name": (
        ("vllm/entrypoints/llm.py", "def apply_model(", "def apply("),
        "vllm.entrypoints.llm.LLM.apply_model",
    ),
    "a class has another name": (
        (f"{CONFIG}/vllm.py", "class VllmConfig", "class EngineConfig"),
        "vllm.config:VllmConfig",
    ),
    "an argument is gone": (
        (f"{LAYERS}/attention/attention.py", "kv_sharing_target_layer_name: str", "shares: str"),
        "argument kv_sharing_target_layer_name of kind",
    ),
    "a layer's call takes more": (
        (f"{LAYERS}/attention/attention.py", "value: torch.Tensor,\n        # For", "value, scale,\n        # For"),
        "self.attn for this call",
    ),
    "a method takes more": (
        (f"{LAYERS}/vocab_parallel_embedding.py", "embed_tokens: Vocab", "scale: float, embed_tokens: Vocab"),
        "self.lm_head.tie_weights for this call",
    ),
    "an attribute is gone": (
        (f"{CONFIG}/cache.py", "    sliding_window: int", "    window: int"),
        "vllm.config.cache.CacheConfig.sliding_window",
    ),
    "a part of the configuration is gone": (
        (f"{CONFIG}/vllm.py", "    lora_config: ", "    lora: "),
        "vllm.config.vllm.VllmConfig.lora_config",
    ),
    "a field of the step's metadata is gone": (
        ("vllm/v1/attention/backends/mamba_attn.py", "    num_decode_tokens: int\n", ""),
        "ShortConvAttentionMetadata.num_decode_tokens",
    ),
    "a member of an enumeration is gone": (
        ("vllm/v1/attention/backends/registry.py", "    SHORT_CONV =", "    SHORT ="),
        "MambaAttentionBackendEnum.SHORT_CONV",
    ),
    "a class demands a method": (
        (f"{LAYERS}/mamba/abstract.py", "class MambaBase(", DEMANDING + "class MambaBase(Demanding, "),
        "MambaBase without get_grid, which CarrySlice lacks",
    ),
    "a method of ours is given more": (
        (f"{MODELS}/config.py", "def verify_and_update_config(", "def verify_and_update_config(why, "),
        "Checks.verify_and_update_config without the argument why",
    ),
    "a method of ours is not called": (
        ("vllm/platforms/interface.py", "get_mamba_state_dtype_from_config", "get_dtypes"),
        "call of get_mamba_state_dtype_from_config",
    ),
    "the layers of LoRA are told to nobody": (
        ("vllm/lora/model_manager.py", "self.model.lora_manager = self", "self.model.loras = self"),
        "call of lora_manager",
    ),
    "an adapter is added by another method": (
        ("vllm/lora/punica_wrapper/punica_base.py", "def add_lora_linear(", "def add_linear("),
        "add_lora_linear",
    ),
    "an engine's argument is gone": (
        ("vllm/engine/arg_utils.py", "    kv_cache_memory_bytes:", "    kv_bytes:"),
        "argument kv_cache_memory_bytes of engine",
    ),
    "a variable is gone": (("vllm/envs.py", "VLLM_CPU_CI_ENV", "VLLM_CPU_CI"), "variable VLLM_CPU_CI_ENV"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_vllm_shows(name):
    (path, old, new), expected = CHANGES[name]
    found = complaints(Sources(INSTALLED, {path: (old, new)}))
    assert any(expected in each for each in found), found


def test_a_method_of_ours_that_has_another_name_in_vllm_shows(installed):
    edit = {f"{LAYERS}/mamba/abstract.py": ("def is_kv_cache_tp_replicated(", "def is_replicated(")}
    lost = gathered(installed, "overrides") - gathered(Sources(INSTALLED, edit), "overrides")
    assert lost == {"CarrySlice.is_kv_cache_tp_replicated"}
