"""Half of every layer's channels by Torch-Pruning, as its examples use it, on the eager network.

The layers that give the network's outputs are left alone; attention's projections are declared with their numbers of
heads, and afterwards the attributes that remember heads and widths are set, as the examples of Torch-Pruning do.
Attention is pruned in both ways that it offers, half of the heads and half of every head's width, and the better
result counts.

A result is correct when it runs, trains a step and computes what the original computes with the removed units at
zero (norms taking their means over what is left), in float64.
"""

import copy
import functools
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.attention import HEADS

PROJECTIONS = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
    ("qkv",),
)
# What modules call their number of heads, the width of one, and all of it.
HEAD_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
HEAD_WIDTHS = ("attention_head_size", "head_dim", "key_value_proj_dim", "width")
ALL_WIDTHS = ("all_head_size", "dim", "inner_dim")
WAYS = {"heads": {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}, "head width": {}}
TOLERANCE = 1e-6
LONGEST = 110  # characters of an error


@dataclass(frozen=True)
class Result:
    """What became of one network."""

    verdict: str  # one of RANKS
    detail: str
    parameters: int | None = None


RANKS = ("correct", "wrong", "nothing", "fails")


def halve(network: nn.Module, inputs: tuple[Tensor, ...]) -> Result:
    """Prune `network` by half in every way that Torch-Pruning has for it; the best result."""
    attentions = list(find_attentions(network))
    ways = WAYS if attentions else {"": {}}
    results = [attempt(copy.deepcopy(network), inputs, way, options) for way, options in ways.items()]
    return min(results, key=lambda result: RANKS.index(result.verdict))


def attempt(network: nn.Module, inputs: tuple[Tensor, ...], way: str, options: dict[str, Any]) -> Result:
    prefix = f"{way}: " if way else ""
    torch.backends.mha.set_fastpath_enabled(False)  # it reads weights of norms without calling them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = prune(network.double().eval(), tuple(map(widened, inputs)), options)
    except Exception as error:  # noqa: BLE001  whatever it raises is the result
        return Result("fails", f"{prefix}{told(error)}")
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return Result(result.verdict, f"{prefix}{result.detail}", result.parameters)


def told(error: Exception) -> str:
    """An error on one line; one without words is told by the line that raised it."""
    words = " ".join(str(error).split()) or str(traceback.extract_tb(error.__traceback__)[-1].line)
    return f"{type(error).__name__}: {words[:LONGEST]}{'…' * (len(words) > LONGEST)}"


def widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def prune(network: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Result:
    import torch_pruning  # type: ignore[import-not-found]

    masked = copy.deepcopy(network)
    before = sum(parameter.numel() for parameter in network.parameters())
    num_heads = dict(pair for attention in find_attentions(network) for pair in attention.num_heads.items())
    merges = [type(module) for module in network.modules() if type(module).__name__ == "SwinPatchMerging"]
    pruner = torch_pruning.pruner.BasePruner(
        network,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=output_layers(network, inputs),
        num_heads=num_heads,
        output_transform=total,
        customized_pruners={kind: patch_merging_pruner(torch_pruning) for kind in merges},
        root_module_types=[nn.Linear, nn.LSTM, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, *merges],
        **options,
    )
    removal = Removal(network, masked, pruner.DG)
    for group in pruner.step(interactive=True):
        removal.note(group)
        group.prune()
    restore_attributes(network, pruner.num_heads)
    after = sum(parameter.numel() for parameter in network.parameters())
    if after == before:
        return Result("nothing", "removes nothing", after)
    result = compared(network, removal, inputs, after)
    check_training(network, inputs)
    return result


def compared(network: nn.Module, removal: "Removal", inputs: tuple[Tensor, ...], after: int) -> Result:
    """Whether the pruned network computes what the original does with the removed units at zero."""
    with torch.no_grad():
        found, expected = first(network(*inputs)), first(removal.zeroed()(*inputs))
    if expected.shape != found.shape:
        return Result("wrong", f"returns {list(found.shape)} in place of {list(expected.shape)}", after)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if difference <= TOLERANCE:
        return Result("correct", "correct", after)
    return Result("wrong", f"runs, but differs from the units at zero by {difference:.1g} of the largest output", after)


def first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def total(output: Any) -> Tensor:
    """All outputs as one, so that what leads to each of them is traced."""
    return torch.stack([part.sum() for part in (output if isinstance(output, tuple) else (output,))]).sum()


def output_layers(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """The layers whose output is an output of the network."""
    made: dict[int, nn.Module] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output: made.update({id(output): module}))
        for module in network.modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        outputs = network(*inputs)
    for hook in hooks:
        hook.remove()
    return [
        made[id(output)] for output in (outputs if isinstance(outputs, tuple) else (outputs,)) if id(output) in made
    ]


def check_training(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise unless a step of SGD finds finite gradients."""
    network.train()
    total(network(*inputs)).square().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
        raise ArithmeticError("gradients are not finite")
    torch.optim.SGD(network.parameters(), lr=1e-3).step()


# Attention -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    module: nn.Module
    num_heads: dict[nn.Module, int]  # projection -> its heads


def find_attentions(network: nn.Module) -> Iterator[Attention]:
    """Modules with projections of the usual names."""
    for module in network.modules():
        for names in PROJECTIONS:
            projections = [getattr(module, name, None) for name in names]
            if all(isinstance(projection, nn.Linear) for projection in projections):
                yield Attention(module, heads_of(module, projections))


def heads_of(module: nn.Module, projections: Sequence[Any]) -> dict[nn.Module, int]:
    """As many heads for keys and values as fit into their width."""
    config = getattr(module, "config", None)
    known = [getattr(owner, name, None) for owner in (module, config) for name in HEAD_COUNTS]
    heads = next((count for count in known if count), HEADS)
    if len(projections) == 1:
        return {projections[0]: heads}
    width = projections[0].out_features // heads
    return {projection: projection.out_features // width for projection in projections}


def restore_attributes(network: nn.Module, num_heads: dict[nn.Module, int]) -> None:
    """Set what modules remember of their sizes."""
    for module in network.modules():
        for names in PROJECTIONS[:-1]:
            projections: list[Any] = [getattr(module, name, None) for name in names]
            if all(projection in num_heads for projection in projections):
                query, key = projections[:2]
                heads = num_heads[query]
                values = dict.fromkeys(HEAD_COUNTS, heads)
                values |= dict.fromkeys(HEAD_WIDTHS, query.out_features // heads)
                values |= dict.fromkeys(ALL_WIDTHS, query.out_features)
                values["num_key_value_groups"] = max(1, heads // num_heads[key])
                for name, value in values.items():
                    if isinstance(getattr(module, name, None), int):
                        setattr(module, name, value)
        if type(module).__name__ == "SwinPatchMerging":
            module.dim = module.reduction.in_features // 4


def patch_merging_pruner(torch_pruning: Any) -> Any:
    """Swin's merging of 2 x 2 patches, whose norm and projection hold every channel four times."""

    class PatchMergingPruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
            torch_pruning.prune_linear_out_channels(layer.reduction, idxs)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
            width = self.get_in_channels(layer)
            fourfold = [quarter * width + index for quarter in range(4) for index in idxs]
            torch_pruning.prune_linear_in_channels(layer.reduction, fourfold)
            torch_pruning.prune_layernorm_out_channels(layer.norm, fourfold)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return layer.reduction.out_features

        def get_in_channels(self, layer: Any) -> int:
            return layer.reduction.in_features // 4

    return PatchMergingPruner()


# The original with the removed units at zero ----------------------------------------------------------------------


def over_kept(norm: Callable[[Tensor], Tensor], kept: list[int], axis: int, x: Tensor) -> Tensor:
    """What a norm makes of the channels that are kept; the others become zero."""
    index = torch.tensor(kept)
    return torch.zeros_like(x).index_copy(axis, index, norm(x.index_select(axis, index)))


@dataclass
class Removal:
    """What Torch-Pruning removes, noted group by group in the numbers of the original."""

    network: nn.Module
    masked: nn.Module  # the original
    graph: Any  # Torch-Pruning's dependency graph
    left: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (name, side) -> what is left

    def note(self, group: Any) -> None:
        """Remember what a group is about to lose; a layer may be reached in several ways."""
        names = {module: name for name, module in self.network.named_modules()}
        names |= {parameter: name for name, parameter in self.network.named_parameters()}
        gone: dict[tuple[str, str], set[int]] = {}
        for dep, indices in group:
            target = dep.target.module
            if target in names:
                side = "out" if self.graph.is_out_channel_pruning_fn(dep.handler) else "in"
                key = names[target], side
                gone.setdefault(key, set()).update(indices)
                if key not in self.left:
                    self.left[key] = list(range(self.size(target, side)))
        for key, indices in gone.items():
            self.left[key] = [original for place, original in enumerate(self.left[key]) if place not in indices]

    def size(self, target: Any, side: str) -> int:
        """How many channels a layer or a parameter has now."""
        if isinstance(target, nn.Parameter):
            return int(target.shape[self.graph.module2node[target].pruning_dim])
        return int(self.graph.get_out_channels(target) if side == "out" else self.graph.get_in_channels(target))

    def zeroed(self) -> nn.Module:
        modules, parameters = dict(self.masked.named_modules()), dict(self.masked.named_parameters())
        norms: dict[str, list[int]] = {}
        with torch.no_grad():
            for (name, side), left in self.left.items():
                if name in parameters:
                    owner, _, _ = name.rpartition(".")
                    if type(modules[owner]).__name__.endswith("Norm"):
                        norms[owner] = left
                    else:
                        axis = self.graph.module2node[self.network.get_parameter(name)].pruning_dim
                        zero(parameters[name], axis, left)
                elif type(modules[name]).__name__.endswith(("LayerNorm", "RMSNorm", "GroupNorm")):
                    norms[name] = left
                else:
                    zero_layer(modules[name], side, left)
        for name, left in norms.items():
            set_kept(modules[name], self.network.get_submodule(name), left)
        return self.masked


def set_kept(original: Any, pruned: nn.Module, left: list[int]) -> None:
    """Let the pruned norm compute where the original stands."""
    channels_first = isinstance(original, nn.GroupNorm) or getattr(original, "data_format", "") == "channels_first"
    original.forward = functools.partial(over_kept, pruned, left, 1 if channels_first else -1)


def without(size: int, left: list[int]) -> Tensor:
    return torch.tensor(sorted(set(range(size)) - set(left)), dtype=torch.int64)


def zero(tensor: Tensor, axis: int, left: list[int]) -> None:
    tensor.index_fill_(axis, without(tensor.shape[axis], left), 0)


def zero_layer(layer: Any, side: str, left: list[int]) -> None:
    """Zero the outputs of a layer, or what it makes of its inputs, where they are not left."""
    weight = layer.in_proj_weight if isinstance(layer, nn.MultiheadAttention) else getattr(layer, "weight", None)
    if isinstance(layer, nn.MultiheadAttention):
        return zero_attention(layer, left)
    if weight is None:
        return None
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Embedding))
    axis = int((side == "in") != transposed) if weight.dim() > 1 else 0
    if getattr(layer, "groups", 1) > 1 and axis == 1:
        return None  # what comes in is zero already
    gone = without(weight.shape[axis], left)
    weight.index_fill_(axis, gone, 0)
    bias = getattr(layer, "bias", None)
    if side == "out" and bias is not None:
        bias.index_fill_(0, gone, 0)
    return None


def zero_attention(layer: nn.MultiheadAttention, left: list[int]) -> None:
    """The same channels go in front of all heads, inside them and behind them."""
    width = layer.embed_dim
    gone = without(width, left)
    threefold = torch.cat([gone + part * width for part in range(3)])
    layer.in_proj_weight.index_fill_(0, threefold, 0).index_fill_(1, gone, 0)
    layer.out_proj.weight.index_fill_(0, gone, 0).index_fill_(1, gone, 0)
    for bias, indices in ((layer.in_proj_bias, threefold), (layer.out_proj.bias, gone)):
        if bias is not None:
            bias.index_fill_(0, indices, 0)
