# SPDX-License-Identifier: Apache-2.0
"""Which modules PEFT adapts when nobody names any: those that it has for Llama, whose names ours are."""

import sys


def tell_peft(model_type: str) -> None:
    """Enter a model type in PEFT's tables of default modules, if PEFT has been imported.

    PEFT is not imported here: that takes seconds, and most models have no adapter. So it must be imported before a
    model is built; otherwise it asks for `target_modules`, as for any model that it does not know.
    """
    constants = sys.modules.get("peft.utils.constants")
    tables = {} if constants is None else vars(constants)
    for name, table in tables.items():
        if name.endswith("_MODULES_MAPPING") and "llama" in table:
            table.setdefault(model_type, table["llama"])
