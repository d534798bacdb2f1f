"""Names in an archive: parameters, modules and inputs, by pattern.

A name becomes an attribute of a module and a word in the graph's generated forward, so it may hold nothing but
letters, digits, `_` and `-`, and may not hide what a module is made of: a parameter called `forward` or
`__class__` would.
"""

import functools
import keyword
import re

from torch import fx, nn

from service.contract.errors import InputRejected

LONGEST = 512
DEEPEST = 32
PART = re.compile(r"[A-Za-z0-9_-]{1,128}")
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@functools.cache
def reserved_names() -> frozenset[str]:
    """What modules and graph modules already have."""
    return frozenset(dir(nn.Module())) | frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def refuse(what: str, name: str, rule: str) -> InputRejected:
    return InputRejected(
        f"The {what} {name[:120]!r} cannot be read: {rule}. Rename it and export again.", code="name_refused"
    )


def qualified_name(name: str) -> str:
    """`name` itself where it can name a parameter, buffer or module; else `InputRejected`."""
    parts = name.split(".")
    if len(name) > LONGEST or len(parts) > DEEPEST:
        raise refuse("name", name, f"names have at most {DEEPEST} parts and {LONGEST} characters")
    for part in parts:
        if not PART.fullmatch(part):
            raise refuse("name", name, "parts of names are letters, digits, _ and -")
        if part.startswith("__") or part in reserved_names():
            raise refuse("name", name, f"{part!r} is something that every module has")
    return name


def is_qualified_name(name: str) -> bool:
    """Whether `qualified_name` takes it."""
    try:
        qualified_name(name)
    except InputRejected:
        return False
    return True


def identifier(name: str) -> str:
    """`name` itself where it can name an input; else `InputRejected`."""
    if not IDENTIFIER.fullmatch(name) or keyword.iskeyword(name) or name == "self":
        raise refuse("input", name, "inputs are named by ordinary identifiers")
    return name
