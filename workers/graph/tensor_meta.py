"""What is known of a tensor without its values: shape and dtype, with symbolic sizes.

A network exported with a dynamic batch has tensors of shape (B, 16, 32, 32) for every B. Such a size is an
expression in symbols, together with its value at the example inputs of the export, the hint. Analyses that
need plain numbers work on the hints; what is exported again keeps the symbols.

Every node of a lifted graph carries in `node.meta["val"]`:

    TensorMeta                   for a tensor
    tuple of TensorMeta | None   for an operator with several results (its `getitem` nodes carry their own)
    int | SymbolicSize           for a size computed in the graph (`aten.sym_size`, `operator.mul`, ...)
    None                         for what is no tensor: a switch (see switches.py) or an operator without result
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Symbol:
    """A size that is free: the batch, the length of a sequence."""

    name: str


@dataclass(frozen=True)
class Apply:
    """An operator of `ARITHMETIC` on expressions."""

    operator: str
    operands: tuple["Expression", ...]


Expression = int | Symbol | Apply


def exact_division(numerator: int, denominator: int) -> int:
    """The quotient of a division that leaves nothing; `ValueError` where it does."""
    quotient, remainder = divmod(numerator, denominator)
    if remainder:
        raise ValueError(f"{numerator} is no multiple of {denominator}")
    return quotient


def bounded_power(base: int, exponent: int) -> int:
    """A power of sizes; `ValueError` beyond what a size can be, before it is computed."""
    if exponent < 0 or abs(base).bit_length() * exponent > 63:
        raise ValueError(f"{base} ** {exponent} is no size")
    return int(base**exponent)


# The whole arithmetic of sizes: integers to integers.
ARITHMETIC: dict[str, Callable[..., int]] = {
    "add": lambda *terms: sum(terms),
    "multiply": lambda *factors: math.prod(factors),
    "floor_divide": operator.floordiv,
    "exact_divide": exact_division,
    "modulo": operator.mod,
    "power": bounded_power,
    "maximum": max,
    "minimum": min,
}


def evaluate(expression: Expression, bindings: Mapping[str, int]) -> int:
    """The value of `expression` where each symbol has the value that `bindings` gives it.

    Raises `KeyError` for an unbound symbol, and `ValueError` or `ZeroDivisionError` where there is no value.
    """
    if isinstance(expression, int):
        return expression
    if isinstance(expression, Symbol):
        return bindings[expression.name]
    return ARITHMETIC[expression.operator](*(evaluate(operand, bindings) for operand in expression.operands))


@dataclass(frozen=True)
class SymbolicSize:
    """One size that depends on the inputs; `hint` is its value at the export's example inputs."""

    expression: Expression
    hint: int = field(compare=False)


@dataclass(frozen=True)
class SymbolRange:
    """The sizes that the exporter vouches for; `largest` is None where there is no bound."""

    smallest: int = 0
    largest: int | None = None


@dataclass(frozen=True)
class TensorMeta:
    """Shape and dtype of a tensor."""

    shape: tuple[int | SymbolicSize, ...]
    dtype: torch.dtype

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape at the example inputs: plain numbers."""
        return tuple(size.hint if isinstance(size, SymbolicSize) else size for size in self.shape)

    @property
    def num_elements(self) -> int:
        """How many elements the tensor has at the example inputs."""
        return math.prod(self.example_shape)
