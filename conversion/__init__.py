"""Published checkpoints become PLT: `plt convert`.

Start at `convert.py`, which calls the folders in this order: `reading` a source, by its format in `sources`; the
`plan` of its tensors; writing `tokenizers` and `target`; `checks` of what was written.
"""
