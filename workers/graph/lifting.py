"""From a graph of ATen calls to a network of ordinary layers under their original names.

An exported graph computes with bare tensors: `aten.conv2d(x, layer1.conv.weight, ...)`. Lifting finds that
`layer1.conv` owns exactly the tensors of that call and puts an `nn.Conv2d` there, so that what comes out trains,
evaluates, loads a plain state dict, prunes and exports as the original did. A call whose tensors are not exactly
those of one layer (a weight that is computed, the packed projection of an attention) stays a call on free
parameters, with the same result.

What the export baked in follows the module again: dropout and batch norm obey `train()` and `eval()`, attention's
dropout too, counters of batches are the layers' own, and new tensors are made where the input lies.

A layer's name is where its tensors stand. A tensor that stands in several places (tied embeddings) is one object
in all of them, and the exporter's record of the calling module says which place a call means. A module that
stands in several places is one module in all of them.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from workers.graph.calls import (
    arguments_of,
    drop_argument,
    is_aten,
    is_mutating,
    operator_name,
    overload_of,
    schema_arguments,
    set_argument,
)
from workers.graph.functionalization import functionalize
from workers.graph.layer_graph import LayerGraph
from workers.graph.layers import DROPOUTS, LAYERS, TRAINING_ARGUMENTS, Call, LayerRow
from workers.graph.module_tree import container_at, module_at, own_tensors, place_module, place_tensor, split_name
from workers.graph.program import GraphProgram
from workers.graph.propagation import check_shapes
from workers.graph.recomposition import recompose
from workers.graph.switches import DeviceOf, DropoutRate, TrainingFlag

COUNTER = "num_batches_tracked"


@dataclass
class Lifting:
    """What is known while one program is lifted."""

    graph: fx.Graph
    root: nn.Module
    names: Mapping[int, list[str]]  # id of a tensor -> every name it has
    made: dict[str, str] = field(default_factory=dict)  # module name -> how its layer was configured

    def owned(self, argument: Any) -> Tensor | None:
        """The tensor behind an argument that is a parameter or buffer itself."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            module, leaf = split_name(str(argument.target))
            return own_tensors(container_at(self.root, module))[leaf]
        return None

    def call_module(self, before: fx.Node, name: str, *arguments: Any) -> fx.Node:
        """A new call of the module at `name`, in front of `before`."""
        with self.graph.inserting_before(before):
            node = self.graph.call_module(name, arguments)
        node.meta["val"] = None
        return node

    def free_name(self, wanted: str) -> str:
        """`wanted`, with a number where a module or tensor already stands there."""
        for number in range(len(self.graph.nodes) + 2):
            name = f"{wanted}_{number}" if number else wanted
            parent, leaf = split_name(name)
            owner = module_at(self.root, parent)
            if owner is None or (module_at(self.root, name) is None and leaf not in own_tensors(owner)):
                return name
        raise AssertionError("one of as many names as nodes is free")


def lift(program: GraphProgram) -> LayerGraph:
    """The network that `program` writes, in evaluation mode, with the program's own tensors.

    Raises `InputRejected` (code graph_inconsistent) where the graph does not compute what its own record of
    shapes and dtypes says.
    """
    names: dict[int, list[str]] = defaultdict(list)
    root = nn.Module()
    for name, held in program.tensors.items():
        names[id(held.value)].append(name)
        place_tensor(root, name, held.value, persistent=held.persistent)
    graph = copy.deepcopy(program.graph)
    recompose(graph)
    functionalize(graph)
    lifting = Lifting(graph, root, names)
    for node in list(graph.nodes):
        lift_node(lifting, node)
    for node in list(graph.nodes):
        if is_counter(node):
            count_in_training(lifting, node)
    share_modules(lifting)
    drop_dead_nodes(graph)
    lifted = LayerGraph.assemble(root, graph, program.symbols)
    lifted.eval()
    check_shapes(lifted)
    return lifted


def lift_node(lifting: Lifting, node: fx.Node) -> None:
    """Make one call a layer, or let it follow the module's mode and device."""
    if not is_aten(node):
        return
    name = operator_name(node)
    if name in DROPOUTS:
        lift_dropout(lifting, node)
    elif name in LAYERS and lift_layer(lifting, node, LAYERS[name]):
        return
    else:
        follow_training(lifting, node)
        follow_device(lifting, node)


# Layers that own tensors -----------------------------------------------------------------------------------------


def lift_layer(lifting: Lifting, node: fx.Node, row: LayerRow) -> bool:
    """Replace `node` by a call of a layer that owns exactly its tensors; False where there is no such place."""
    arguments = arguments_of(node)
    tensors = {}
    for argument, leaf in row.owned.items():
        if arguments[argument] is not None:
            tensor = lifting.owned(arguments[argument])
            if tensor is None or isinstance(tensor, nn.Parameter) == leaf.startswith("running_"):
                return False
            tensors[leaf] = tensor
    rest = {key: value for key, value in arguments.items() if key not in row.owned and key != row.input}
    configuration = f"{operator_name(node)} {rest}"
    candidates = list(places(lifting, node, tensors))
    # A place is free, or already holds a layer of the same configuration, or is none.
    place = next((name for name in candidates if lifting.made.get(name, configuration) == configuration), None)
    source = arguments[row.input]
    if place is None or not isinstance(source, fx.Node):
        return False
    if place not in lifting.made:
        twin = next((name for name in candidates if lifting.made.get(name) == configuration), None)
        call = Call(arguments, tensors, rank=len(source.meta["val"].shape))
        container = container_at(lifting.root, place)
        layer = with_tensors(row.build(call), container) if twin is None else container_at(lifting.root, twin)
        place_module(lifting.root, place, layer)
        lifting.made[place] = configuration
    replace_by_layer(lifting, node, place, source)
    return True


def places(lifting: Lifting, node: fx.Node, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of modules that own exactly `tensors`, the one that made the call first."""
    if not tensors:
        return
    leaf, tensor = next(iter(tensors.items()))
    owners = [module for module, own in map(split_name, lifting.names[id(tensor)]) if own == leaf and module]
    owners.sort(key=lambda module: module != node.meta.get("module"))
    for module in owners:
        container = container_at(lifting.root, module)
        standing = {own: value for own, value in own_tensors(container).items() if own != COUNTER}
        same = standing.keys() == tensors.keys() and all(standing[own] is tensors[own] for own in tensors)
        if same and not container._modules:  # noqa: SLF001  a layer holds no other modules
            yield module


def with_tensors(layer: nn.Module, container: nn.Module) -> nn.Module:
    """`layer` with the tensors of the container that it replaces."""
    for leaf in own_tensors(layer):
        delattr(layer, leaf)
    for leaf, tensor in own_tensors(container).items():
        persistent = leaf not in container._non_persistent_buffers_set  # noqa: SLF001  torch keeps it nowhere else
        place_tensor(layer, leaf, tensor, persistent=persistent)
    if isinstance(layer, nn.modules.batchnorm._NormBase) and not hasattr(layer, COUNTER):  # noqa: SLF001  all four norms with statistics
        layer.register_buffer(COUNTER, None)
    return restore_absent(layer)


def restore_absent(layer: nn.Module) -> nn.Module:
    """Give back, as None, the tensors that the layer's forward asks for and the original had none of."""
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        if not hasattr(layer, leaf):
            layer.register_parameter(leaf, None)
    return layer


def replace_by_layer(lifting: Lifting, node: fx.Node, name: str, source: fx.Node) -> None:
    """Let the module at `name`, called on `source`, stand for `node`."""
    call = lifting.call_module(node, name, source)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    lifting.graph.erase_node(node)


def share_modules(lifting: Lifting) -> None:
    """Put a layer also wherever else exactly its tensors stand."""
    for name in lifting.made:
        layer = module_at(lifting.root, name)
        own = own_tensors(layer) if layer is not None else {}
        tensor = next(iter(own.values()), None)
        for other, _ in map(split_name, lifting.names[id(tensor)]):
            standing = module_at(lifting.root, other)
            if layer is not None and type(standing) is nn.Module and is_twin(standing, own):
                place_module(lifting.root, other, layer)


def is_twin(container: nn.Module, own: Mapping[str, Tensor]) -> bool:
    """Whether a container holds the very tensors `own` under the same names, and nothing else."""
    standing = own_tensors(container)
    return (
        not container._modules  # noqa: SLF001  a layer holds no other modules
        and standing.keys() == own.keys()
        and all(standing[leaf] is tensor for leaf, tensor in own.items())
    )


# Dropout, and what else depends on the mode ----------------------------------------------------------------------


def lift_dropout(lifting: Lifting, node: fx.Node) -> None:
    """A dropout layer, under the name of the module that called it where nothing else stands there."""
    arguments = arguments_of(node)
    source, p = arguments["input"], arguments["p"]
    layer = DROPOUTS[operator_name(node)](p, len(source.meta["val"].shape))
    wanted = node.meta.get("module") or ""
    standing = module_at(lifting.root, wanted) if wanted else None
    if type(standing) is type(layer) and getattr(standing, "p", None) == p:
        replace_by_layer(lifting, node, wanted, source)
        return
    name = lifting.free_name(f"{wanted}.dropout" if standing is not None else wanted or "dropout")
    place_module(lifting.root, name, layer)
    replace_by_layer(lifting, node, name, source)


def follow_training(lifting: Lifting, node: fx.Node) -> None:
    """Replace a baked training flag or attention dropout by a switch."""
    name, arguments = operator_name(node), arguments_of(node)
    if name == "scaled_dot_product_attention" and arguments["dropout_p"]:
        switch = lifting.free_name("attention_dropout")
        place_module(lifting.root, switch, DropoutRate(arguments["dropout_p"]))
        set_argument(node, "dropout_p", lifting.call_module(node, switch))
    elif name in TRAINING_ARGUMENTS and may_train(lifting, name, arguments):
        set_argument(node, TRAINING_ARGUMENTS[name], training_flag(lifting, node))


def may_train(lifting: Lifting, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the mode matters: not for a norm without statistics, nor for one frozen into buffers."""
    if name not in {"batch_norm", "instance_norm"}:
        return True
    if arguments["running_mean"] is None:
        return False
    return bool(arguments[TRAINING_ARGUMENTS[name]]) or isinstance(lifting.owned(arguments["weight"]), nn.Parameter)


def training_flag(lifting: Lifting, before: fx.Node) -> fx.Node:
    """A call of the network's one training flag."""
    name = next((key for key, module in lifting.root.named_children() if isinstance(module, TrainingFlag)), "")
    if not name:
        name = lifting.free_name("training_flag")
        place_module(lifting.root, name, TrainingFlag())
    return lifting.call_module(before, name)


def is_counter(node: fx.Node) -> bool:
    """Whether `node` counts the batches of a norm, in place."""
    counter = node.args[0] if is_aten(node, "add_") else None
    return isinstance(counter, fx.Node) and counter.op == "get_attr" and str(counter.target).endswith(COUNTER)


def count_in_training(lifting: Lifting, node: fx.Node) -> None:
    """Leave counting to the norm's layer; where the norm stays a call, count in training only."""
    (counter,) = node.all_input_nodes
    norm = module_at(lifting.root, split_name(str(counter.target))[0])
    if type(norm) is nn.Module:
        set_argument(node, "other", training_flag(lifting, node))
    else:
        lifting.graph.erase_node(node)


# Devices ---------------------------------------------------------------------------------------------------------


def follow_device(lifting: Lifting, node: fx.Node) -> None:
    """Let new tensors be made where the network's input lies, not where the export ran."""
    if "pin_memory" in node.kwargs:
        drop_argument(node, "pin_memory")
    formals = schema_arguments(overload_of(node))
    if not any(formal.name == "device" for formal in formals):
        return
    from_tensor = str(formals[0].type) == "Tensor"
    if from_tensor and "device" in node.kwargs:
        drop_argument(node, "device")
    elif not from_tensor or "device" in arguments_of(node):
        source = next(iter(lifting.graph.find_nodes(op="placeholder")), None)
        if source is not None:
            set_argument(node, "device", device_of(lifting, node, source))


def device_of(lifting: Lifting, before: fx.Node, source: fx.Node) -> fx.Node:
    """A call that gives the device of `source`."""
    name = next((key for key, module in lifting.root.named_children() if isinstance(module, DeviceOf)), "")
    if not name:
        name = lifting.free_name("device_of")
        place_module(lifting.root, name, DeviceOf())
    return lifting.call_module(before, name, source)


# The end ---------------------------------------------------------------------------------------------------------


def drop_dead_nodes(graph: fx.Graph) -> None:
    """Erase what nothing uses, except inputs, layers and what writes to memory."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in {"get_attr", "call_function"} and not is_mutating(node):
            graph.erase_node(node)
