"""How far pruning can take a model, by the group table that inspection recorded; no torch.

The recorded floor is the whole network with two units left in every group, and exact. A job with limits of its own
(`min_units`, `keep`, `round_to`) has another, which the table bounds from below: what leaves a network saves at most
the sum of what its units save alone. Whether such a job can meet its target is known on the worker, before anything
is removed. What an operator pins stays.
"""

from collections.abc import Mapping
from typing import Any

from service.contract.prune_spec import Absolute, PruneConfig, PruneSpec

FACT_OF = {"macs": "macs", "params": "parameters", "bytes": "bytes"}
UNITS = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}
RECORDED_UNITS = 2  # in every group at the recorded floor
MOST_NAMED = 3


def floor(spec: PruneSpec, facts: Mapping[str, Any]) -> dict[str, float] | None:
    """The least fraction of each cost that pruning can leave, or a bound below it; None where the units are unknown."""
    units = facts.get("units")
    if not units:
        return None
    return {cost: least(spec.config, facts, fact) / facts[fact] for cost, fact in FACT_OF.items() if facts.get(fact)}


def least(config: PruneConfig, facts: Mapping[str, Any], fact: str) -> float:
    """The least of a cost that can be left, or a bound below it."""
    recorded = float(facts["units"]["floor"][fact])
    if exact(config):
        return recorded
    return max(recorded if config.min_units >= RECORDED_UNITS else 0.0, least_by_groups(config, facts, fact))


def least_by_groups(config: PruneConfig, facts: Mapping[str, Any], fact: str) -> float:
    """What is left of a cost if every unit that may go saves what it saves alone; 0 where some are not listed."""
    units = facts["units"]
    if units["groups_left_out"]:
        return 0
    saved = sum((group["units"] - lowest(config, group)) * group[f"{fact}_per_unit"] for group in units["groups"])
    return float(max(0, facts[fact] - saved))


def lowest(config: PruneConfig, group: Mapping[str, Any]) -> int:
    """The fewest units that a group may be left with; cf. workers/pruning/limits.py."""
    least = max(config.min_units, config.keep.get(group["name"], 1))
    quantum = config.round_to if group["units"] >= config.round_to else 1
    return int(min(-(-least // quantum) * quantum, group["units"]))


def exact(config: PruneConfig) -> bool:
    """Whether the recorded floor is the job's own."""
    return config.min_units == RECORDED_UNITS and not config.keep and config.round_to == 1


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
    floors, wanted = floor(spec, facts), wanted_fraction(spec, facts)
    if floors is None or wanted is None:
        return None
    name, fraction = wanted
    if fraction >= 1:
        return f"the model has {facts[FACT_OF[name]]:,} {UNITS[name]} already; ask for less"
    if fraction >= floors[name]:
        return None
    bound = "" if exact(spec.config) else "at least "
    held = pinned(facts)
    named = "; ".join(held[:MOST_NAMED]) + (f"; and {len(held) - MOST_NAMED} more" if len(held) > MOST_NAMED else "")
    why = f" Pinned: {named}." if held else ""
    return (
        f"{fraction:.3g} of the {UNITS[name]} cannot be reached: with every group at its floor {bound}"
        f"{floors[name]:.3g} are left. {advice(spec.config, floors[name])}.{why}"
    )


def advice(config: PruneConfig, least: float) -> str:
    """What to ask for where `least` of a cost is left at the floor."""
    ways = [f"ask for {least * 1.001:.3g} or more"] if least * 1.001 < 1 else []
    ways += [] if exact(config) else ["lower min_units, keep or round_to"]
    text = ", or ".join(ways) or "nothing can be removed"
    return text[0].upper() + text[1:]


def reachable(spec: PruneSpec, facts: Mapping[str, Any]) -> bool | None:
    """Whether the target can be met; None where only a worker can tell."""
    if obstacle(spec, facts) is not None:
        return False
    if spec.config.target.cost is None:
        return True
    known = floor(spec, facts) is not None and wanted_fraction(spec, facts) is not None
    return True if known and exact(spec.config) else None
