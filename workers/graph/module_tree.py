"""Tensors and layers at dotted names in a tree of modules, as `state_dict` writes them.

`layer1.0.conv.weight` is the tensor `weight` of the module `conv` of `0` of `layer1` of the root. A module that
only holds others is a plain `nn.Module`, a container.
"""

from torch import Tensor, nn


def split_name(name: str) -> tuple[str, str]:
    """(module, leaf): `a.b.weight` -> (`a.b`, `weight`); a name at the root has an empty module."""
    module, _, leaf = name.rpartition(".")
    return module, leaf


def module_at(root: nn.Module, name: str) -> nn.Module | None:
    """The module at `name`, the root for an empty one, and None where there is none."""
    found: nn.Module | None = root
    for part in name.split(".") if name else []:
        found = found._modules.get(part) if found is not None else None  # noqa: SLF001  get_submodule raises
    return found


def container_at(root: nn.Module, name: str) -> nn.Module:
    """The module at `name`; containers are made on the way there."""
    found = root
    for part in name.split(".") if name else []:
        if part not in found._modules:  # noqa: SLF001  see module_at
            found.add_module(part, nn.Module())
        found = found.get_submodule(part)
    return found


def place_tensor(root: nn.Module, name: str, value: Tensor, *, persistent: bool) -> None:
    """Register a parameter or buffer at `name`."""
    module, leaf = split_name(name)
    container = container_at(root, module)
    if isinstance(value, nn.Parameter):
        container.register_parameter(leaf, value)
    else:
        container.register_buffer(leaf, value, persistent=persistent)


def place_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at `name`, in place of what stands there."""
    parent, leaf = split_name(name)
    container_at(root, parent)._modules[leaf] = module  # noqa: SLF001  keeps the order of a name that was there


def tensor_at(root: nn.Module, name: str) -> Tensor:
    """The parameter or buffer at `name`; `KeyError` where there is none."""
    module, leaf = split_name(name)
    owner = module_at(root, module)
    found = own_tensors(owner).get(leaf) if owner is not None else None
    if found is None:
        raise KeyError(name)
    return found


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that stand in `module` itself, by leaf."""
    parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return parameters | dict(module.named_buffers(recurse=False, remove_duplicate=False))
