"""Configuration and tokenizer of a saved folder load where torch is not installed."""

import pytest
from clean_process import put_into_hub_cache, run_in_clean_process
from tiny import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = None  # not installed

from transformers import AutoConfig, AutoTokenizer

[source] = sys.argv[1:]
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
assert type(config).__module__.startswith("transformers_modules."), type(config).__module__
assert (config.num_loops, config.hidden_scale, config.stages[0].later_see) == (3, 0.6, "window")
config.save_pretrained("again")
assert AutoTokenizer.from_pretrained(source, trust_remote_code=True)("a b").input_ids == [3, 4]
assert sys.modules["torch"] is None
"""


@pytest.mark.parametrize("source", ["folder", "someone/folder"])
def test_a_saved_folder_gives_its_configuration_and_tokenizer_without_torch(tmp_path, source):
    words = Tokenizer(models.WordLevel({"a": 3, "b": 4, "?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "folder"
    tiny_model(num_loops=3).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    put_into_hub_cache(folder, "someone/folder", tmp_path)
    run_in_clean_process(WITHOUT_TORCH, source, cwd=tmp_path)
    for name in ("config.json", "configuration_plt.py"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_installed_configuration_is_made_without_torch(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from configuration_plt import PLTConfig; PLTConfig()"
    run_in_clean_process(code, cwd=tmp_path)
