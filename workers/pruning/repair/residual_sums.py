"""Where what a layer says is one side of a sum, with nothing but dropout and the like between.

There the sum is what counts: a layer that knows the other side can make up for what is missing of it.
"""

from dataclasses import dataclass

from torch import fx, nn

from workers.graph.calls import arguments_of, is_aten
from workers.graph.functionalization import PASSING
from workers.graph.layer_graph import LayerGraph
from workers.graph.tensor_meta import TensorMeta
from workers.pruning.repair.affine import Affine, Dense
from workers.pruning.repair.dependencies import Dependencies

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SAME_VALUES = (*PASSING, "alias", "clone", "contiguous", "detach")
SAME_ORDER = ("view", "reshape", "_unsafe_view")


@dataclass(frozen=True)
class ResidualSum:
    """`node` adds what the layer says to `other`."""

    node: str
    other: str


def residual_sum(said: fx.Node, affine: Affine, network: LayerGraph, graph: Dependencies) -> ResidualSum | None:
    """The sum that what a layer says is one side of, with nothing but dropout and the like between."""
    end = followed(said, affine, network)
    users = list(end.users)
    if len(users) != 1 or not is_aten(users[0], "add", "add_"):
        return None
    given = arguments_of(users[0])
    others = [side for side in (given["self"], given["other"]) if side is not end]
    if given.get("alpha", 1) != 1 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    if shape_of(users[0]) != shape_of(end) or graph.all[others[0].name] & graph.bit[said.name]:
        return None
    return ResidualSum(users[0].name, others[0].name)


def followed(node: fx.Node, affine: Affine, network: LayerGraph) -> fx.Node:
    """The last node that is only `node` passed on; of a dense layer, its rows may be arranged along other axes."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        rows_move = isinstance(affine, Dense) and is_aten(user, *SAME_ORDER)
        if not passes(user, network) and not (rows_move and shape_of(user)[-1:] == shape_of(node)[-1:]):
            break
        node = user
    return node


def passes(node: fx.Node, network: LayerGraph) -> bool:
    """Whether a node gives what it is given, in evaluation mode."""
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return isinstance(layer, (nn.Identity, *DROPOUTS))
    return is_aten(node, *SAME_VALUES)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape at the example inputs."""
    meta = node.meta.get("val")
    return meta.example_shape if isinstance(meta, TensorMeta) else ()
