"""Dividing rows into splits, row by row, as the docstring of `workers.formats.division` says it."""

import math
from fractions import Fraction

import numpy as np


def divide(num_rows: int, labels: list[int] | None, validation: float, test: float, seed: int) -> dict[str, list[int]]:
    generator = np.random.PCG64(seed)
    keys = [int(generator.random_raw()) for _ in range(num_rows)]
    classes = [0] * num_rows if labels is None else labels
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    shares = {name: share for name, share in shares.items() if share > 0}
    splits: dict[str, list[int]] = {name: [] for name in shares}
    for label in sorted(set(classes)):
        rows = sorted((row for row in range(num_rows) if classes[row] == label), key=lambda row: keys[row])
        for name, count in numbers(len(rows), shares).items():
            splits[name] += rows[:count]
            rows = rows[count:]
        assert rows == []
    return {name: sorted(rows) for name, rows in splits.items()}


def numbers(num_rows: int, shares: dict[str, float]) -> dict[str, int]:
    whole = {name: math.floor(share * num_rows) for name, share in shares.items()}
    fractional = {name: Fraction(share * num_rows) - whole[name] for name, share in shares.items()}
    left = num_rows - sum(whole.values())
    while left > 0:
        largest = next(name for name in shares if fractional[name] == max(fractional.values()))
        whole[largest] += 1
        fractional[largest] = Fraction(-1)
        left -= 1
    if num_rows >= len(shares):
        for name in shares:
            if whole[name] == 0:
                most = next(other for other in shares if whole[other] == max(whole.values()))
                whole[most] -= 1
                whole[name] = 1
    return whole
