"""One network through everything that Stillhouse does with a graph: read, group, halve, run, train, write.

The network is exported in evaluation mode with a dynamic batch, and its archive is read by the strict reader. From
then on there is only the graph. Half of the units of every group go, drawn by a seed.
"""

import random
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.architectures import export, quiet, specimen
from tests.reference.groups import in_double, zeroed_outputs
from workers.formats.onnx_file import converted
from workers.formats.pt2_reader import read_pt2
from workers.graph.cost import graph_cost
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.surgery import remove

LONGEST = 110  # characters of an error
Outputs = tuple[Tensor, ...]


def row(name: str) -> dict[str, Any]:
    """What became of the network `name` of tests/architectures.py, as plain JSON.

    "exact": whether the graph computes the bits of the eager network (torch's fused encoder layers left out);
    "groups", "prunable": how many, and the share of parameters of which some unit holds a part; "parameters" and
    "macs": before and after; "masked", "pt2", "onnx": the largest difference relative to the largest output (of the
    removed units at zero, in float64; of torch.export.load and our own reader; of ONNX Runtime); "trains": whether
    one step found finite gradients; "failures": step -> why, for what did not work.
    """
    facts: dict[str, Any] = {"name": name, "failures": {}}
    network, inputs = specimen(name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(facts, "read", lambda: compressed(facts, network, inputs, Path(folder)))
    return facts


def step(facts: dict[str, Any], name: str, action: Callable[[], Any]) -> Any:
    """What `action` gives, noted under `name`; a failure is noted in its place."""
    try:
        facts[name] = action()
    except Exception as error:  # noqa: BLE001  a row that fails is a result
        facts["failures"][name] = told(error)
        return None
    return facts[name]


def told(error: BaseException) -> str:
    """The first cause of an error, which knows best, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:LONGEST]}{'…' * (len(words) > LONGEST)}"


def compressed(facts: dict[str, Any], network: nn.Module, inputs: Outputs, folder: Path) -> bool:
    """Everything from the export on; each step notes itself."""
    archive = export(network, inputs, folder / "original.pt2")
    graph = lift(read_pt2(archive))
    torch.backends.mha.set_fastpath_enabled(False)  # other kernels, which an export does not contain
    facts["exact"] = same(outputs(network.eval(), inputs), outputs(graph, inputs))
    groups = find_groups(graph)
    selection = half(groups)
    facts |= {
        "groups": len(groups),
        "prunable": prunable_share(graph, groups),
        "pinned": sorted({pinned.operator for pinned in groups.pinned} - {"output"}),
        "parameters": [groups.size.parameters],
        "macs": [groups.size.macs],
    }
    pruned = step(facts, "removed", lambda: remove(graph, selection, groups))
    if pruned is not None:
        cost = graph_cost(pruned)
        facts["removed"] = sum(map(len, selection.values()))
        facts["parameters"].append(cost.parameters)
        facts["macs"].append(cost.macs)
        if any(selection.values()):
            step(facts, "masked", lambda: masked_difference(lift(read_pt2(archive)), selection, inputs))
        step(facts, "trains", lambda: train_step(pruned, inputs))
        more = tuple(torch.cat([given, given[:2]]) for given in inputs)  # another batch than that of the export
        program = step(facts, "program", lambda: exported(pruned, inputs))
        facts.pop("program", None)
        if program is not None:
            step(facts, "pt2", lambda: archive_difference(program, pruned, more, folder / "pruned.pt2"))
            step(facts, "onnx", lambda: onnx_difference(program, pruned, more))
    return True


def half(groups: Groups) -> dict[str, list[int]]:
    draw = random.Random(0)
    return {name: draw.sample(range(group.num_units), group.num_units // 2) for name, group in groups.items()}


def prunable_share(graph: LayerGraph, groups: Groups) -> float:
    """The share of parameters that lie in an index of a tensor's axis that some unit holds."""
    touched = {name: np.zeros(tuple(weight.shape), dtype=bool) for name, weight in graph.named_parameters()}
    for group in groups.values():
        for member in group.members:
            if member.tensor in touched:
                np.moveaxis(touched[member.tensor], member.axis, 0)[member.indices.ravel()] = True
    return float(sum(one.sum() for one in touched.values()) / sum(one.size for one in touched.values()))


def outputs(network: nn.Module, inputs: Outputs) -> Outputs:
    with torch.no_grad():
        found = network(*inputs)
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def same(left: Outputs, right: Outputs) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def difference(found: Outputs, expected: Outputs) -> float:
    """The largest difference, relative to the largest output."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def masked_difference(graph: LayerGraph, selection: Mapping[str, list[int]], inputs: Outputs) -> float:
    """How far surgery is from setting the units to zero, in float64 and with drawn weights."""
    wide = tuple(given.double() if given.is_floating_point() else given for given in inputs)
    network = in_double(graph)
    groups = find_groups(network)
    expected = zeroed_outputs(network, groups, selection, wide)
    expected = expected if isinstance(expected, tuple) else (expected,)
    return difference(outputs(remove(network, selection, groups), wide), expected)


def train_step(network: LayerGraph, inputs: Outputs) -> bool:
    """One step of SGD in training mode; whether all gradients are there and finite, and the weights have moved."""
    before = [weight.detach().clone() for weight in network.parameters()]
    found = network.train()(*inputs)
    sum(part.square().mean() for part in (found if isinstance(found, tuple) else (found,))).backward()
    finite = all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in network.parameters())
    torch.optim.SGD(network.parameters(), lr=1e-2).step()
    network.eval()
    return finite and any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def exported(network: LayerGraph, inputs: Outputs) -> torch.export.ExportedProgram:
    with quiet():
        dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
        return torch.export.export(network, inputs, dynamic_shapes=dynamic)


def archive_difference(
    program: torch.export.ExportedProgram, network: LayerGraph, inputs: Outputs, path: Path
) -> float:
    """Of what torch.export.load and our own reader make of the file, the one that is further off."""
    torch.export.save(program, path)
    expected = outputs(network, inputs)
    theirs = outputs(torch.export.load(path).module(), inputs)
    return max(difference(theirs, expected), difference(outputs(lift(read_pt2(path)), inputs), expected))


def onnx_difference(program: torch.export.ExportedProgram, network: LayerGraph, inputs: Outputs) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(converted(program), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return difference(tuple(map(torch.from_numpy, found)), outputs(network, inputs))
