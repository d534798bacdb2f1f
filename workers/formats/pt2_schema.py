"""The JSON in a `.pt2` archive, as data: exactly what torch.export writes, and nothing else.

These are the dataclasses of `torch/_export/serde/schema.py` (schema version 8) as far as a graph of tensors needs
them, written again as strict models: wrong types, unknown fields and unknown kinds of arguments are errors, not
guesses. What is parsed is plain data; no name in it is looked up here.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.contract.errors import InputRejected

SUPPORTED_MAJOR = 8
LARGEST_DOCUMENT = 64 * 2**20  # bytes
MOST_OBJECTS = 500_000  # in one document; each takes a kilobyte of memory
LARGEST_GRAPH = 20_000  # nodes; each takes a millisecond or two

Model = TypeVar("Model", bound=BaseModel)
Text = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = float | Literal["Infinity", "-Infinity", "NaN"]


class Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Hint(Record):
    as_int: Int64 | None = None
    as_bool: bool | None = None
    as_float: Float | None = None


class SymExpr(Record):
    expr_str: Text
    hint: Hint | None = None


class SymInt(Record):
    as_expr: SymExpr | None = None
    as_int: Int64 | None = None


class SymFloat(Record):
    as_expr: SymExpr | None = None
    as_float: Float | None = None


class SymBool(Record):
    as_expr: SymExpr | None = None
    as_bool: bool | None = None


class Device(Record):
    type: Annotated[str, Field(pattern=r"^[a-z]{1,16}$")]
    index: int | None = None


class TensorMeta(Record):
    dtype: int
    sizes: Annotated[tuple[SymInt, ...], Field(max_length=16)]
    requires_grad: bool
    device: Device
    strides: Annotated[tuple[SymInt, ...], Field(max_length=16)]
    storage_offset: SymInt
    layout: int


class SymIntArgument(Record):
    as_name: Name | None = None
    as_int: Int64 | None = None


class SymFloatArgument(Record):
    as_name: Name | None = None
    as_float: Float | None = None


class SymBoolArgument(Record):
    as_name: Name | None = None
    as_bool: bool | None = None


class TensorArgument(Record):
    name: Name


class OptionalTensorArgument(Record):
    as_tensor: TensorArgument | None = None
    as_none: bool | None = None


class GraphArgument(Record):
    name: Name
    graph: "Graph"


class Argument(Record):
    """A union: exactly one field is given. Kinds that are not here (custom objects, operators, ...) are refused."""

    as_none: bool | None = None
    as_tensor: TensorArgument | None = None
    as_tensors: tuple[TensorArgument, ...] | None = None
    as_int: Int64 | None = None
    as_ints: tuple[Int64, ...] | None = None
    as_float: Float | None = None
    as_floats: tuple[Float, ...] | None = None
    as_string: Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z0-9_,.> -]*$")] | None = None
    as_sym_int: SymIntArgument | None = None
    as_sym_ints: tuple[SymIntArgument, ...] | None = None
    as_sym_float: SymFloatArgument | None = None
    as_sym_bool: SymBoolArgument | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: Device | None = None
    as_bool: bool | None = None
    as_bools: tuple[bool, ...] | None = None
    as_graph: GraphArgument | None = None
    as_optional_tensors: tuple[OptionalTensorArgument, ...] | None = None
    as_optional_tensor: OptionalTensorArgument | None = None


class NamedArgument(Record):
    name: Annotated[str, Field(max_length=128)]
    arg: Argument
    kind: int | None = None


class Node(Record):
    target: Annotated[str, Field(max_length=512)]
    inputs: tuple[NamedArgument, ...]
    outputs: tuple[Argument, ...]
    metadata: dict[str, str]
    is_hop_single_tensor_return: bool | None = None
    name: Annotated[str, Field(max_length=512)] | None = None


class Graph(Record):
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    nodes: Annotated[tuple[Node, ...], Field(max_length=LARGEST_GRAPH)]
    tensor_values: dict[str, TensorMeta]
    sym_int_values: dict[str, SymInt]
    sym_bool_values: dict[str, SymBool]
    sym_float_values: dict[str, SymFloat] = {}
    is_single_tensor_return: bool = False
    # Objects of custom classes; one in use is refused where it is used.
    custom_obj_values: Annotated[dict[str, None], Field(max_length=0)] = {}


class UserInput(Record):
    arg: Argument


class ParameterInput(Record):
    arg: TensorArgument
    parameter_name: Name


class BufferInput(Record):
    arg: TensorArgument
    buffer_name: Name
    persistent: bool


class TensorConstantInput(Record):
    arg: TensorArgument
    tensor_constant_name: Name


class ConstantValue(Record):
    as_none: bool | None = None
    as_int: int | None = None
    as_float: Float | None = None
    as_string: str | None = None
    as_bool: bool | None = None


class ConstantInput(Record):
    name: Name
    value: ConstantValue


class InputSpec(Record):
    """A union: exactly one field is given."""

    user_input: UserInput | None = None
    parameter: ParameterInput | None = None
    buffer: BufferInput | None = None
    tensor_constant: TensorConstantInput | None = None
    constant_input: ConstantInput | None = None


class UserOutput(Record):
    arg: Argument


class BufferMutation(Record):
    arg: TensorArgument
    buffer_name: Name


class OutputSpec(Record):
    """A union: exactly one field is given."""

    user_output: UserOutput | None = None
    buffer_mutation: BufferMutation | None = None


class Signature(Record):
    input_specs: tuple[InputSpec, ...]
    output_specs: tuple[OutputSpec, ...]


class ModuleCall(Record):
    """How submodules were called, in Python's terms. Read by nobody here, and never parsed further."""

    fqn: str
    signature: dict[str, object] | None = None


class GraphModule(Record):
    graph: Graph
    signature: Signature
    module_call_graph: tuple[ModuleCall, ...]
    metadata: dict[str, str] = {}
    treespec_namedtuple_fields: dict[str, object] = {}


class RangeConstraint(Record):
    min_val: Int64 | None
    max_val: Int64 | None


class SchemaVersion(Record):
    major: int
    minor: int


class Program(Record):
    """`models/model.json`."""

    graph_module: GraphModule
    opset_version: dict[str, int]
    range_constraints: dict[str, RangeConstraint]
    schema_version: SchemaVersion
    verifiers: tuple[str, ...] = ()
    torch_version: str = ""
    guards_code: tuple[str, ...] = ()  # Python expressions; never evaluated


class Payload(Record):
    path_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class PayloadConfig(Record):
    """`data/weights/model_weights_config.json` and its like of constants: which record holds which tensor."""

    config: dict[str, Payload]


class VersionOnly(BaseModel):
    """The first look at a program, to tell an unsupported version from a broken file."""

    model_config = ConfigDict(strict=True, extra="ignore")

    schema_version: SchemaVersion


def parse_program(document: memoryview) -> Program:
    """`InputRejected` (version_unsupported, archive_malformed) where it is not a program of this schema."""
    version = parse(VersionOnly, document, "models/model.json").schema_version
    if version.major != SUPPORTED_MAJOR:
        raise InputRejected(
            f"The archive is written in version {version.major}.{version.minor} of torch's export schema; "
            f"version {SUPPORTED_MAJOR} is read. Export the model again with torch 2.9 to 2.13.",
            code="version_unsupported",
        )
    return parse(Program, document, "models/model.json")


def parse_payloads(document: memoryview, record: str) -> PayloadConfig:
    """`InputRejected` where it is not a table of payloads."""
    return parse(PayloadConfig, document, record)


def parse(model: type[Model], document: memoryview, record: str) -> Model:
    if len(document) > LARGEST_DOCUMENT:
        raise InputRejected(
            f"{record} has {len(document)} bytes, beyond the {LARGEST_DOCUMENT} that are read. "
            "Export a smaller model, or one without stack traces.",
            code="archive_malformed",
        )
    contents = bytes(document)
    if contents.count(b"{") > MOST_OBJECTS:
        raise InputRejected(
            f"{record} holds more than {MOST_OBJECTS} objects. Export a smaller model.", code="archive_malformed"
        )
    try:
        return model.model_validate_json(contents)
    except ValidationError as error:
        raise InputRejected(explain(error, record), code="archive_malformed") from None


def explain(error: ValidationError, record: str) -> str:
    """Where the document is wrong and how, without quoting it at length."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:200]
    if first["type"] == "extra_forbidden":
        what = f"{place} is not read: it is unknown, or of a kind (custom object, operator, token) that is refused"
    else:
        what = f"{place or 'the document'}: {first['msg'][:200]}"
    return f"{record} in the archive is not what torch.export writes: {what}. Export the model again with torch 2.13."
