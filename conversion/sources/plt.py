# SPDX-License-Identifier: Apache-2.0
"""PLT itself: a plain model or a vanilla loop that was trained with this package, to switch the mechanisms on."""

from dataclasses import fields as dataclass_fields
from typing import Any

from configuration_plt import PLTConfig
from conversion_plt.fields import Fields
from conversion_plt.source import Source


def read_fields(fields: Fields) -> dict[str, Any]:
    names = [field.name for field in dataclass_fields(PLTConfig)]
    return {name: fields.take(name) for name in names if name in fields.left}


SOURCE = Source(
    model_type="plt",
    title="PLT of this package",
    becomes="itself; `--to-plt` switches the mechanisms on in a plain model or a vanilla loop",
    read_fields=read_fields,
)
