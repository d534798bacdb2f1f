"""Products of two activations: matmul, bmm, einsum, and attention.

A product is described by letters, as einsum does: `bhtk, bhsk -> bhts` multiplies queries (heads h, width k) by keys.
A letter that is summed must lose the same indices on both sides. A letter that both have and the result keeps, the
heads, ties whole rows: its index goes from both sides and from the result together. A letter of one side passes.

Here a letter is an axis of a common space into which both operands are put, with size 1 where they lack it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.graph.labels import LabelArray, Labels, Shape, aligned, along, first_of, varying
from workers.graph.ledger import Product, Rectangle
from workers.graph.rules_layers import dense
from workers.graph.sites import Held, Site, Value
from workers.graph.unknown import unknown

PRODUCT = "is multiplied with a tensor of fixed size"


@dataclass(frozen=True)
class Factor:
    """One operand in the space of letters."""

    labels: Labels
    shape: Shape

    def insert(self, axis: int) -> "Factor":
        """With a letter that it lacks."""
        labels = None if self.labels is None else np.expand_dims(self.labels, axis)
        shape = list(self.shape)
        shape.insert(axis, 1)
        return Factor(labels, tuple(shape))


def multiply(site: Site, left: Factor, right: Factor, summed: Sequence[int]) -> Labels:
    """State what the product means; the result's labels in the space of letters, size 1 on what is summed."""
    sizes = [max(pair) for pair in zip(left.shape, right.shape, strict=True)]
    for one, other in ((left, right), (right, left)):
        for axis in set(varying(one.labels)) - set(varying(other.labels)):
            if other.shape[axis] > 1 or axis in summed:
                site.fix(one.labels, axis, PRODUCT)
    result, factors = result_labels(site, left.labels, right.labels, summed)
    site.ledger.products.append(Product(site.node.name, int(np.prod(sizes)), factors))
    return result


def result_labels(
    site: Site, left: Labels, right: Labels, summed: Sequence[int]
) -> tuple[Labels, tuple[LabelArray, ...]]:
    """The product's labels, and the arrays that its cost is proportional to."""
    if left is None or right is None:
        one = left if right is None else right
        return (None, ()) if one is None else (first_of(one, summed), (one,))
    mine, yours = set(varying(left)), set(varying(right))
    shared = mine & yours
    heads = [axis for axis in shared if axis not in summed]
    if len(heads) > 1 or not shared:
        site.pin(left, "several axes of channels meet in a product")
        site.pin(right, "several axes of channels meet in a product")
        return None, ()
    if mine == yours:
        site.ledger.equate(left, right)
    else:
        tie_sums(site, left, right, [axis for axis in shared if axis in summed])
    if not heads:
        return free_result(site, left, right, summed), (left if mine >= yours else right,)
    row = head_labels(site, left, right, heads[0])
    wide = [one for one in (left, right) if set(varying(one)) - {heads[0], *summed}]
    if len(wide) == 1 and not set(varying(wide[0])) & set(summed):
        return wide[0], (wide[0],)
    for one in wide:
        for axis in set(varying(one)) - {heads[0], *summed}:
            site.fix(one, axis, "several axes of channels meet in a product")
    return along(row, heads[0], left.ndim), (left if mine >= yours else right,)


def tie_sums(site: Site, left: LabelArray, right: LabelArray, axes: Sequence[int]) -> None:
    """Both sides lose the same indices of a summed letter, though one of them varies on more letters."""
    for axis in axes:
        for one, other in ((left, right), (right, left)):
            if varying(one) == (axis,):
                site.tie(other, axis, one.reshape(-1))
                break
        else:
            site.fix(left, axis, PRODUCT)
            site.fix(right, axis, PRODUCT)


def head_labels(site: Site, left: LabelArray, right: LabelArray, axis: int) -> LabelArray:
    """The labels of the heads: of the side that has no others, or new ones; each side loses whole heads by them."""
    alone = [one for one in (left, right) if varying(one) == (axis,)]
    row = alone[0].reshape(-1) if alone else site.ledger.fresh(left.shape[axis])
    for one in (left, right):
        if varying(one) == (axis,):
            site.ledger.equate(one.reshape(-1), row)
        else:
            site.ledger.rectangles.append(Rectangle(one, {axis: row}, heads=axis))
    return row


def free_result(site: Site, left: LabelArray, right: LabelArray, summed: Sequence[int]) -> Labels:
    """The labels of a product whose sides share only what is summed: at most one side's own letters pass."""
    wide = [one for one in (left, right) if set(varying(one)) - set(summed)]
    for one in wide:
        for axis in set(varying(one)) - set(summed):
            site.fix(one, axis, "several axes of channels meet in a product")
    return None


# Operators --------------------------------------------------------------------------------------------------------


def matmul(site: Site) -> Value:
    """(..., i, k) @ (..., k, j); with a held matrix, a dense layer."""
    left, right = site.tensors[-2:]
    if isinstance(right, Held) and len(right.shape) == 2 and not isinstance(left, Held):
        bias = site.tensors[0] if len(site.tensors) > 2 else None
        return dense(site, left, right, (0, 1), bias)
    shapes = [site.shape(left), site.shape(right)]
    if isinstance(left, Held) or isinstance(right, Held) or len(site.tensors) > 2 or min(map(len, shapes)) < 2:
        return unknown(site)
    return matrix_product(site, factor(site, left), factor(site, right))


def factor(site: Site, value: Any) -> Factor:
    return Factor(site.labels(value), site.shape(value))


def matrix_product(site: Site, left: Factor, right: Factor) -> Labels:
    """(..., i, k) times (..., k, j) in the space (..., i, k, j)."""
    ndim = max(len(left.shape), len(right.shape))
    left, right = (
        Factor(aligned(one.labels, ndim), (1,) * (ndim - len(one.shape)) + one.shape) for one in (left, right)
    )
    result = multiply(site, left.insert(ndim), right.insert(ndim - 2), summed=[ndim - 1])
    return None if result is None else np.squeeze(result, ndim - 1)


def attention(site: Site) -> Value:
    """softmax(query @ keyᵀ + mask) @ value; with enable_gqa, several heads of queries share one of keys."""
    query, key, value = (factor(site, site.arguments[name]) for name in ("query", "key", "value"))
    if any(isinstance(site.arguments[name], Held) for name in ("query", "key", "value")):
        return unknown(site)
    if site.arguments.get("enable_gqa"):
        key, value = (shared_by(one, query.shape[-3]) for one in (key, value))
    scores = matrix_product(site, query, transposed(key))
    ndim = len(query.shape)
    shape = (*np.broadcast_shapes(query.shape[:-2], key.shape[:-2]), query.shape[-2], key.shape[-2])
    mask = site.arguments.get("attn_mask")
    if mask is not None:
        scores = masked(site, scores, mask, shape)
    site.fix(scores, ndim - 1, "takes a softmax over this axis")
    result = matrix_product(site, Factor(scores, shape), value)
    return [result, None] if site.result_shapes else result


def masked(site: Site, scores: Labels, mask: Any, shape: Shape) -> Labels:
    """Add a mask to scores of `shape`; a mask for each head fixes the heads, unless its own heads can go too."""
    if isinstance(mask, Held):
        site.tie_held(scores, mask, len(shape) - len(mask.shape))
        return scores
    labels, ndim = aligned(site.labels(mask), len(shape)), len(shape)
    sizes = (1,) * (ndim - len(site.shape(mask))) + site.shape(mask)
    for axis in varying(scores):
        if sizes[axis] > 1 and labels is None:
            site.fix(scores, axis, "is masked by a tensor of fixed size")
    if labels is not None and scores is not None and varying(labels) == varying(scores):
        site.ledger.equate(labels, scores)
    else:
        site.pin(labels, "masks scores that are fixed")
    return scores


def shared_by(one: Factor, heads: int) -> Factor:
    """Keys or values repeated, so that there is one for each head of queries."""
    repeats = heads // one.shape[-3]
    varies = one.labels is not None and one.labels.shape[-3] > 1
    labels = np.repeat(one.labels, repeats, -3) if varies and one.labels is not None else one.labels
    return Factor(labels, (*one.shape[:-3], heads, *one.shape[-2:]))


def transposed(one: Factor) -> Factor:
    """The last two axes exchanged."""
    labels = None if one.labels is None else np.swapaxes(one.labels, -1, -2)
    return Factor(labels, (*one.shape[:-2], one.shape[-1], one.shape[-2]))


def einsum(site: Site) -> Value:
    """Two operands, every letter written out and at most once in each."""
    inputs, arrow, output = site.arguments["equation"].replace(" ", "").partition("->")
    words = inputs.split(",")
    plain = arrow and "." not in inputs and all(len(set(word)) == len(word) for word in [*words, output])
    if len(words) != 2 or not plain or any(isinstance(tensor, Held) for tensor in site.tensors):
        return unknown(site)
    letters = sorted(set(inputs) - {","})
    left, right = (
        placed(factor(site, tensor), word, letters) for tensor, word in zip(site.tensors, words, strict=True)
    )
    result = multiply(site, left, right, [axis for axis, letter in enumerate(letters) if letter not in output])
    if result is None:
        return None
    kept = [letters.index(letter) for letter in output]
    return result.transpose([*kept, *(axis for axis in range(len(letters)) if axis not in kept)]).reshape(
        [result.shape[axis] for axis in kept]
    )


def placed(one: Factor, word: str, letters: Sequence[str]) -> Factor:
    """An operand with its axes in the order of `letters`."""
    order = [word.index(letter) for letter in letters if letter in word]
    ordered = Factor(
        None if one.labels is None else one.labels.transpose(order), tuple(one.shape[axis] for axis in order)
    )
    for axis, letter in enumerate(letters):
        if letter not in word:
            ordered = ordered.insert(axis)
    return ordered


PRODUCT_RULES: dict[str, Callable[[Site], Value]] = {
    **dict.fromkeys(["matmul", "mm", "bmm", "addmm"], matmul),
    **dict.fromkeys(["scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"], attention),
    "einsum": einsum,
}
