"""The contract over every method of ours: a new one is under it as soon as it is in the registry."""

from __future__ import annotations

from methods import registry
from methods.contract import MethodContract


def _spellings() -> list[str]:
    """Every rule; the first one with every allocation, and the first calibrated one with every refinement."""
    rules = [name for name in registry.names() if not registry.method(name).outside]
    spread = [f"{rules[0]}@{name}" for name in registry.allocations() if name != "uniform"]
    refined = [f"{rules[1]}+{name}" for name in registry.refinements()]
    return [*rules, *spread, *refined]


for _spelling in _spellings():
    _name = "Test" + "".join(
        part.title() for part in _spelling.replace("@", "-at-").replace("+", "-with-").split("-")
    )
    globals()[_name] = type(_name, (MethodContract,), {"method": _spelling, "__module__": __name__})
