"""A network -> an archive of `torch.export` with a free batch.

The network is exported in evaluation mode: what depends on the mode (dropout, batch norm) is in the graph all the same
and is switched by whoever reads it. Only dropout inside fused attention is left out then; an export in training mode
keeps it, but cannot express layers that draw random numbers themselves, such as stochastic depth.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from service.contract.errors import InputRejected
from workers.formats.artifacts import remove_traces
from workers.formats.operators import CHECKS, EVAL_MODE, resolve
from workers.packing.mistakes import FAILED, Mistake, explaining, in_words, place_of

BATCH = (
    3  # examples of the export: not 1, which would be baked in, and not 2, a size that programs have for other reasons
)
OTHER_BATCH = 5  # on which the original and the archive are compared
ATTENTION_DROPOUT = ("attention_dropout", "attn_dropout", "dropout_p", "attn_drop")
DATA_DEPENDENT = ("data-dependent", "GuardOnDataDependent", "aten.nonzero", "aten._local_scalar_dense")
BAKED = ("Constraints violated", "specialized", "inferred to be a constant", "ConstraintViolation")

FIXED_BATCH = (
    "the code fixes the size. Write sizes with x.shape[0] or -1 in their first place (x.flatten(1), not "
    "x.reshape(1, -1)), and compare no batch sizes."
)
IN_EVALUATION = "it draws random numbers in evaluation mode too; draw them only `if self.training`"


@dataclass(frozen=True)
class RefusedOperator:
    """A call that the service would refuse, and the line of the user's code that makes it."""

    operator: str
    reason: str
    place: str


def export_network(
    network: nn.Module, inputs: tuple[Tensor, ...], *, training: bool
) -> tuple[ExportedProgram, list[RefusedOperator]]:
    """The program, without traces of its source, and what of it would be refused. Raises `Mistake`.

    `inputs` are tensors (BATCH, …).
    """
    check_batches(network.eval(), inputs)
    network.train(training)
    batch = Dim("batch")
    try:
        with silence():
            program = torch.export.export(network, inputs, dynamic_shapes=({0: batch},) * len(inputs))
    except Exception as error:
        raise Mistake(f"torch.export failed: {reason_of(error)}{place_of(error)}", FAILED) from error
    finally:
        network.eval()
    refused = refused_operators(program, training=training)
    remove_traces(program)
    program.example_inputs = None
    return program, refused


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write the archive."""
    with explaining(f"{path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path)


def check_batches(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """`Mistake` unless the network computes as many rows as it is given, however many."""
    for size in (BATCH, BATCH - 1):
        given = tuple(tensor[:size] for tensor in inputs)
        shapes = " and ".join(str(list(tensor.shape)) for tensor in given)
        try:
            with explaining(f"the network does not run on inputs of shape {shapes}", FAILED), torch.no_grad():
                outputs = network(*given)
        except Mistake as mistake:
            if runs_on_one(network, inputs):
                raise Mistake(
                    f"{mistake}\n  It runs on one example alone: {FIXED_BATCH}", FAILED
                ) from mistake.__cause__
            raise
        for output in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            if isinstance(output, Tensor) and (output.dim() == 0 or len(output) != size):
                raise Mistake(
                    f"the network takes {size} examples and returns shape {list(output.shape)}: {FIXED_BATCH}", FAILED
                )


def runs_on_one(network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the network takes a batch of one."""
    try:
        with torch.no_grad():
            network(*(tensor[:1] for tensor in inputs))
    except Exception:  # noqa: BLE001  the user's own code may raise anything
        return False
    return True


@contextmanager
def silence() -> Iterator[None]:
    """Without what torch tells its developers about an export that fails."""
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def reason_of(error: Exception) -> str:
    """Why an export failed, and the way out."""
    text = str(error)
    if any(mark in f"{type(error).__name__} {text}" for mark in DATA_DEPENDENT):
        return (
            f"{in_words(error)}\n  A branch or a size depends on the values of tensors, and a graph has none. Write it "
            "with torch.where, masks and fixed sizes; no .item(), nonzero() or `if tensor:`."
        )
    if any(mark in f"{type(error).__name__} {text}" for mark in BAKED):
        return f"{in_words(error)}\n  Of the batch, {FIXED_BATCH}"
    return in_words(error)


def refused_operators(program: ExportedProgram, *, training: bool) -> list[RefusedOperator]:
    """Every call of the graph that the strict reader would refuse, once for each operator."""
    found: dict[str, RefusedOperator] = {}
    for node in program.graph.nodes:
        name = archived_name(node)
        if node.op == "call_function" and name not in CHECKS and name not in found:
            try:
                resolve(name)
            except InputRejected as refusal:
                reason = refusal.detail if training else refusal.detail.replace(EVAL_MODE, IN_EVALUATION)
                found[name] = RefusedOperator(name, reason, source_line(node))
    return list(found.values())


def archived_name(node: fx.Node) -> str:
    """An operator's name as an archive writes it."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001  torch has no public name for it
        return f"torch.ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):  # noqa: SLF001  as above
        return f"torch.ops.higher_order.{target.__name__}"
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def source_line(node: fx.Node) -> str:
    """The last line of code that led to a call, with its file; empty where it is not known."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [index for index, line in enumerate(lines) if line.startswith("File ")]
    return " ".join(lines[places[-1] : places[-1] + 2]) if places else ""


def loses_attention_dropout(network: nn.Module) -> bool:
    """Whether dropout inside of attention is switched on, which an export in evaluation mode leaves out."""
    for module in network.modules():
        rates = [getattr(module, name, None) for name in ATTENTION_DROPOUT]
        if isinstance(module, nn.MultiheadAttention):
            rates.append(module.dropout)
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return True
    return False
