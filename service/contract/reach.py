"""How far pruning can take a model, by the group table that inspection recorded; no torch.

The floor is the whole network with every group at its least number of units. What an operator pins stays.
"""

from collections.abc import Mapping
from typing import Any

from service.contract.prune_spec import Absolute, PruneSpec

FACT_OF = {"macs": "macs", "params": "parameters", "bytes": "bytes"}
UNITS = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}
MOST_NAMED = 3


def floor(facts: Mapping[str, Any]) -> dict[str, float] | None:
    """The least fraction of each cost that pruning can leave; None where the units are not known."""
    units = facts.get("units")
    if not units:
        return None
    return {cost: units["floor"][fact] / facts[fact] for cost, fact in FACT_OF.items() if facts.get(fact)}


def pinned(facts: Mapping[str, Any]) -> list[str]:
    """What pruning leaves as it is, and why, in words; the most channels first."""
    units = facts.get("units") or {}
    notes = sorted(units.get("pinned", ()), key=lambda note: -note["channels"])
    return [f"{note['node']} ({note['operator']}): {note['channels']} channels, {note['reason']}" for note in notes]


def wanted_fraction(spec: PruneSpec, facts: Mapping[str, Any]) -> tuple[str, float] | None:
    """The cost that a job asks for, as a fraction of the model's; None where only limits or latency are asked for."""
    asked = spec.config.target.cost
    if asked is None or asked[0] not in FACT_OF or not facts.get(FACT_OF[asked[0]]):
        return None
    name, cost = asked
    return name, cost.absolute / facts[FACT_OF[name]] if isinstance(cost, Absolute) else cost


def obstacle(spec: PruneSpec, facts: Mapping[str, Any]) -> str | None:
    """Why the target cannot be met, in words; None where it can, or where that is not known."""
    least, wanted = floor(facts), wanted_fraction(spec, facts)
    if least is None or wanted is None:
        return None
    name, fraction = wanted
    if fraction >= 1:
        return f"the model has {facts[FACT_OF[name]]:,} {UNITS[name]} already; ask for less"
    if fraction >= least[name]:
        return None
    held = pinned(facts)
    named = "; ".join(held[:MOST_NAMED]) + (f"; and {len(held) - MOST_NAMED} more" if len(held) > MOST_NAMED else "")
    why = f" Pinned: {named}." if held else ""
    return (
        f"{fraction:.3g} of the {UNITS[name]} cannot be reached: with every group at its floor {least[name]:.3g} "
        f"are left. Ask for {least[name] * 1.001:.3g} or more.{why}"
    )
