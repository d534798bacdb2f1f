"""A network as an archive of `torch.export`: an uploaded `model.pt2` -> our canonical form, and back to a module.

The canonical form is the archive itself, less what is never opened (sample inputs, extras): the strict reader read
it when it came, and reads it again, by the same rules, in every job. There is no second format in which the two
could come to differ.

A job feeds batches of any size to one input and learns from rows of logits, so a network has to take one float32
tensor (B, ...), or int64 token ids (B, T), and return one float32 (B, K), where the batch B is free and all else is
fixed; a length T of tokens may be free too.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from service.contract.errors import InputRejected
from workers.formats.pt2_archive import LOCAL, open_archive
from workers.formats.pt2_reader import read_pt2
from workers.formats.token_inputs import TOKENS, are_tokens, has_free_length, token_facts, token_notes
from workers.formats.units import units_of
from workers.formats.weights import check_finite, short
from workers.graph.cost import graph_cost
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.tensor_meta import Symbol, SymbolicSize, TensorMeta

PROGRAM = "model.pt2"
ALIGNMENT = 64  # bytes, as torch aligns records, so that tensors need no copy
PADDING = struct.Struct("<2sH")  # an extra field of zip: its kind and its length
EXPORT = (
    "Export it with an example batch of 2 or more and a dynamic dimension 0: torch.export.export(model, "
    '(torch.randn(2, …),), dynamic_shapes=({0: torch.export.Dim("batch")},)).'
)


def read_graph(path: Path, out: Path) -> dict[str, Any]:
    """Read an uploaded archive strictly, write what of it is read to `out / PROGRAM`, and return the facts.

    Raises `InputRejected`: what `read_pt2` and `lift` raise, and "not_finite", "dtype_refused", "batch_baked",
    "signature_refused" for a network that a job could not use.
    """
    network = lift(read_pt2(path))
    check_interface(network)
    check_weights(network)
    facts = graph_facts(network)
    facts["notes"] = [*notes_on(network), *facts["notes"]]
    write_records(open_archive(path).records, out / PROGRAM)
    return facts


def load_graph(folder: Path) -> LayerGraph:
    """The network of the archive in `folder`, on the CPU, in evaluation mode."""
    return lift(read_pt2(folder / PROGRAM))


def graph_facts(network: LayerGraph) -> dict[str, Any]:
    """What the record of a model says of such a network."""
    cost = graph_cost(network)
    (name, takes), (returns,) = next(iter(network.inputs.items())), network.outputs
    units, notes = units_of(lambda: network)
    return {
        "format": "pt2",
        "architecture": None,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "bytes": cost.bytes,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "inputs": [described(name, takes)],
        "outputs": [described("logits", returns)],
        "units": units,
        "notes": [*token_notes(network), *notes],
        **token_facts(network),
    }


def described(name: str, tensor: TensorMeta) -> dict[str, Any]:
    """A tensor on the wire; its batch is a word, and so is a free length of tokens."""
    example = [TOKENS] if has_free_length(tensor) else tensor.example_shape[1:]
    return {"name": name, "shape": ["batch", *example], "dtype": short(tensor.dtype)}


def notes_on(network: LayerGraph) -> list[str]:
    """What the exporter did not vouch for."""
    (takes,) = network.inputs.values()
    assert isinstance(takes.shape[0], SymbolicSize)  # noqa: S101  check_interface has refused all else
    vouched = network.symbols[str(getattr(takes.shape[0].expression, "name", ""))]
    if vouched.largest is None:
        return []
    return [f"exported for batches of at most {vouched.largest}; jobs may use larger ones, and compare all outputs"]


# What a job can use ----------------------------------------------------------------------------------------------


def check_interface(network: LayerGraph) -> None:
    """`InputRejected` unless the network maps one tensor (B, ...), float32 or token ids, to one (B, K), with B free."""
    if len(network.inputs) != 1:
        refuse(f"The model takes {len(network.inputs)} tensors ({', '.join(network.inputs)}); expected one.")
    if len(network.outputs) != 1:
        refuse(f"The model returns {len(network.outputs)} tensors; expected one, of logits (batch, classes).")
    ((name, takes),), (returns,) = network.inputs.items(), network.outputs
    for what, tensor in ((f"input {name}", takes), ("output", returns)):
        if tensor.dtype.is_floating_point and short(tensor.dtype) != "float32":
            refuse(f"The {what} has type {short(tensor.dtype)}; expected float32: model.float().", "dtype_refused")
        if not tensor.dtype.is_floating_point and (tensor is returns or not are_tokens(tensor)):
            refuse(
                f"The {what} has type {short(tensor.dtype)} and {len(tensor.shape)} dimensions; expected float32, or "
                "int64 token ids (batch, tokens) as input.",
                "dtype_refused",
            )
    if len(takes.shape) < 2:
        refuse(f"The input {name} has {len(takes.shape)} dimensions; expected (batch, …).")
    check_batch(name, takes)
    if len(returns.shape) != 2 or returns.shape[0] != takes.shape[0] or not isinstance(returns.shape[1], int):
        refuse(f"The output has shape {shown(returns)}; expected one row of logits per example, (batch, K).")


def check_batch(name: str, takes: TensorMeta) -> None:
    """`InputRejected` unless dimension 0, and no other but a length of tokens, may have any size."""
    batch, *others = takes.shape
    if not isinstance(batch, SymbolicSize):
        refuse(f"The export took in its batch: input {name} is always {shown(takes)}. {EXPORT}", "batch_baked")
    if not isinstance(batch.expression, Symbol):
        refuse(f"The input {name} takes only batches of certain sizes. {EXPORT}", "batch_baked")
    free = [place for place, size in enumerate(others, 1) if not isinstance(size, int)]
    if free and not has_free_length(takes):
        refuse(
            f"Besides the batch, dimension {', '.join(map(str, free))} of the input {name} is dynamic too; "
            f"expected the size of the data's examples. {EXPORT}"
        )


def shown(tensor: TensorMeta) -> list[str]:
    """A shape for people."""
    return [
        str(size) if isinstance(size, int) else getattr(size.expression, "name", f"≈{size.hint}")
        for size in tensor.shape
    ]


def refuse(fault: str, code: str = "signature_refused") -> NoReturn:
    """Raise `InputRejected`."""
    raise InputRejected(fault, code=code)


def check_weights(network: nn.Module) -> None:
    """`InputRejected` for NaN or infinity in weights and statistics; a buffer may mask with infinity."""
    masks = {
        name: buffer.masked_fill(buffer.isinf(), 0)
        for name, buffer in network.named_buffers()
        if buffer.is_floating_point() and not name.endswith(("running_mean", "running_var"))
    }
    check_finite({**dict(network.named_parameters()), **dict(network.named_buffers()), **masks})


# The canonical file ----------------------------------------------------------------------------------------------


def write_records(records: Mapping[str, memoryview], path: Path) -> None:
    """Write records as an archive that the strict reader takes: stored, aligned, without dates."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in records.items():
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            info.file_size = len(contents)
            info.extra = padding(archive.start_dir + LOCAL.size + len(info.filename))
            with archive.open(info, "w") as file:
                file.write(contents)


def padding(position: int) -> bytes:
    """An extra field after which contents whose header would end at `position` (bytes) are aligned."""
    length = -(position + PADDING.size) % ALIGNMENT
    return PADDING.pack(b"FB", length) + b"Z" * length
