"""The network as ONNX, for every runtime that is not PyTorch: written from the exported program, and run.

The converter would write into each node from which line of which file it came; all of that is dropped, and what
remains depends on the network alone. Not every network can be said in ONNX's operators, and one that cannot is no
fault of its owner's: then there is no file, and a reason that names the operator.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

OPSET = 20
INPUT, OUTPUT, BATCH = "input", "logits", "batch"
LARGEST = 2**31 - 2**24  # bytes of weights; a file of ONNX is one message, of less than 2 GiB
OPERATOR = re.compile(r"\b(?:aten|prims)(?:\.|::)[a-z_0-9]+")


def write_onnx(program: ExportedProgram, path: Path) -> str | None:
    """Write `program`, whose dimension 0 is dynamic, to `path`; return None, or else why there is no file."""
    held = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if held > LARGEST:
        return f"its {held} bytes of weights are more than one file of ONNX can hold"
    try:
        with quiet():
            path.write_bytes(converted(program))
            run_session(path)
    except Exception as error:  # noqa: BLE001  the converter fails in as many ways as there are operators
        path.unlink(missing_ok=True)
        return reason_of(error)
    return None


def converted(program: ExportedProgram) -> bytes:
    """The program as bytes of an ONNX model; the same program gives the same bytes."""
    exported = torch.onnx.export(
        program,
        (),
        dynamo=True,
        external_data=False,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
    )
    assert exported is not None  # noqa: S101  the dynamo exporter always returns its program
    model = exported.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for part in (model, model.graph, *model.graph.input, *model.graph.output, *model.functions):
        forget(part)
    for graph in (model.graph, *model.functions):
        forget_sources(graph)
    return bytes(model.SerializeToString(deterministic=True))


def forget_sources(graph: Any) -> None:
    """Drop from a graph or function, and those inside of its nodes, all that is not computed."""
    del graph.value_info[:]
    for tensor in getattr(graph, "initializer", ()):
        forget(tensor)
    for node in graph.node:
        forget(node)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                forget_sources(inner)


def forget(part: Any) -> None:
    """Drop what a part of a model remembers of its source."""
    part.doc_string = ""
    del part.metadata_props[:]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the converter's advice to its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def reason_of(error: BaseException) -> str:
    """Why a conversion failed: the operator by name, and nothing of the places where it failed."""
    told = ""
    cause: BaseException | None = error
    while cause is not None:
        told, cause = f"{cause} {told}", cause.__cause__  # the innermost cause knows the operator best
    found = OPERATOR.search(told)
    if found is not None:
        return f"ONNX has no form of the operator {found[0]} as it is used here"
    return f"the network cannot be converted to ONNX ({type(error).__name__})"


def run_session(path: Path) -> Callable[[Tensor], Tensor]:
    """The model of an ONNX file, run by ONNX Runtime on the CPU with as many threads as torch has."""
    # Heavy, and not everybody who verifies has such a file.
    import onnxruntime  # type: ignore[import-untyped]  # it ships no annotations

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: x.numpy()})
        return torch.from_numpy(np.asarray(logits))

    return run
