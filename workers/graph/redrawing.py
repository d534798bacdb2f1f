"""New weights for a network that came without its code: every layer draws its own, as PyTorch does for a new layer.

A graph keeps what a network computes, not how its author once drew its weights. Each ordinary layer has an
initialisation of its own, `reset_parameters`, and that is what a network gets back here. A parameter that belongs to
no layer (a class token, a table of positions, a packed projection) has none, and guessing one would train another
network than its author's: such networks are refused by the parameters' names.
"""

import torch
from torch import nn

from workers.graph.layer_graph import LayerGraph

MAX_NAMES = 10


def redraw(network: LayerGraph, seed: int) -> None:
    """Draw all parameters anew from `seed`, in place; norms forget their statistics, other buffers stay.

    torch's global random state is left as it was. Raises `ValueError` naming the parameters that belong to no
    layer with an initialisation of its own.
    """
    if without := parameters_without_layer(network):
        more = f" and {len(without) - MAX_NAMES} more" if len(without) > MAX_NAMES else ""
        raise ValueError(
            f"{', '.join(without[:MAX_NAMES])}{more} belong to no layer with an initialisation of its own, so their "
            "weights cannot be drawn anew; keep the weights, or export the network with the initial weights wanted"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in network.modules():
            if draws_its_own(layer):
                layer.reset_parameters()  # type: ignore[operator]  # draws_its_own has seen that it is a method


def draws_its_own(layer: nn.Module) -> bool:
    """Whether a layer has an initialisation of all its parameters."""
    return callable(getattr(layer, "reset_parameters", None))


def parameters_without_layer(network: LayerGraph) -> list[str]:
    """Names of the parameters that no layer would draw."""
    drawn = {
        id(parameter)
        for layer in network.modules()
        if draws_its_own(layer)
        for parameter in layer.parameters(recurse=False)
    }
    return [name for name, parameter in network.named_parameters() if id(parameter) not in drawn]
