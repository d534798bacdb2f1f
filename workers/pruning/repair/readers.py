"""The layers that read removed units: where each gets its input, and what it is to say instead of what it says.

What a layer says is taken where it can still be set exactly: behind its own batch norm, if it has one, and before
the nonlinearity. Where that is added to something else, in a residual sum, it is the sum that counts.

Everything is looked up in the teacher's graph, whose nodes have the same names in the pruned one.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from workers.graph.calls import arguments_of
from workers.graph.cost import example_batch
from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.module_tree import own_tensors, tensor_at
from workers.graph.sites import Held, Site, site_of
from workers.graph.survivors import Survivors
from workers.graph.unit_cost import Kept
from workers.pruning.repair.affine import Affine, Dense, convolution
from workers.pruning.repair.batch_norms import BatchNorm
from workers.pruning.repair.dependencies import Dependencies
from workers.pruning.repair.residual_sums import ResidualSum, residual_sum


@dataclass(frozen=True, eq=False)
class Reader:
    """A dense layer or convolution of the pruned network; its tensors are views of the network's own."""

    name: str  # the layer's, for people
    node: str
    source: str  # the node that it reads
    said: str  # the node that says what it says: itself, or its batch norm
    affine: Affine
    weight: Tensor  # dense (M, K); convolutions as torch has them
    bias: Tensor | None
    norm: BatchNorm | None  # its own batch norm
    residual: ResidualSum | None
    shared: bool  # whether its weight is used elsewhere too
    rows_per_example: float

    @property
    def channels(self) -> tuple[int, int, int]:
        """Groups G, columns K and outputs N of one group."""
        return self.affine.sizes(self.weight.shape)

    @property
    def has_intercept(self) -> bool:
        """Whether there is somewhere to put a bias."""
        return self.bias is not None or self.norm is not None


def find_readers(student: LayerGraph, groups: Groups, kept: Kept) -> list[Reader]:
    """The layers of `student` that read a group of which something is gone, in the order of the graph."""
    survivors = Survivors(kept, groups.reading.ledger.slots, groups.reading.values)
    nodes = {node.name: node for node in student.graph.nodes}
    uses, graph = tensor_uses(student), Dependencies(groups.reading.network)
    found = []
    for node in groups.reading.network.graph.nodes:
        site = site_of(node, groups.reading)
        affine = affine_of(site, student, nodes.get(node.name))
        if affine is not None and reads_removed(site, affine, survivors):
            found.append(describe(site, affine, student, uses, graph))
    return without_earlier_sides(found)


def affine_of(site: Site, student: LayerGraph, node: fx.Node | None) -> Affine | None:
    """What a layer or operator is as a product with a held matrix; None for anything else."""
    weight = weight_of(site)
    if node is None or weight is None or None in weight.axes or not isinstance(source_of(site), fx.Node):
        return None
    if site.operator in ("linear", "matmul", "mm", "addmm"):
        return Dense()
    spatial = len(weight.shape) - 2
    if not site.operator.startswith("conv") or len(site.result_shape) != spatial + 2:
        return None
    options = layer_options(student.get_submodule(str(node.target))) if node.op == "call_module" else arguments_of(node)
    transposed = site.operator.startswith("conv_transpose") or bool(options.get("transposed"))
    return convolution(weight.shape[2:], options, transposed=transposed)


def layer_options(layer: nn.Module) -> dict[str, Any]:
    """The options of a convolution that is a layer."""
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


def weight_of(site: Site) -> Held | None:
    """The held matrix that a site multiplies its source with; dense ones as (in, out) where an operator has them so."""
    if site.operator in ("matmul", "mm", "addmm"):
        right = site.arguments.get("mat2", site.arguments.get("other"))
        plain = site.arguments.get("alpha", 1) == 1 and site.arguments.get("beta", 1) == 1
        if site.operator == "addmm" and (bias_of(site) is None or len(site.shape(bias_of(site))) != 1):
            return None
        return right if isinstance(right, Held) and len(right.shape) == 2 and plain else None
    bias = site.arguments.get("bias")
    return site.held("weight") if bias is None or isinstance(bias, Held) else None


def source_of(site: Site) -> Any:
    """What a site multiplies with its matrix."""
    return site.arguments["mat1"] if site.operator == "addmm" else site.source


def bias_of(site: Site) -> Held | None:
    """The held bias; `None` also where an operator has no place for one."""
    return site.held("self") if site.operator == "addmm" else site.held("bias")


def reads_removed(site: Site, affine: Affine, survivors: Survivors) -> bool:
    """Whether something is gone along the axis over which a layer sums."""
    source = source_of(site)
    stays = survivors.indices(site, source, channel_axis(affine) % len(site.shape(source)))
    return stays is not None and not bool(stays.all())


def channel_axis(affine: Affine) -> int:
    """The axis of the channels of what a layer reads, and of what it says."""
    return -1 if isinstance(affine, Dense) else 1


def describe(site: Site, affine: Affine, student: LayerGraph, uses: Mapping[int, int], graph: Dependencies) -> Reader:
    """The layer that calls `site`, in the student."""
    weight = weight_of(site)
    assert weight is not None  # noqa: S101  it is affine
    matrix = tensor_view(student, weight)
    norm = own_norm(site, affine, student, uses)
    said = next(iter(site.node.users)) if norm is not None else site.node
    bias = bias_of(site)
    axis = channel_axis(affine)
    return Reader(
        name=str(site.node.target) if site.node.op == "call_module" else site.node.name,
        node=site.node.name,
        source=source_of(site).name,
        said=said.name,
        affine=affine,
        weight=matrix.mT if site.operator in ("matmul", "mm", "addmm") else matrix,
        bias=None if bias is None else tensor_view(student, bias),
        norm=norm,
        residual=residual_sum(said, affine, site.reading.network, graph),
        rows_per_example=math.prod(site.result_shape) / site.result_shape[axis] / example_batch(site.reading.network),
        shared=uses[id(tensor_at(student, weight.name))] > 1 or has_other_users(site),
    )


def tensor_view(student: LayerGraph, held: Held) -> Tensor:
    """The student's tensor with its axes as a call sees them; what is written into the view is written into it."""
    return tensor_at(student, held.name).permute([axis for axis in held.axes if axis is not None])


def tensor_uses(network: LayerGraph) -> Counter[int]:
    """How often each parameter and buffer, by its id, is used in the graph."""
    uses: Counter[int] = Counter()
    for node in network.graph.nodes:
        if node.op == "call_module":
            uses.update(map(id, own_tensors(network.get_submodule(str(node.target))).values()))
        elif node.op == "get_attr":
            uses[id(tensor_at(network, str(node.target)))] += len(node.users)
    return uses


def has_other_users(site: Site) -> bool:
    """Whether a view of a tensor that an operator is given is given to others too."""
    views = [node for node in site.node.all_input_nodes if isinstance(site.reading.values.get(node), Held)]
    return any(len(view.users) > 1 for view in views)


def own_norm(site: Site, affine: Affine, student: LayerGraph, uses: Mapping[int, int]) -> BatchNorm | None:
    """The batch norm that alone uses a layer's output, and is used for nothing else, with all that it may have."""
    users = list(site.node.users)
    if len(users) != 1 or users[0].op != "call_module" or len(site.result_shape) != output_rank(affine):
        return None
    norm = student.get_submodule(str(users[0].target))
    tensors = own_tensors(norm)
    complete = {"weight", "bias", "running_mean", "running_var"} <= tensors.keys()
    own = all(uses[id(tensor)] == 1 for tensor in tensors.values())
    return norm if isinstance(norm, BatchNorm) and complete and own else None


def output_rank(affine: Affine) -> int:
    """The axes of what a layer says, with its channels on axis 1 as a batch norm has them."""
    return 2 if isinstance(affine, Dense) else 2 + len(affine.kernel)


def without_earlier_sides(readers: Sequence[Reader]) -> list[Reader]:
    """Where both sides of a sum are such layers, only the later one looks at the sum."""
    last = {reader.residual.node: reader for reader in readers if reader.residual is not None}
    return [
        reader
        if reader.residual is None or last[reader.residual.node] is reader
        else dataclasses.replace(reader, residual=None)
        for reader in readers
    ]
