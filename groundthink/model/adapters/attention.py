"""Plain attention: keys and values, and no state to certify."""

from __future__ import annotations

import math
from typing import Any

from groundthink.model.adapters.base import Adapter, by_layer_type
from groundthink.model.adapters.sight import Sight


class PlainAttention(Adapter):
    """Any model whose cache holds keys and values only. It can be probed; there is no memory in it."""

    family = "attention without a state"
    model_types = ()

    @classmethod
    def sights(cls, config: Any) -> tuple[Sight, ...]:
        """See `Adapter`."""
        if getattr(config, "layer_types", None):
            return by_layer_type(config)
        window = getattr(config, "sliding_window", None)
        return (Sight(window=math.inf if window is None else window),) * config.num_hidden_layers
