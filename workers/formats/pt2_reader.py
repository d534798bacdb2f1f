"""The strict reader of `.pt2` archives: an uploaded file in, a graph of known operators and its tensors out.

torch's own loader is made for files that one wrote oneself: it unpickles, evaluates expressions and compiles
names that it finds. This one is made for files of strangers. The zip is read by rules of our own (pt2_archive),
its JSON by a schema (pt2_schema), tensors as ranges of bytes (pt2_tensors), the graph through a table of allowed
operators (pt2_graph, operators), sizes by a grammar (symbols) and names by a pattern (pt2_names). Nothing is
unpickled, evaluated or looked up beyond those tables, and sample inputs are never opened.

What is refused is refused with `InputRejected`, whose detail names the operator, record or name and what to do.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, fx

from service.contract.errors import InputRejected
from workers.formats import pt2_schema as schema
from workers.formats.pt2_archive import Archive, malformed, open_archive
from workers.formats.pt2_graph import GraphBuilder, add_nodes, kind, only, possible_modules
from workers.formats.pt2_names import identifier, qualified_name
from workers.formats.pt2_schema import parse_payloads, parse_program
from workers.formats.pt2_tensors import read_tensors
from workers.graph.program import GraphProgram, HeldTensor
from workers.graph.tensor_meta import SymbolRange

HARMLESS_BUILTINS = {"input"}  # a usual name of an argument, which generated code never calls
MODEL = "model"  # torch.export.save writes one program under this name


def read_pt2(path: Path) -> GraphProgram:
    """The program in the archive at `path`; its tensors are views of the file, copied when written to.

    The file must stay as it is while the program lives. Raises `InputRejected`; codes are archive_malformed,
    version_unsupported, pickle_refused, code_refused, compiled_code_refused, operator_refused, name_refused,
    size_refused, dtype_refused, layout_refused, signature_refused.
    """
    archive = open_archive(path)
    check_preamble(archive)
    program = parse_program(archive.document(f"models/{MODEL}.json"))
    module = program.graph_module
    tensors = held_tensors(archive, module.signature)
    builder = GraphBuilder(
        values=module.graph.tensor_values,
        sizes=module.graph.sym_int_values,
        module_names=possible_modules(tensors, module.module_call_graph),
    )
    add_inputs(builder, module.signature, tensors)
    add_nodes(builder, module.graph.nodes)
    add_outputs(builder, module.signature)
    return GraphProgram(builder.graph, tensors, symbol_ranges(builder, program))


def check_preamble(archive: Archive) -> None:
    """The archive says that it is a pt2 archive with one program, in little-endian order."""
    if bytes(archive.require("archive_format")[:16]) != b"pt2":
        raise malformed("its archive_format is not pt2")
    if bytes(archive.require("byteorder")[:16]) != b"little":
        raise malformed("its byte order is not little-endian")
    models = [name for name in archive.records if name.startswith("models/")]
    if models != [f"models/{MODEL}.json"]:
        raise malformed(f"it holds {len(models)} programs, and one called {MODEL} is read")


def payloads(archive: Archive, folder: str) -> dict[str, Tensor]:
    """The tensors of `data/weights` or `data/constants`, by qualified name."""
    record = f"data/{folder}/{MODEL}_{folder}_config.json"
    return read_tensors(archive, f"data/{folder}", parse_payloads(archive.document(record), record).config)


def held_tensors(archive: Archive, signature: schema.Signature) -> dict[str, HeldTensor]:
    """All tensors that the signature names, in its order."""
    weights, constants = payloads(archive, "weights"), payloads(archive, "constants")
    held: dict[str, HeldTensor] = {}
    for name, persistent in declared_tensors(signature):
        stored = weights if persistent else constants
        if name not in stored:
            raise malformed(f"it has no values for {name[:120]!r}")
        if name in held:
            raise malformed(f"{name[:120]!r} is declared twice")
        held[qualified_name(name)] = HeldTensor(stored[name], persistent)
    check_prefixes(held)
    return held


def declared_tensors(signature: schema.Signature) -> Iterable[tuple[str, bool]]:
    """Names of parameters, buffers and constants, and whether they belong to the state dict."""
    for spec in signature.input_specs:
        if spec.parameter is not None:
            yield spec.parameter.parameter_name, True
        elif spec.buffer is not None:
            yield spec.buffer.buffer_name, spec.buffer.persistent
        elif spec.tensor_constant is not None:
            yield spec.tensor_constant.tensor_constant_name, False


def check_prefixes(names: Iterable[str]) -> None:
    """No tensor's name is a module's name too."""
    taken = set(names)
    for name in taken:
        parts = name.split(".")
        for end in range(1, len(parts)):
            if ".".join(parts[:end]) in taken:
                raise malformed(f"{'.'.join(parts[:end])!r} is a tensor and holds {name!r}")


def add_inputs(builder: GraphBuilder, signature: schema.Signature, tensors: dict[str, HeldTensor]) -> None:
    """Placeholders for the tensors that forward takes, then the network's own tensors."""
    for spec in signature.input_specs:
        if spec.user_input is not None:
            add_user_input(builder, spec.user_input.arg)
    if not builder.named:
        raise InputRejected("The model takes no tensor; export one that does.", code="signature_refused")
    for spec in signature.input_specs:
        owned = spec.parameter or spec.buffer or spec.tensor_constant
        if owned is not None:
            name = next(name for name, _ in declared_tensors(signature_of(spec)))
            builder.define(owned.arg.name, builder.graph.get_attr(name))
            check_stored(name, builder, owned.arg.name, tensors[name].value)
        elif spec.user_input is None and spec.constant_input is None:
            raise malformed(f"an input of the program is {kind(spec)}, which nobody understands")


def signature_of(spec: schema.InputSpec) -> schema.Signature:
    return schema.Signature(input_specs=(spec,), output_specs=())


def add_user_input(builder: GraphBuilder, given: schema.Argument) -> None:
    """A placeholder for a tensor; constants that the example call had are part of the graph already."""
    if given.as_tensor is not None:
        node = builder.graph.placeholder(identifier(given.as_tensor.name))
        if node.target not in HARMLESS_BUILTINS:
            node.target = node.name  # fx moves the node's name out of the way of what generated code calls
        builder.binding = True
        builder.define(given.as_tensor.name, node)
        builder.binding = False
    elif kind(given) not in {"as_none", "as_int", "as_float", "as_bool", "as_string"}:
        raise InputRejected(
            f"The model takes an input of kind {kind(given).removeprefix('as_')}; export it with tensors as inputs, "
            "each an argument of its own.",
            code="signature_refused",
        )


def check_stored(name: str, builder: GraphBuilder, value: str, stored: Tensor) -> None:
    """What the graph says of an own tensor is what is stored."""
    meta = builder.meta(value)
    if meta.shape != tuple(stored.shape) or meta.dtype != stored.dtype:
        raise malformed(f"the graph takes {name!r} as {meta.dtype} {meta.shape}, but {tuple(stored.shape)} is stored")


def add_outputs(builder: GraphBuilder, signature: schema.Signature) -> None:
    """Return the user's outputs; a buffer's new value is written into the buffer first."""
    returned: list[fx.Node] = []
    buffers = {
        spec.buffer.buffer_name: spec.buffer.arg.name for spec in signature.input_specs if spec.buffer is not None
    }
    for spec in signature.output_specs:
        only(spec, "output")
        if spec.buffer_mutation is not None:
            write_buffer(builder, buffers, spec.buffer_mutation)
        elif spec.user_output is not None and spec.user_output.arg.as_tensor is not None:
            returned.append(builder.node(spec.user_output.arg.as_tensor.name))
        elif spec.user_output is None or kind(spec.user_output.arg) != "as_none":
            raise InputRejected(
                "The model returns something that is no tensor; export it with tensors as outputs.",
                code="signature_refused",
            )
    if not returned:
        raise InputRejected("The model returns no tensor; export one that does.", code="signature_refused")
    output = builder.graph.output(returned[0] if len(returned) == 1 else tuple(returned))
    output.meta["val"] = None


def write_buffer(builder: GraphBuilder, buffers: Mapping[str, str], mutation: schema.BufferMutation) -> None:
    """A decomposed program returns the new values of its buffers; ours writes them. `buffers`: name -> value."""
    owner = buffers.get(mutation.buffer_name)
    if owner is None:
        raise malformed(f"it changes a buffer {mutation.buffer_name[:120]!r} that it does not have")
    arguments = (builder.node(owner), builder.node(mutation.arg.name))
    node = builder.graph.call_function(torch.ops.aten.copy_.default, arguments)
    node.meta["val"] = builder.meta(owner)


def symbol_ranges(builder: GraphBuilder, program: schema.Program) -> dict[str, SymbolRange]:
    """The range of each symbol that occurs."""
    ranges = {}
    for name in builder.bindings:
        given = program.range_constraints.get(name)
        smallest = given.min_val if given is not None and given.min_val is not None else 0
        ranges[name] = SymbolRange(max(smallest, 0), given.max_val if given is not None else None)
    return ranges
