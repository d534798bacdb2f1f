"""What leaves: weights as safetensors, and the whole network as an archive of `torch.export`.

Both depend on the network alone: the same weights give the same bytes, and nothing in them tells
where they were made. An exported program would otherwise carry the source lines and paths of the
machine (stack traces) and a pickle of its example inputs.
"""

import io
import os
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from service.contract.errors import Internal
from workers.evaluation.cost import evaluating
from workers.formats.safetensors_file import state_without_aliases, write_tensors
from workers.formats.token_inputs import dynamic_sizes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LEFT_OUT_OF_NODES = ("stack_trace", "source_fn_stack", "from_node", "original_aten", "seq_nr")


def write_safetensors(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model's state as safetensors: the same state and metadata give the same bytes.

    A shared tensor is written once; the metadata say under which name, as safetensors' `save_model` does.
    """
    tensors, aliases = state_without_aliases(model)
    write_tensors(tensors, path, {"format": "pt", **aliases, **metadata})


def export_program(model: nn.Module, example_input: Tensor, path: Path) -> ExportedProgram:
    """Write `model` in evaluation mode as a .pt2 archive with a dynamic batch; return what was written.

    A graph that reads token sequences of any length keeps that freedom.

    Parameters
    ----------
    model
        Takes one tensor (B, …) and returns one (B, …).
    example_input
        (B, …) with B at least 2, on the model's device; a batch of 1 would become a constant of the graph.
    path
        Where to write.

    Raises
    ------
    OSError
        Where there is no room for the file.

    """
    if len(example_input) < 2:
        raise ValueError(f"an export needs an example batch of 2 or more, and got {len(example_input)}")
    with evaluating(model), torch.no_grad():
        # Always two examples: the archive remembers how many there were.
        sizes = dynamic_sizes(model, example_input)
        program = torch.export.export(model, (example_input[:2],), dynamic_shapes=(sizes,))
    remove_traces(program)
    program.example_inputs = None
    with PatientWriter(path) as file:
        torch.export.save(program, file)
    check_no_paths(path)
    return program


class PatientWriter(io.BufferedWriter):
    """A file for torch's archive writer, which ends the process when a write fails under it.

    Here the writer is told that all went well, and the error is raised when it has done its work.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("wb", buffering=0))
        self.failure: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        if self.failure is None:
            try:
                super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a position, as torch does at the end; raises what writing had to say."""
        if self.failure is not None:
            raise self.failure
        return super().seek(position, whence)


def remove_traces(program: ExportedProgram) -> None:
    """Drop from every node, of subgraphs too, what was remembered of the source code."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in LEFT_OUT_OF_NODES:
                    node.meta.pop(key, None)


def check_no_paths(path: Path) -> None:
    """Raise `Internal` when the archive names folders of this machine."""
    private = {str(Path.cwd()), sys.prefix, sysconfig.get_path("purelib"), str(Path(torch.__file__).parent)}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".json"):
                continue
            text = archive.read(name).decode("utf-8", "replace")
            if leaked := [folder for folder in private if len(folder) > 1 and folder in text]:
                raise Internal(f"the exported program's {name} names {leaked[0]}")
