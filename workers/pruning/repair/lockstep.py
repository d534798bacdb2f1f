"""Two networks carried through the same examples side by side, stage by stage."""

from torch import Tensor, fx

from workers.graph.layer_graph import LayerGraph
from workers.pruning.repair.frontier import Frontier, Values
from workers.pruning.repair.stages import Leg, Stage


class Walk(fx.Interpreter):
    """Carries values on along the legs of one network."""

    def along(self, leg: Leg, values: Values, x: Tensor | None) -> tuple[Values, Values]:
        """What is wanted at the end of the leg, and what later legs need, by the name of its node.

        `values` are what the leg before left; `x` is the network's input, which the first leg begins with.
        """
        self.env = {node: values.pop(node.name) for node in self.graph.nodes if node.name in values}
        for node in leg.nodes:
            self.env[node] = x if node.op == "placeholder" else self.run_node(node)
            for dead in leg.dead_after.get(node, ()):
                self.env.pop(dead, None)
        found = {node.name: self.env[node] for node in leg.wanted}
        left = {node.name: self.env[node] for node in leg.left}
        self.env = {}
        return found, left


class Pair:
    """A student beside its teacher, and where both stand for each batch."""

    def __init__(self, student: LayerGraph, teacher: LayerGraph, frontier: Frontier) -> None:
        self.student, self.teacher, self.frontier = Walk(student), Walk(teacher), frontier

    def along(self, stage: Stage, batch: int, x: Tensor | None) -> tuple[Values, Values]:
        """One batch carried on by a stage: what is wanted of the student, and what of the teacher."""
        reached = self.frontier.take(batch)
        seen, mine = self.student.along(stage.student, reached.get("student", {}), x)
        aims, theirs = self.teacher.along(stage.teacher, reached.get("teacher", {}), x)
        self.frontier.put(batch, {"student": mine, "teacher": theirs})
        return seen, aims
