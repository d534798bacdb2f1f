"""`module:function`: the user's own network, built by the user's own code in the user's own process."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
from torch import nn

from service.contract.errors import InputRejected
from workers.formats.checkpoint import read_checkpoint
from workers.formats.weights import Found, find_state, fitted, without_prefixes
from workers.packing.mistakes import Mistake, explaining

EXPECTED = "expected module:function, such as nets:build or nets.py:Net, which gives an nn.Module"


def build_network(target: str) -> nn.Module:
    """The network that `target` names, on the CPU. Raises `Mistake`."""
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name:
        raise Mistake(f"{target!r} is not understood; {EXPECTED}")
    found: Any = imported(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise Mistake(f"{place} has no {name}; it has {', '.join(public_names(found)) or 'no names'}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module) and callable(found):
        with explaining(f"{target} could not be called without arguments"):
            found = found()
    if not isinstance(found, nn.Module):
        raise Mistake(f"{target} gives {type(found).__name__}; {EXPECTED}")
    return found.cpu()


def imported(place: str) -> ModuleType:
    """A module by its name, looked for in the working folder too, or by its file."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if place.endswith(".py"):
        return imported_file(Path(place))
    try:
        with explaining(f"{place} could not be imported"):
            return importlib.import_module(place)
    except Mistake as mistake:
        cause = mistake.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name in {place, place.partition(".")[0]}:
            raise Mistake(f"there is no module {place} here or among the installed packages; {EXPECTED}") from cause
        raise


def imported_file(path: Path) -> ModuleType:
    """A module by its file; its neighbours can be imported by it."""
    if not path.exists():
        raise Mistake(f"there is no file {path}; {EXPECTED}")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101  a file whose name ends with .py always has a loader
    assert spec.loader is not None  # noqa: S101  as above
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with explaining(f"{path} could not be imported"):
        spec.loader.exec_module(module)
    return module


def public_names(found: Any) -> list[str]:
    """Names that a person may have meant."""
    return [name for name in vars(found) if not name.startswith("_")] if isinstance(found, ModuleType) else []


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Give `network` the weights of a checkpoint; what was done to make them fit, in words. Raises `Mistake`."""
    if not path.exists():
        raise Mistake(f"--weights {path}: there is no such file")
    expected = network.state_dict()
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else read_checkpoint(path)
        found = without_prefixes(find_state(content), expected)
        fitting = fitted(with_aliases(found, network), expected, "the network")
    except InputRejected as error:
        raise Mistake(f"--weights {path}: {error.detail}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise Mistake(f"--weights {path} cannot be read: {error}") from error
    network.load_state_dict(fitting.tensors)
    return list(fitting.notes)


def with_aliases(found: Found, network: nn.Module) -> Found:
    """Safetensors keep a shared tensor under one of its names; give it back under the others."""
    tensors = dict(found.tensors)
    stored = {id(tensor): tensors[name] for name, tensor in held(network).items() if name in tensors}
    for name, tensor in held(network).items():
        if name not in tensors and id(tensor) in stored:
            tensors[name] = stored[id(tensor)]
    return Found(tensors, found.notes)


def held(network: nn.Module) -> dict[str, Any]:
    """Parameters by every name that they have."""
    return dict(network.named_parameters(remove_duplicate=False))
