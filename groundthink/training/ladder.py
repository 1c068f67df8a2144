"""A ladder: one phase written once, climbed rung by rung.

    - name: gym
      steps: 400
      mix: [{source: kv_recall, options: {n_pairs: 2}}]
      advance: [{metric: kv_recall.exact, at_least: 0.70}]
      ladder: {"mix[0].options.n_pairs": [2, 3, 4, 5]}

stands for four phases `gym-2` to `gym-5`, each with the steps and thresholds of the one: an event says for each rung
whether its threshold or its step cap ended it. Several paths climb together, a rung at a time.
"""

from __future__ import annotations

import copy
from typing import Any

from groundthink.errors import ConfigError
from groundthink.training.strict import set_value


def climb(raw: Any, problems: list[str]) -> Any:
    """The plain values of a run with every ladder written out; what is wrong goes into `problems`.

    What is not shaped as a run is passed on for others to refuse.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("phases"), list):
        return raw
    phases: list[Any] = []
    for i, phase in enumerate(raw["phases"]):
        if isinstance(phase, dict) and "ladder" in phase:
            phases += _rungs(phase, f"phases[{i}].ladder", problems)
        else:
            phases.append(phase)
    return {**raw, "phases": phases}


def _rungs(phase: dict[str, Any], path: str, problems: list[str]) -> list[Any]:
    ladder = phase["ladder"]
    bare = {name: value for name, value in phase.items() if name != "ladder"}
    shaped = isinstance(ladder, dict) and ladder and all(isinstance(v, list) and v for v in ladder.values())
    if not shaped or not all(isinstance(target, str) for target in ladder):
        problems.append(f"{path} is {ladder!r}, it must be paths with a list of values each, as 'length: [64, 128]'")
        return [bare]
    sizes = {target: len(values) for target, values in ladder.items()}
    if len(set(sizes.values())) > 1:
        told = " and ".join(f"{target} {size}" for target, size in sizes.items())
        problems.append(f"{path} has lists of different lengths: {told}; a rung takes one value of each")
        return [bare]
    rungs = []
    for values in zip(*ladder.values(), strict=True):
        rung = copy.deepcopy(bare)
        rung["name"] = f"{bare.get('name', 'train')}-{values[0]}"
        for target, value in zip(ladder, values, strict=True):
            try:
                set_value(rung, target, value, where=path)
            except ConfigError as error:
                problems.append(f"{path}: {error.what}")
                return [bare]
        rungs.append(rung)
    return rungs
