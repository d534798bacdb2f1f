"""Networks that read token ids: one tensor (B, T) int64, T fixed by the export or free like the batch.

What a job must know before it feeds ids to one: how many there are (the rows of the embedding that looks them up)
and how long a sequence may be (the size of the input, or the largest that the exporter vouches for).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from workers.graph.calls import arguments_of, operator_name
from workers.graph.layer_graph import LayerGraph
from workers.graph.tensor_meta import Symbol, SymbolicSize, TensorMeta

TOKENS = "tokens"  # the word for a free length in shapes on the wire
# What leaves ids ids on their way to an embedding.
CARRYING = frozenset({"to", "clone", "contiguous", "alias", "detach", "view", "reshape", "flatten", "slice"})


def reads_tokens(network: nn.Module) -> bool:
    """Whether `network` is a graph whose one input is of token ids."""
    return isinstance(network, LayerGraph) and all(are_tokens(takes) for takes in network.inputs.values())


def are_tokens(takes: TensorMeta) -> bool:
    """Whether an input is (B, T) of int64."""
    return takes.dtype == torch.int64 and len(takes.shape) == 2


def has_free_length(takes: TensorMeta) -> bool:
    """Whether an input is of token ids, and T a symbol of its own."""
    if not are_tokens(takes):
        return False
    batch, length = takes.shape
    return isinstance(length, SymbolicSize) and isinstance(length.expression, Symbol) and length != batch


def largest_length(network: LayerGraph) -> int | None:
    """The longest sequence that the network takes; None where nothing bounds it."""
    (takes,) = network.inputs.values()
    length = takes.shape[1]
    if isinstance(length, int):
        return length
    return network.symbols[str(getattr(length.expression, "name", ""))].largest


def vocabulary(network: LayerGraph) -> int | None:
    """How many ids there are, 0 to this number less one; None where no embedding looks the input up."""
    (source,) = network.graph.find_nodes(op="placeholder")
    return min(looked_up(network, source), default=None)


def looked_up(network: LayerGraph, ids: fx.Node) -> Iterator[int]:
    """Rows of every embedding that `ids` reaches as they are."""
    for user in ids.users:
        if user.op == "call_module":
            layer = network.get_submodule(str(user.target))
            if isinstance(layer, nn.Embedding):
                yield layer.num_embeddings
        elif user.op == "call_function" and operator_name(user) == "embedding":
            weight = arguments_of(user)["weight"]
            assert isinstance(weight, fx.Node)  # noqa: S101  the reader checks arguments by the operator's schema
            yield weight.meta["val"].example_shape[0]
        elif user.op == "call_function" and operator_name(user) in CARRYING:
            yield from looked_up(network, user)


def token_facts(network: LayerGraph) -> dict[str, Any]:
    """What a record says besides of a network that reads tokens; nothing of any other."""
    if not reads_tokens(network):
        return {}
    return {"vocabulary": vocabulary(network), "max_tokens": largest_length(network)}


def token_notes(network: LayerGraph) -> list[str]:
    """At what length the costs of a record were counted, where it is free."""
    (takes,) = network.inputs.values()
    free = reads_tokens(network) and has_free_length(takes)
    return [f"its MACs and activations are those of {takes.example_shape[1]} tokens"] if free else []


def dynamic_sizes(network: nn.Module, example: torch.Tensor) -> dict[int, Any]:
    """The sizes that stay free when `network` is exported with `example`: the batch, and a length that is free."""
    sizes: dict[int, Any] = {0: Dim("batch")}
    if isinstance(network, LayerGraph) and example.dim() == 2 and example.shape[1] > 1:  # a size of 1 is baked in
        (takes,) = network.inputs.values()
        if has_free_length(takes):
            sizes[1] = Dim(TOKENS, max=largest_length(network))
    return sizes
