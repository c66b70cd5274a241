# SPDX-License-Identifier: Apache-2.0
"""PEFT's own tests of decoder models, unmodified but for their list of models, which is a tiny PLT.

Default target modules are those of `modeling_plt/modeling_plt.py`. Tests of a model that they name are left out.
"""

import inspect
import sys
from types import ModuleType

import peft
from datasets import Dataset, DatasetDict

import modeling_plt  # noqa: F401, for `AutoModelForCausalLM`

MODEL = "build/peers/plt"
QUOTES = ["So many books, so little time.", "A room without books is like a body without a soul."]

sys.path.insert(0, f"build/peers/peft-{peft.__version__}")
# their helpers import it for models of images
sys.modules["diffusers"] = ModuleType("diffusers")
sys.modules["diffusers"].StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
from tests import test_decoder_models as theirs  # noqa: E402

del sys.modules["diffusers"]

theirs.PEFT_DECODER_MODELS_TO_TEST[:] = theirs.SMALL_GRID_MODELS[:] = [MODEL]
theirs.load_dataset_english_quotes = lambda: DatasetDict(train=Dataset.from_dict({"quote": QUOTES * 8}))  # offline


def names_a_model(test) -> bool:
    return inspect.isfunction(test) and 'model_id = "' in inspect.getsource(test)


OTHERS = [name for name, _ in inspect.getmembers(theirs.TestDecoderModels, names_a_model)]
TestDecoderModels = type("TestDecoderModels", (theirs.TestDecoderModels,), dict.fromkeys(OTHERS))
