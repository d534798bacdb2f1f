"""An uploaded model -> our canonical form, and back to a module.

Weights of a built-in architecture become `model.safetensors` beside `model.json`; a network as an archive of
`torch.export` stays `model.pt2` beside `model.json` (see graph_models.py).

A built-in network is first built on torch's meta device, which has shapes but no memory: names and shapes
are compared, and parameters and MACs counted, before a byte is allocated on a stranger's word.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from service.contract.specs import Architecture, ModelDeclaration
from workers.evaluation.cost import measure_cost
from workers.formats import safetensors_file
from workers.formats.checkpoint import read_checkpoint
from workers.formats.graph_models import PROGRAM, load_graph, read_graph
from workers.formats.tracing import as_graph
from workers.formats.transformers_folder import CONFIG, read_transformers
from workers.formats.units import units_of
from workers.formats.weights import Found, find_state, fitted, without_prefixes
from workers.graph.layer_graph import LayerGraph
from workers.students.architectures import build

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
PLACEHOLDER_SHAPE, PLACEHOLDER_CLASSES = (1, 32, 32), 2


def read_safetensors(path: Path) -> Any:
    """The tensors of a safetensors file, by name, once its header was found sound."""
    safetensors_file.read_header(path)
    return safetensors.torch.load_file(path)


# How a file is read, by the end of its name, and what its format is called.
READERS: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    ".safetensors": ("safetensors", read_safetensors),
    ".pt": ("checkpoint", read_checkpoint),
    ".pth": ("checkpoint", read_checkpoint),
    ".bin": ("checkpoint", read_checkpoint),
}
LATER = {".onnx": "ONNX files"}


def read_model(folder: Path, declaration: ModelDeclaration, out: Path) -> dict[str, Any]:
    """Read the uploaded files of a model, write its canonical form into `out`, return its facts.

    Parameters
    ----------
    folder
        Where the uploaded files lie, under their declared names.
    declaration
        What its owner says of it; a missing input shape or number of classes is taken from the weights
        where they say it.
    out
        An existing folder for `model.safetensors` or `model.pt2`, and `model.json`.

    Raises
    ------
    InputRejected
        With a `code` and what to do; "architecture_mismatch" lists what does not fit key by key.

    """
    if CONFIG in declaration.files:
        facts = read_transformers(folder, declaration, out)
        write_description(None, facts, out)
        return facts
    if [Path(name).suffix for name in declaration.files] == [".pt2"]:
        return read_exported(folder, declaration, out)
    path, form, read = choose_reader(folder, declaration)
    if declaration.architecture is None:
        raise InputRejected(
            f"{path.name} holds weights only; say which network they belong to: "
            '"architecture": {"name": …, "options": {…}}. GET /v1/architectures lists the names.',
            code="architecture_missing",
        )
    found = find_state(read(path))
    check_size(found, path)
    architecture = resolved(declaration.architecture, found)
    network = on_meta(architecture)
    expected = network.state_dict()
    fitting = fitted(without_prefixes(found, expected), expected, describe(architecture))
    facts = signature_of(architecture, network) | {"format": form}
    network.load_state_dict(fitting.tensors, assign=True)  # no second copy of the weights
    units, notes = units_of(lambda: as_graph(network, input_shape_of(architecture)))
    facts |= {"units": units, "notes": [*fitting.notes, *notes]}
    write_canonical(fitting.tensors, architecture, facts, out)
    return facts


def read_exported(folder: Path, declaration: ModelDeclaration, out: Path) -> dict[str, Any]:
    """Read an archive of `torch.export`, which says itself what its network is."""
    (name,) = declaration.files
    if declaration.architecture is not None:
        raise InputRejected(
            f"{name} says what its network is, and {declaration.architecture.name} is declared besides; "
            "leave the architecture out.",
            code="architecture_unexpected",
        )
    facts = read_graph(folder / name, out)
    write_description(None, facts, out)
    return facts


def choose_reader(folder: Path, declaration: ModelDeclaration) -> tuple[Path, str, Callable[[Path], Any]]:
    """The one file with weights, its format and its reader."""
    names = list(declaration.files)
    for name in names:
        if later := LATER.get(Path(name).suffix):
            raise InputRejected(
                f"{name}: {later} are not read by this version; upload model.pt2 (torch.export), or "
                "model.safetensors or checkpoint.pt (a state dict) with the name of its architecture.",
                code="not_available",
            )
    if len(names) != 1 or Path(names[0]).suffix not in READERS:
        raise InputRejected(
            f"A model is one file, {PROGRAM}, model.safetensors or checkpoint.pt (also .pth, .bin); "
            f"got {', '.join(names)}.",
            code="unexpected_files",
        )
    form, read = READERS[Path(names[0]).suffix]
    return folder / names[0], form, read


def check_size(found: Found, path: Path) -> None:
    """Refuse tensors that claim more elements than the file has bytes for, such as one value repeated."""
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in found.tensors.values())
    if claimed > path.stat().st_size:
        raise InputRejected(
            f"The weights in {path.name} claim {claimed} bytes, and the file has {path.stat().st_size}. "
            "Expected every tensor to be stored whole and once: save contiguous copies.",
            code="too_large",
        )


def resolved(architecture: Architecture, found: Found) -> Architecture:
    """The architecture with all its options, a missing shape or number of classes taken from the weights.

    Raises `InputRejected` with code "option_missing" where the weights do not say it.
    """
    options = architecture.options
    if options.input_shape is not None and options.num_classes is not None:
        return architecture
    shape, classes = options.input_shape, options.num_classes
    sketch = on_meta(architecture.completed(sketched(architecture)))
    expected = sketch.state_dict()
    matrices = [name for name, tensor in expected.items() if tensor.dim() >= 2]
    tensors = without_prefixes(found, expected).tensors
    if classes is None:
        classes = inferred_classes(architecture, tensors, matrices[-1])
    if shape is None:
        shape = inferred_shape(architecture, tensors, matrices[0])
    return checked_architecture(architecture, {"input_shape": shape, "num_classes": classes})


def sketched(architecture: Architecture) -> Architecture:
    """The same architecture at a placeholder's size, to learn the names of its layers."""
    return checked_architecture(architecture, {"input_shape": PLACEHOLDER_SHAPE, "num_classes": PLACEHOLDER_CLASSES})


def checked_architecture(architecture: Architecture, changes: Mapping[str, Any]) -> Architecture:
    """An architecture with changed options, validated as if declared so."""
    options = architecture.options.model_dump(exclude_unset=True) | dict(changes)
    try:
        return Architecture(name=architecture.name, options=options)
    except ValueError as error:
        raise InputRejected(
            f"The weights say options that {architecture.name} does not take ({dict(changes)}); "
            "declare input_shape and num_classes.",
            code="option_missing",
        ) from error


def inferred_classes(architecture: Architecture, tensors: Mapping[str, Tensor], last: str) -> int:
    """The rows of the classifier's weight."""
    weight = tensors.get(last)
    if weight is None or weight.dim() != 2:
        raise InputRejected(
            f"num_classes is missing, and the weights do not say it: {architecture.name} keeps it in {last}, which "
            f"{'is not there' if weight is None else f'has shape {list(weight.shape)}'}. "
            'Give it: "options": {"num_classes": …}.',
            code="option_missing",
        )
    return weight.shape[0]


def inferred_shape(architecture: Architecture, tensors: Mapping[str, Tensor], first: str) -> tuple[int, ...]:
    """The columns of the first weight; a convolution's channels alone are not enough."""
    weight = tensors.get(first)
    if weight is not None and weight.dim() == 2:
        return (weight.shape[1],)
    hint = '"options": {"input_shape": [channels, height, width]}'
    if weight is not None and weight.dim() == 4:
        channels = weight.shape[1]
        hint = f'"options": {{"input_shape": [{channels}, height, width]}} ({first} reads {channels} channels)'
    raise InputRejected(
        f"input_shape is missing, and the weights of {architecture.name} do not say how large its images are. "
        f"Give it: {hint}.",
        code="option_missing",
    )


def construct(architecture: Architecture) -> nn.Module:
    """The network of a completed architecture, with initial weights that are about to be replaced."""
    options = architecture.options
    if options.input_shape is None or options.num_classes is None:
        raise ValueError(f"{architecture.name} is incomplete: input_shape and num_classes must be known")
    own = options.model_dump(exclude={"input_shape", "num_classes"})
    return build(architecture.name, own, input_shape=options.input_shape, num_classes=options.num_classes, seed=None)


def on_meta(architecture: Architecture) -> nn.Module:
    """The network without memory for its weights."""
    try:
        with torch.device("meta"):
            return construct(architecture).eval()
    except (ValueError, RuntimeError, OverflowError) as error:
        raise InputRejected(
            f"{describe(architecture)} cannot be built: {str(error).splitlines()[0]}", code="architecture_options"
        ) from error


def describe(architecture: Architecture) -> str:
    """An architecture in words."""
    options = architecture.options.model_dump(exclude_none=True)
    return f"{architecture.name} ({', '.join(f'{name} {value}' for name, value in options.items())})"


def facts_of(architecture: Architecture, network: nn.Module) -> dict[str, Any]:
    """What the record of a model says of `network`, which lies with its weights on the CPU."""
    units, notes = units_of(lambda: as_graph(network, input_shape_of(architecture)))
    return signature_of(architecture, network) | {"format": "safetensors", "units": units, "notes": notes}


def signature_of(architecture: Architecture, network: nn.Module) -> dict[str, Any]:
    """What a network takes, gives and costs; it may lie on the meta device."""
    shape, classes = input_shape_of(architecture), architecture.options.num_classes
    try:
        cost = measure_cost(network, shape)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise InputRejected(
            f"{describe(architecture)} cannot run on inputs of shape {list(shape)}: {str(error).splitlines()[0]}",
            code="architecture_options",
        ) from error
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "bytes": cost.bytes,
        "inputs": [{"name": "input", "shape": ["batch", *shape], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": ["batch", classes], "dtype": "float32"}],
        "architecture": architecture.model_dump(mode="json"),
    }


def input_shape_of(architecture: Architecture) -> tuple[int, ...]:
    """The shape of one example that a completed architecture takes."""
    shape = architecture.options.input_shape
    assert shape is not None  # noqa: S101  construct() has refused it
    return tuple(shape)


def write_canonical(
    tensors: Mapping[str, Tensor], architecture: Architecture, facts: Mapping[str, Any], out: Path
) -> None:
    """Write `model.safetensors` and `model.json`; the first names its architecture too."""
    described = architecture.model_dump(mode="json")
    metadata = {"format": "pt", "architecture": json.dumps(described, sort_keys=True)}
    safetensors_file.write_tensors(tensors, out / WEIGHTS, metadata)
    write_description(described, facts, out)


def write_description(architecture: Mapping[str, Any] | None, facts: Mapping[str, Any], out: Path) -> None:
    """Write `model.json`; `architecture` is None for a network that its archive describes."""
    text = json.dumps({"architecture": architecture, "facts": dict(facts)}, indent=2, sort_keys=True)
    (out / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load_architecture(folder: Path) -> Architecture | None:
    """The architecture of a canonical model, from `model.json` or else from its weights' metadata.

    None for a network that is described by its archive alone.
    """
    if (folder / DESCRIPTION).exists():
        described = json.loads((folder / DESCRIPTION).read_bytes())["architecture"]
    else:
        described = json.loads(safetensors_file.read_header(folder / WEIGHTS).metadata.get("architecture", "null"))
    return None if described is None else Architecture.model_validate(described)


def load_model(folder: Path) -> nn.Module:
    """The network of a canonical folder or of an artifact on the CPU, float32, in evaluation mode.

    An archive has weights of its own; those of a `model.safetensors` beside it take their place.
    """
    architecture = load_architecture(folder)
    network = load_graph(folder) if architecture is None else construct(architecture)
    if architecture is not None or (folder / WEIGHTS).exists():
        safetensors.torch.load_model(network, folder / WEIGHTS, strict=True)
    return network.eval()


def load_as_graph(folder: Path) -> LayerGraph:
    """The network of a canonical folder or of an artifact as a graph, whatever it arrived as; see `load_model`."""
    network, architecture = load_model(folder), load_architecture(folder)
    if isinstance(network, LayerGraph):
        return network
    assert architecture is not None  # noqa: S101  else its archive was loaded, as a graph
    return as_graph(network, input_shape_of(architecture))
