"""A Hugging Face folder (`config.json` and `model.safetensors`) -> the same network as an archive of torch.export.

The class is transformers' own, one of a list (transformers_fields.py); its configuration is made from fields that
were judged one by one (transformers_config.py), its weights are read here. Neither `from_pretrained` nor the hub has
a part in it: no code, no pickle, no template and no address in a folder is ever looked at. Then the network goes the
way of every other: torch.export writes it, the strict reader reads it, and the class is not needed again.

A job gives one tensor and learns from logits, so the network is exported as

    token ids (B, T) int64    -> (B, K)    with attention to all tokens but padding, for every length T
    pictures (B, C, H, W)     -> (B, K)    float32

under the names that its weights have in the folder: what a job trains loads into the class it came from.

The export is made in training mode, where attention's own dropout is part of the graph; lifting makes all dropout
follow `train()` and `eval()`.
"""

import importlib.util
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim

from service.contract.errors import InputRejected
from service.contract.specs import ModelDeclaration
from workers.formats import safetensors_file
from workers.formats.graph_models import read_graph
from workers.formats.transformers_config import Config, check_rest, read_config
from workers.formats.transformers_fields import TextFields
from workers.formats.weights import Found, fitted

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
EXAMPLE_BATCH, EXAMPLE_TOKENS = 2, 128
MAX_BUFFER_BYTES = 2**30  # what a class computes for itself: masks, positions
# Written by older versions of the classes, which compute them now.
COMPUTED = re.compile(
    r"(.*\.)?(position_ids|attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq|relative_position_index)"
)


def read_transformers(folder: Path, declaration: ModelDeclaration, out: Path) -> dict[str, Any]:
    """Read a Hugging Face folder, write its network to `out / "model.pt2"`, and return the facts.

    Parameters
    ----------
    folder
        Holds `config.json` and `model.safetensors`; a `tokenizer.json` beside them is not opened.
    declaration
        What its owner says of it.
    out
        An existing folder, as `read_graph` wants it.

    Raises
    ------
    InputRejected
        As `read_config` and `read_graph`; "architecture_mismatch" and "not_finite" for the weights,
        "transformers_missing" where the worker has no transformers.

    """
    check_files(declaration)
    config = read_config(folder / CONFIG)
    header = safetensors_file.read_header(folder / WEIGHTS)
    kind = class_of(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers and the exporter advise their developers
        settings, notes = settings_of(kind, config)
        names, expected = sketched(kind, settings, config)
        stored = safetensors.torch.load_file(folder / WEIGHTS)
        computed = [name for name in header.tensors if name not in expected and COMPUTED.fullmatch(name)]
        found = Found({name: tensor for name, tensor in stored.items() if name not in computed}, ())
        fitting = fitted(found, expected, f"{config.architecture} of this config.json")
        network = kind(settings)
        network.load_state_dict({own: fitting.tensors[name] for own, name in names.items()}, assign=True)
        exported = out / "exported.pt2"
        export(network, names, config, exported)
    facts = read_graph(exported, out)
    exported.unlink()
    own = {"format": "transformers", "class": config.architecture, "model_type": config.model_type}
    return facts | own | {"notes": [*notes, *fitting.notes, *facts["notes"]]}


def check_files(declaration: ModelDeclaration) -> None:
    """`InputRejected` unless the files are those of a folder, and nothing else says what the network is."""
    names = set(declaration.files)
    if not {CONFIG, WEIGHTS} <= names <= {CONFIG, WEIGHTS, TOKENIZER}:
        raise InputRejected(
            f"A Hugging Face folder is {CONFIG} and {WEIGHTS} in one piece, and {TOKENIZER} if you like; got "
            f'{", ".join(sorted(names))}. Save it with model.save_pretrained(folder, max_shard_size="1TB").',
            code="unexpected_files",
        )
    if declaration.architecture is not None:
        raise InputRejected(
            f"{CONFIG} says what the network is, and {declaration.architecture.name} is declared besides; leave the "
            "architecture out.",
            code="architecture_unexpected",
        )


def class_of(config: Config) -> Any:
    """The class of transformers by its name, which is one of our list; imported only here, and told to stay offline."""
    if importlib.util.find_spec("transformers") is None:
        raise InputRejected(
            "This server's workers have no transformers, which Hugging Face folders need: install the extra "
            '"transformers" there, or export the model with torch.export and upload it as model.pt2.',
            code="transformers_missing",
        )
    os.environ.update(OFFLINE)
    import transformers  # heavy, optional, and of no use to other models

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it is not annotated
    return getattr(transformers, config.architecture)


def settings_of(kind: Any, config: Config) -> tuple[Any, list[str]]:
    """The class's configuration, made from the fields that were judged alone; and what was left out, in words."""
    try:
        settings = kind.config_class(**config.fields.arguments(), num_labels=config.num_labels)
    except Exception as error:  # classes refuse what does not go together in ways of their own
        raise unbuildable(config, error) from error
    return settings, check_rest(config, settings.to_dict())


def sketched(kind: Any, settings: Any, config: Config) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Names by which the class knows its weights -> those in the file, and these with shapes, in no memory.

    Raises `InputRejected` for sizes that do not go together, and for a class that would compute too large buffers.
    """
    try:
        with torch.device("meta"):
            network = kind(settings)
    except Exception as error:
        raise unbuildable(config, error) from error
    if (claimed := sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())) > MAX_BUFFER_BYTES:
        raise InputRejected(
            f"{CONFIG}: {config.architecture} would compute {claimed} bytes of masks and positions for these sizes; at "
            f"most {MAX_BUFFER_BYTES} are allowed. Give it fewer positions.",
            code="too_large",
        )
    own = network.state_dict()
    written = as_written(network, own)
    places = {id(tensor): name for name, tensor in written.items()}
    return {name: places[id(tensor)] for name, tensor in own.items()}, dict(written)


def as_written(network: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict under the names by which `save_pretrained` writes it.

    transformers has renamed the parts of some classes since their checkpoints were published, and keeps a table. All
    that it does to the classes of our list is to rename: the tensors themselves are the same objects.
    """
    from transformers.core_model_loading import revert_weight_conversion

    written: Mapping[str, Tensor] = revert_weight_conversion(network, dict(state))
    return written


def unbuildable(config: Config, error: Exception) -> InputRejected:
    """The refusal of sizes that do not go together."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return InputRejected(
        f"{CONFIG}: {config.architecture} cannot be built with these sizes: {reason}.", code="config_refused"
    )


# The export ------------------------------------------------------------------------------------------------------


def export(network: nn.Module, names: Mapping[str, str], config: Config, path: Path) -> None:
    """Write `network` as an archive that takes one tensor and returns logits, its weights under `names`."""
    give_logits(network, config)
    batch: dict[int, Any] = {0: Dim("batch")}
    if isinstance(config.fields, TextFields):
        longest = config.fields.max_tokens
        example = torch.ones(EXAMPLE_BATCH, min(EXAMPLE_TOKENS, longest - 1), dtype=torch.int64)
        batch[1] = Dim("tokens", max=longest)
    else:
        side = config.fields.image_size
        example = torch.zeros(EXAMPLE_BATCH, config.fields.num_channels, side, side)
    try:
        with torch.no_grad():
            program = torch.export.export(network.train(), (example,), dynamic_shapes=(batch,))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputRejected(
            f"{config.architecture} with this {CONFIG} cannot be exported ({reason}). Export it yourself with "
            "torch.export and upload it as model.pt2.",
            code="export_failed",
        ) from error
    for spec in program.graph_signature.input_specs:
        spec.target = names.get(spec.target or "", spec.target)
    weights = program.state_dict
    for own, tensor in list(weights.items()):
        del weights[own]
        weights[names[own]] = tensor
    torch.export.save(program, path)


def give_logits(network: nn.Module, config: Config) -> None:
    """Let `network` take one tensor and return logits; a wrapper would put its name before those of all weights."""
    kind: Any = type(network)
    padding = getattr(config.fields, "pad_token_id", None)

    def of_tokens(self: nn.Module, input_ids: Tensor) -> Tensor:
        attended = torch.ne(input_ids, padding or 0).long()
        logits: Tensor = kind.forward(self, input_ids=input_ids, attention_mask=attended).logits
        return logits

    def of_pictures(self: nn.Module, pixel_values: Tensor) -> Tensor:
        logits: Tensor = kind.forward(self, pixel_values=pixel_values).logits
        return logits

    forward = of_tokens if isinstance(config.fields, TextFields) else of_pictures
    network.__class__ = type(kind.__name__, (kind,), {"forward": forward})
