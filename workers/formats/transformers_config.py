"""`config.json` of a Hugging Face folder, judged by schemas of our own before transformers sees a word of it.

A configuration of transformers may name code to import, weights to fetch and libraries to load. Here it is a
stranger's JSON, and four things happen to a field of it:

    known          numbers and words of a schema (transformers_fields.py), within its bounds, are handed to the class
    dangerous      what names code or another form of weights is refused
    without effect what changes no logits (ids of special tokens, initialisation, names of classes) is dropped
    other          the class has never heard of it: dropped, and noted. Or it knows it, and then it must say what
                   the class assumes anyway (`check_rest`): nothing may change what is computed and be passed over
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import AliasChoices, ValidationError

from service.contract.errors import InputRejected
from workers.formats.transformers_fields import CLASSES, PictureFields, TextFields

MAX_CONFIG_BYTES = 4 * 2**20  # the names of 21,000 classes, twice
MAX_FIELDS = 1000
MAX_LINES = 10
MAX_LABELS = 1_000_000

WITHOUT_CODE = "save the model with a class of transformers itself, or export it with torch.export as model.pt2"
WITHOUT_QUANTIZATION = "save the weights of the unquantized model"
REFUSED: Mapping[str, str] = {
    "auto_map": f"it names Python code to be imported, and none is run; {WITHOUT_CODE}",
    "custom_pipelines": f"it names Python code to be imported, and none is run; {WITHOUT_CODE}",
    "trust_remote_code": f"no code that comes with a model is run; {WITHOUT_CODE}",
    "quantization_config": WITHOUT_QUANTIZATION,
    "compression_config": WITHOUT_QUANTIZATION,
    "adapter_config": "merge the adapter into the weights (merge_and_unload) and save the model again",
}
# Older versions wrote these, newer classes do not know them: another value meant another network.
ASSUMED: Mapping[str, Any] = {
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "rope_scaling": None,
}
WITHOUT_EFFECT = frozenset({
    "_name_or_path", "_commit_hash", "architectures", "model_type", "transformers_version",
    "torchscript", "torch_dtype", "dtype", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "use_cache", "return_dict", "output_attentions", "output_hidden_states",
    "num_labels", "id2label", "label2id", "problem_type", "finetuning_task",
    "task_specific_params", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id",
    "mask_token_id", "unk_token_id", "decoder_start_token_id", "initializer_range", "initializer_factor",
    "init_std", "layer_scale_init_value", "gradient_checkpointing", "tie_word_embeddings", "summary_type",
    "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "summary_last_dropout",
    "qa_dropout", "encoder_stride", "pooler_output_size", "pooler_act", "stage_names",
    "out_features", "out_indices", "num_layers", "semantic_loss_ignore_index", "layerscale_value",
    "reshape_hidden_states", "apply_layernorm",
})  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A configuration that was found sound."""

    architecture: str  # a key of CLASSES
    model_type: str
    fields: TextFields | PictureFields
    num_labels: int
    raw: dict[str, Any]  # all that the file says


def refuse(fault: str, code: str = "config_refused") -> NoReturn:
    """Raise `InputRejected`."""
    raise InputRejected(f"config.json: {fault}", code=code)


def read_config(path: Path) -> Config:
    """Read and judge `config.json`, without transformers.

    Raises `InputRejected`: "config_refused" naming each field that is wrong, "code_refused", "quantized_refused",
    "class_refused" with the classes that are read.
    """
    raw = parsed(path)
    for name, reason in REFUSED.items():
        if name in raw:
            code = "quantized_refused" if reason == WITHOUT_QUANTIZATION else "code_refused"
            refuse(f"{name} is refused: {reason}.", code)
    name = architecture_of(raw)
    model_type, schema = CLASSES[name]
    if raw.get("model_type") != model_type:
        refuse(f"{name} is of model_type {model_type!r}, and the file says {shown(raw.get('model_type'))}.")
    for field, assumed in ASSUMED.items():
        if raw.get(field, assumed) != assumed:
            refuse(f"{field} is {shown(raw[field])}; only {shown(assumed)} is read. {WITHOUT_CODE.capitalize()}.")
    try:
        fields = schema.model_validate(raw)
    except ValidationError as error:
        refuse(in_words(error))
    if isinstance(fields, TextFields):
        check_tokens(fields)
    return Config(architecture=name, model_type=model_type, fields=fields, num_labels=number_of_labels(raw), raw=raw)


def parsed(path: Path) -> dict[str, Any]:
    """The JSON object of a file of bounded size."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        refuse(f"it has {path.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are read.", "too_large")
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        refuse(f"it is no JSON object that can be read ({str(error)[:100]}); write it with save_pretrained.")
    if not isinstance(found, dict):
        refuse("it is no JSON object; write it with save_pretrained.")
    if len(found) > MAX_FIELDS:
        refuse(f"it has {len(found)} fields; at most {MAX_FIELDS} are read.", "too_large")
    return found


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def no_constant(name: str) -> NoReturn:
    """NaN and infinity are no JSON."""
    raise ValueError(f"{name} is no number")


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The class that the file names."""
    named = raw.get("architectures")
    name = named[0] if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(name, str) or name not in CLASSES:
        refuse(
            f"architectures is {shown(named)}; expected one of {', '.join(CLASSES)}. Any other network comes as "
            "model.pt2, exported with torch.export.",
            "class_refused",
        )
    return name


def number_of_labels(raw: Mapping[str, Any]) -> int:
    """K: the classes that are named, or counted, or else two, as transformers takes it."""
    named, counted = raw.get("id2label"), raw.get("num_labels")
    number = len(named) if isinstance(named, dict) and named else 2 if counted is None else counted
    if type(number) is not int or not 2 <= number <= MAX_LABELS:
        refuse(f"it has {shown(number)} labels; expected at least two classes.")
    return number


def check_tokens(fields: TextFields) -> None:
    """The padding token is a token, and there is room for a sequence."""
    if fields.pad_token_id >= fields.vocab_size:
        refuse(f"pad_token_id is {fields.pad_token_id}, and vocab_size {fields.vocab_size}.")
    if fields.max_tokens < 8:
        refuse(f"there are positions for {fields.max_tokens} tokens; expected at least 8.")


def in_words(error: ValidationError) -> str:
    """One line for each field that is wrong."""
    wrong = error.errors(include_url=False, include_input=True)
    lines = [
        f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
        + (f", and it is {shown(found['input'])}" if found["type"] != "missing" else "")
        for found in wrong[:MAX_LINES]
    ]
    more = [f"and {len(wrong) - MAX_LINES} more"] if len(wrong) > MAX_LINES else []
    return "\n".join(["these fields cannot be used.", *lines, *more])


def shown(value: Any) -> str:
    """A value of the file for people, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_rest(config: Config, built: Mapping[str, Any]) -> list[str]:
    """Judge the fields that no schema has by what the class made of the others; return what was dropped, in words.

    `built` are all fields of the class's own configuration, made from `config.fields`. Raises `InputRejected`
    ("config_refused") for a field that the class knows, and that says something else.
    """
    known = {name for field, info in type(config.fields).model_fields.items() for name in names_of(field, info)}
    rest = {k: v for k, v in config.raw.items() if k not in known | WITHOUT_EFFECT | ASSUMED.keys()}
    differing = {name: value for name, value in rest.items() if name in built and built[name] != value}
    if differing:
        named = ", ".join(
            f"{name} = {shown(value)} (expected {shown(built[name])})" for name, value in differing.items()
        )
        refuse(
            f"{named}: this changes what {config.architecture} computes and is not read. {WITHOUT_CODE.capitalize()}."
        )
    unknown = sorted(name for name in rest if name not in built)
    notes = (
        [f"config.json: unknown fields left out: {', '.join(name[:40] for name in unknown[:20])}"] if unknown else []
    )
    if getattr(config.fields, "drop_path_rate", 0.0):
        notes.append("config.json: drop_path_rate left out: training here has no stochastic depth")
    return notes


def names_of(field: str, info: Any) -> set[str]:
    """The names by which a file may call a field."""
    alias = info.validation_alias
    return {field, *(str(name) for name in alias.choices)} if isinstance(alias, AliasChoices) else {field}
