"""PyTorch checkpoints, the pickled kind, read so that nothing in them runs.

A pickle is a small program. Before torch sees one, the names that it would import are listed here
without running it, and compared with the few that a file of tensors needs; anything else (a whole
module, NumPy objects, `os.system`) is refused by name. What is left goes through
`torch.load(weights_only=True)`, which keeps a list of its own.

Two containers are read: the zip archives that torch has written since 1.6, whose tensors are
memory-mapped, and the chain of pickles that came before. TorchScript archives and the tar files of
the first versions are refused.
"""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from service.contract.errors import InputRejected
from workers.formats import archive

MAX_PICKLE_BYTES = 64 * 2**20
MAX_ENTRIES = 100_000
MAX_OPCODES = 5_000_000  # a state dict has about 50 for each tensor
TAR, TAR_AT = b"ustar", 257  # the mark in a tar file's first block
LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch's magic number is a pickle of its own
LEGACY_PICKLES = 4  # after it: protocol, machine, the object, the keys of its storages
OPCODES_WITH_NAMES = {"GLOBAL", "INST"}
OPCODES_REFUSED = {"STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ_EX"}

STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.nn.parameter Parameter",
        "torch Size",
        "torch device",
        "torch.storage UntypedStorage",
        "_codecs encode",
        "__builtin__ set",
        "builtins set",
    }
    | {f"torch {kind}Storage" for kind in STORAGES}
    | {f"torch {dtype}" for dtype in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")}
)
WAY_OUT = (
    "Nothing in it was run. Save the weights alone: safetensors.torch.save_file(model.state_dict(), "
    '"model.safetensors"), or torch.save(model.state_dict(), "checkpoint.pt").'
)


def read_checkpoint(path: Path) -> Any:
    """Return what a checkpoint holds: nested dictionaries, lists, numbers, text and CPU tensors.

    Raises `InputRejected`: "pickle_refused", "torchscript_refused", "format_refused", "truncated", "too_large".
    """
    if archive.is_zip(path):
        check_archive(path)
        return load(path, mmap=True)
    if is_tar(path):
        raise InputRejected(
            f"{path.name} is a tar file, as torch wrote before version 0.2; that format is not read. "
            "Load it with the torch that wrote it and save its state_dict anew, best as safetensors.",
            code="format_refused",
        )
    check_legacy(path)
    return load(path, mmap=False)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar archive, by its mark alone: `tarfile` would try to unpack it."""
    with path.open("rb") as file:
        file.seek(TAR_AT)
        return file.read(len(TAR)) == TAR


def check_archive(path: Path) -> None:
    """Judge a zip checkpoint by its table of contents and the names in its pickle."""
    with archive.opened(path, max_entries=MAX_ENTRIES) as file:
        members = {member.filename.partition("/")[2]: member for member in file.infolist()}
        if "constants.pkl" in members or any(name.startswith("code/") for name in members):
            raise InputRejected(
                f"{path.name} is a TorchScript archive, which holds code. {WAY_OUT}", code="torchscript_refused"
            )
        if "models/model.json" in members or "archive_format" in members:
            raise InputRejected(
                f"{path.name} is a torch.export archive; upload it as model.pt2, without an architecture.",
                code="unexpected_files",
            )
        if "data.pkl" not in members:
            raise InputRejected(
                f"{path.name} is a zip archive, but no checkpoint of torch: data.pkl is missing. {WAY_OUT}",
                code="format_refused",
            )
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise InputRejected(
                f"{path.name} has compressed members, which torch never writes; upload the file as torch.save left it.",
                code="format_refused",
            )
        if members["data.pkl"].file_size > MAX_PICKLE_BYTES:
            refuse_pickle(path, f"its pickle has {members['data.pkl'].file_size} bytes", "too_large")
        check_names(path, io.BytesIO(file.read(members["data.pkl"])))


def check_legacy(path: Path) -> None:
    """Judge a checkpoint of torch before 1.6: five pickles, then raw storages."""
    with path.open("rb") as file:
        if file.read(len(LEGACY_START)) != LEGACY_START:
            file.seek(0)
            check_names(path, file)
            refuse_pickle(path, "it was not written by torch.save")
        for _ in range(LEGACY_PICKLES):
            check_names(path, file)


def check_names(path: Path, file: BinaryIO) -> None:
    """Refuse a pickle that would import anything but what tensors need. Nothing is imported here."""
    foreign: dict[str, None] = {}
    start = file.tell()
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(file)):
            if (position or 0) - start > MAX_PICKLE_BYTES or number > MAX_OPCODES:
                refuse_pickle(
                    path, f"its pickle is longer than {MAX_PICKLE_BYTES} bytes or {MAX_OPCODES} opcodes", "too_large"
                )
            if opcode.name in OPCODES_WITH_NAMES and argument not in ALLOWED:
                foreign[str(argument).replace(" ", ".")] = None
            if opcode.name in OPCODES_REFUSED:
                foreign.setdefault(f"something by the opcode {opcode.name}")
    except (ValueError, IndexError, OverflowError) as error:
        refuse_pickle(path, f"its pickle cannot be read ({str(error)[:200]})", "truncated")
    if foreign:
        refuse_pickle(path, describe(list(foreign)))


def describe(foreign: list[str]) -> str:
    """What a pickle with foreign names is, in words."""
    listed = ", ".join(name[:120] for name in foreign[:5]) + (", …" if len(foreign) > 5 else "")
    if any(name.startswith("torch.nn.modules") for name in foreign):
        return f"it is a whole pickled module, which needs its Python classes ({listed})"
    return f"its pickle asks to import {listed}, and only tensors in dictionaries and lists are taken"


def refuse_pickle(path: Path, fault: str, code: str = "pickle_refused") -> NoReturn:
    """Raise `InputRejected` with the way out."""
    raise InputRejected(f"{path.name} cannot be read: {fault}. {WAY_OUT}", code=code)


def load(path: Path, *, mmap: bool) -> Any:
    """The restricted loader of torch itself, its errors translated."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        refuse_pickle(path, f"torch refuses its pickle ({(str(error) or repr(error)).splitlines()[0][:200]})")
    except MemoryError:
        raise
    except Exception as error:  # a hostile pickle makes the loader fail in any way it likes
        if "allocate memory" in str(error):  # torch's allocator has no error of its own
            raise
        refuse_pickle(path, f"torch cannot load it ({(str(error) or repr(error)).splitlines()[0][:200]})", "truncated")
