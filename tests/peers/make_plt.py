# SPDX-License-Identifier: Apache-2.0
"""`python tests/peers/make_plt.py FOLDER` saves the tiny PLT on which other packages' tests run, with a tokenizer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what tests share

from chat_folder import ascii_tokenizer
from tiny import tiny_model

folder, tokenizer = Path(sys.argv[1]), ascii_tokenizer()
tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
# as many key heads as query heads: PEFT's tests combine adapters of rank 20
model = tiny_model(num_loops=3, num_key_value_heads=4, vocab_size=len(tokenizer), **tokens)
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
