"""What a unit costs in seconds, measured.

Each group in turn is cut to half, and the network without that half is timed in alternation with the whole: the
difference, shared among the units that went, is what one of them takes. Kernels do not shorten in proportion to
their channels, and differences within the noise of the machine count as nothing, so this is an estimate: it says
which groups are worth cutting, and every step is measured again as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.evaluation.latency import measure_latency
from workers.graph.groups import Groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.surgery import remove
from workers.journal import Journal

ROUNDS = 30
SECONDS_PER_PROBE = 0.5


@dataclass(frozen=True, eq=False)
class LatencyProbe:
    """Times networks at batch 1 beside their teacher."""

    teacher: LayerGraph
    groups: Groups
    example: Tensor  # (1 or more, …), on the device
    device: torch.device
    journal: Journal

    def seconds(self, network: LayerGraph) -> tuple[float, float]:
        """Of one pass of the teacher and one of `network`, measured in alternation; medians."""
        return self._seconds(network)[:2]

    def per_unit(self) -> dict[str, float]:
        """For each group the seconds that one of its units takes; 0 where nothing can be measured."""
        found: dict[str, float] = {}
        for place, (name, group) in enumerate(self.groups.items()):
            self.journal.progress(place, len(self.groups))
            self.journal.check()
            half = group.num_units // 2
            found[name] = self._saved(name, half) / half if half else 0.0
        return found

    def _saved(self, name: str, half: int) -> float:
        whole, halved, noise = self._seconds(remove(self.teacher, {name: range(half)}, self.groups))
        return whole - halved if whole - halved > noise else 0.0

    def _seconds(self, network: LayerGraph) -> tuple[float, float, float]:
        models: Mapping[str, LayerGraph] = {"teacher": self.teacher, "network": network}
        found = measure_latency(
            models,
            self.example,
            batch_sizes=(1,),
            rounds=ROUNDS,
            device=self.device,
            budget_seconds=SECONDS_PER_PROBE,
        )
        (teacher,), (own,) = found["teacher"], found["network"]
        # The median of n rounds is uncertain by about the interquartile range over √n.
        noise = (teacher.iqr_seconds + own.iqr_seconds) / ROUNDS**0.5
        return teacher.median_seconds, own.median_seconds, noise
