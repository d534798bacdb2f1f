"""Which files a model or dataset may consist of; a file's name says its role."""

from collections.abc import Iterable, Mapping

from service.contract.errors import FieldError, Invalid
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

# A Hugging Face folder, and what such folders hold besides: each with the way out.
CONFIG, FOLDER_WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
FOLDER = (CONFIG, FOLDER_WEIGHTS, TOKENIZER)
SAFE = "save it with model.save_pretrained(folder), which writes model.safetensors"
WHOLE = 'weights in several files are not read; save them in one: model.save_pretrained(folder, max_shard_size="1TB")'
REFUSED_IN_FOLDER: Mapping[str, str] = {
    ".bin": f"pickles can run code and are not read; {SAFE}",
    ".pt": f"pickles can run code and are not read; {SAFE}",
    ".pth": f"pickles can run code and are not read; {SAFE}",
    ".msgpack": f"weights of Flax are not read; {SAFE}",
    ".h5": f"weights of TensorFlow are not read; {SAFE}",
    ".py": f"Python code is not run; {EXPORT}",
    ".index.json": WHOLE,
    ".safetensors": WHOLE,
    ".json": "only config.json is read, and tokenizer.json kept; leave it out",
    ".txt": "only config.json is read, and tokenizer.json kept; leave it out",
}


def _pointer(name: str) -> str:
    return f"/files/{name.replace('~', '~0').replace('/', '~1')}"


def _refuse(names: Iterable[str], allowed: Iterable[str], refused: Mapping[str, str] = REFUSED) -> None:
    """Raise Invalid for the names that have no role, with the way out where there is one."""
    known = tuple(allowed)
    wrong = []
    for name in names:
        if name in known:
            continue
        refusal = next((why for suffix, why in refused.items() if name.lower().endswith(suffix)), "not a known name")
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


def _check_no_architecture(architecture: Architecture | None, name: str) -> None:
    if architecture is not None:
        detail = f"{name} says itself what its network is; leave the architecture out, or upload weights alone"
        raise Invalid(f"/architecture: {detail}", errors=[FieldError(pointer="/architecture", detail=detail)])


def _check_folder(declaration: ModelDeclaration) -> None:
    _refuse(declaration.files, FOLDER, REFUSED_IN_FOLDER)
    missing = [name for name in (CONFIG, FOLDER_WEIGHTS) if name not in declaration.files]
    if missing:
        detail = f"a Hugging Face folder is {CONFIG} and {FOLDER_WEIGHTS}; {', '.join(missing)} is missing"
        raise Invalid(f"/files: {detail}", errors=[FieldError(pointer="/files", detail=detail)])
    _check_no_architecture(declaration.architecture, CONFIG)


def check_model(declaration: ModelDeclaration) -> None:
    """Raise Invalid unless a model can be made of these files."""
    names = set(declaration.files)
    if {CONFIG, TOKENIZER} & names:
        _check_folder(declaration)
        return
    allowed = (GRAPH, *WEIGHTS)
    _refuse(declaration.files, allowed)
    if len(names) != 1:
        raise _wrong_count(names, allowed)
    if GRAPH in names:
        _check_no_architecture(declaration.architecture, GRAPH)
    else:
        _check_architecture(declaration.architecture)


def check_dataset(declaration: DatasetDeclaration) -> None:
    """Raise Invalid unless a dataset can be made of these files."""
    _refuse(declaration.files, DATASETS)
    if len(declaration.files) != 1:
        raise _wrong_count(declaration.files, DATASETS)
