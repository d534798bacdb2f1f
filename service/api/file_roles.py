"""Which files a model or dataset may consist of; a file's name says its role."""

from collections.abc import Iterable, Mapping

from service.contract.errors import FieldError, Invalid, NotAvailable
from service.contract.specs import Architecture, DatasetDeclaration, ModelDeclaration

GRAPH = "model.pt2"
WEIGHTS = ("model.safetensors", "checkpoint.pt", "checkpoint.pth", "checkpoint.bin")
DATASETS = ("data.npz", "data.safetensors", "data.parquet", "images.zip")
EXPORT = (
    f"export it with torch.export as {GRAPH}, or save its state dict as model.safetensors and name its architecture"
)
REFUSED: Mapping[str, str] = {
    ".onnx": f"ONNX files are not read; {EXPORT}",
    ".pkl": f"pickles can run code and are not read; {EXPORT}",
    ".pickle": f"pickles can run code and are not read; {EXPORT}",
    ".joblib": f"pickles can run code and are not read; {EXPORT}",
    ".py": f"Python code is not run; {EXPORT}",
    ".ptl": f"TorchScript is not read; {EXPORT}",
    ".torchscript": f"TorchScript is not read; {EXPORT}",
    ".h5": f"Keras files are not read; {EXPORT}",
}
LATER: Mapping[str, str] = {
    "config.json": "Hugging Face folders",
    "tokenizer.json": "Hugging Face folders",
}


def _pointer(name: str) -> str:
    return f"/files/{name.replace('~', '~0').replace('/', '~1')}"


def _refuse(names: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise Invalid for the names that have no role, with the way out where there is one."""
    known = tuple(allowed)
    wrong = []
    for name in names:
        if name in known:
            continue
        refusal = next((why for suffix, why in REFUSED.items() if name.lower().endswith(suffix)), "not a known name")
        wrong.append(FieldError(pointer=_pointer(name), detail=f"{refusal}; allowed are {', '.join(known)}"))
    if wrong:
        raise Invalid(f"{wrong[0].pointer}: {wrong[0].detail}", errors=wrong)


def _wrong_count(names: Iterable[str], allowed: Iterable[str]) -> Invalid:
    detail = f"expected exactly one of {', '.join(allowed)}; got {', '.join(sorted(names)) or 'none'}"
    return Invalid(f"/files: {detail}", errors=[FieldError(pointer="/files", detail=detail)])


def _check_architecture(architecture: Architecture | None) -> None:
    if architecture is None:
        detail = 'weights alone do not make a model; name their architecture: {"name": "resnet20", "options": {…}}'
        raise Invalid(f"/architecture: {detail}", errors=[FieldError(pointer="/architecture", detail=detail)])
    missing = [name for name in ("input_shape", "num_classes") if getattr(architecture.options, name) is None]
    if missing:
        detail = "a model has no teacher to take this from; give it"
        wrong = [FieldError(pointer=f"/architecture/options/{name}", detail=detail) for name in missing]
        raise Invalid(f"{wrong[0].pointer}: {detail}", errors=wrong)


def _check_no_architecture(architecture: Architecture | None) -> None:
    if architecture is not None:
        detail = f"{GRAPH} says itself what its network is; leave the architecture out, or upload weights"
        raise Invalid(f"/architecture: {detail}", errors=[FieldError(pointer="/architecture", detail=detail)])


def check_model(declaration: ModelDeclaration) -> None:
    """Raise Invalid or NotAvailable unless a model can be made of these files."""
    names = set(declaration.files)
    for name, what in LATER.items():
        if name in names:
            detail = f"{what} are not read yet; upload {GRAPH}, or model.safetensors of a built-in architecture"
            raise NotAvailable(f"/files: {detail}", errors=[FieldError(pointer=_pointer(name), detail=detail)])
    allowed = (GRAPH, *WEIGHTS)
    _refuse(declaration.files, allowed)
    if len(names) != 1:
        raise _wrong_count(names, allowed)
    check_network = _check_no_architecture if GRAPH in names else _check_architecture
    check_network(declaration.architecture)


def check_dataset(declaration: DatasetDeclaration) -> None:
    """Raise Invalid unless a dataset can be made of these files."""
    _refuse(declaration.files, DATASETS)
    if len(declaration.files) != 1:
        raise _wrong_count(declaration.files, DATASETS)
