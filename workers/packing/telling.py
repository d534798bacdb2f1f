"""What `stillhouse-pack` says: a verdict for people, or as JSON."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workers.packing.export import RefusedOperator
from workers.packing.verdict import Verdict

MOST_LINES = 20
# Code of a refusal -> what its own text does not say yet.
WAYS_OUT = {
    "signature_refused": "Pack a module around the network that takes one tensor and returns its logits alone.",
}


def as_json(path: Path, verdict: Verdict, refused: Sequence[RefusedOperator], notes: Sequence[str]) -> dict[str, Any]:
    """All that is known, as plain JSON."""
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "accepted": verdict.accepted,
        "error": None if verdict.facts is not None else {"code": verdict.code, "detail": verdict.reason},
        "difference": verdict.difference,
        "refused_operators": [vars(operator) for operator in refused],
        "notes": list(notes),
        "model": verdict.facts,
    }


def in_lines(path: Path, verdict: Verdict, refused: Sequence[RefusedOperator], notes: Sequence[str]) -> Iterator[str]:
    """The same for people."""
    yield f"wrote {path} ({megabytes(path.stat().st_size)})"
    if verdict.facts is None:
        yield from refusal(verdict, refused)
    elif not verdict.accepted:
        yield (
            f"DIFFERENT: the archive's outputs differ from the network's by {verdict.difference:.2g} of the largest. "
            "Does the network draw random numbers in evaluation mode, or change its own state?"
        )
    else:
        yield f"ACCEPTED: outputs differ from the network's by at most {verdict.difference:.2g} of the largest"
        yield from description(verdict.facts)
    for note in notes:
        yield f"note: {note}"


def refusal(verdict: Verdict, refused: Sequence[RefusedOperator]) -> Iterator[str]:
    """Why the service would refuse it: every operator at once, where it is that."""
    if not refused:
        yield f"REFUSED ({verdict.code}): {verdict.reason}"
        if verdict.code in WAYS_OUT:
            yield f"  {WAYS_OUT[verdict.code]}"
        return
    yield f"REFUSED ({verdict.code}): {len(refused)} of its operators are not taken"
    for operator in refused[:MOST_LINES]:
        yield f"  {operator.reason}"
        if operator.place:
            yield f"    {operator.place}"
    yield "  Write these parts with other operators of PyTorch, or leave them to what calls the model."


def description(facts: dict[str, Any]) -> Iterator[str]:
    """Interface and size of an accepted model, what of it can be pruned, and what cannot."""
    for name in ("inputs", "outputs"):
        for tensor in facts[name]:
            yield f"  {name.removesuffix('s'):7} {tensor['name']} {shape(tensor['shape'])} {tensor['dtype']}"
    yield f"  size    {facts['parameters']:,} parameters, {facts['macs']:,} MACs, {megabytes(facts['bytes'])}"
    units = facts["units"]
    if units is not None:
        yield from prunable(facts, units)
    for note in facts["notes"]:
        yield f"  note    {note}"


def prunable(facts: dict[str, Any], units: dict[str, Any]) -> Iterator[str]:
    """The groups in a line, how small it can get, and every operator that pins channels."""
    groups, floor = units["groups"], units["floor"]
    count = len(groups) + units["groups_left_out"]
    listed = sum(group["units"] for group in groups)
    more = " and more" if units["groups_left_out"] else ""
    yield f"  prune   {count} {'group' if count == 1 else 'groups'} with {listed:,}{more} prunable units"
    if count:
        yield (
            f"  floor   {floor['parameters']:,} parameters ({floor['parameters'] / max(facts['parameters'], 1):.1%}), "
            f"{floor['macs']:,} MACs ({floor['macs'] / max(facts['macs'], 1):.1%}): as small as pruning can make it"
        )
    else:
        yield "  floor   nothing can be pruned; it can still be a teacher, or the student of another"
    for pinned in units["pinned"][:MOST_LINES]:
        tensors = ", ".join(pinned["tensors"]) + (" …" if pinned["tensors_left_out"] else "")
        where = f" of {tensors}" if tensors else ""
        by = f"{pinned['operator']} ({pinned['node']}): {pinned['reason']}"
        yield f"  pinned  {pinned['channels']:,} channels{where} by {by}"
    hidden = len(units["pinned"][MOST_LINES:]) + units["pinned_left_out"]
    if hidden:
        yield f"  pinned  … and {hidden} more (--json lists them)"


def shape(sizes: Sequence[Any]) -> str:
    return f"({', '.join(map(str, sizes))})"


def megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
