"""What can go wrong, in one tree.

    StillhouseError
    ├── RequestError            the caller can mend it
    │   ├── Malformed           the request could not be read at all
    │   ├── Invalid             a field is wrong; `errors` points at it
    │   │   └── NotAvailable    asked for something that this version does not do
    │   ├── Unauthenticated
    │   ├── Forbidden
    │   ├── NotFound
    │   ├── MethodNotAllowed
    │   ├── Conflict            the resource's state does not allow it
    │   │   └── WrongOffset     an upload continues elsewhere
    │   ├── TooLarge
    │   ├── UnsupportedMediaType
    │   ├── RangeNotSatisfiable
    │   ├── PreconditionFailed
    │   ├── TooManyRequests
    │   └── DigestMismatch      the bytes are not those that were promised
    ├── InputRejected           a file that cannot be used, found when a worker read it
    ├── JobError                what ends a job
    │   ├── Diverged            loss or outputs became NaN or infinite
    │   ├── OutOfMemory
    │   ├── DeadlineExceeded
    │   ├── AttemptsExhausted   its worker died too often
    │   └── VerificationFailed  the exported model is not the trained one
    ├── LeaseLost               somebody else holds the job now; never shown to users
    ├── Unavailable             database, broker or storage does not answer; a retry can help
    └── Internal                a fault of ours

Each has a stable `code` and says whether a retry can help. HTTP status codes are given in one place,
`service/api/errors.py`. A detail says what was wrong, what was expected and what to do.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LONGEST_DETAIL = 20_000  # characters


class FieldError(BaseModel):
    """One wrong field: a JSON pointer into the request, and what is wrong there."""

    model_config = ConfigDict(frozen=True)

    pointer: str = Field(examples=["/config/objective/temperature"])
    detail: str = Field(examples=["Input should be greater than 0"])


def readable(text: str) -> str:
    """Return the text without what no database, JSON or terminal takes; it may quote a stranger's file."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:LONGEST_DETAIL])
    return shown if len(text) <= LONGEST_DETAIL else f"{shown} …"


class Fault(BaseModel):
    """An error as it is stored and sent: the body of problem+json without the HTTP part."""

    model_config = ConfigDict(frozen=True)

    code: str
    title: str
    detail: Annotated[str, AfterValidator(readable)]
    retryable: bool = False
    errors: tuple[FieldError, ...] = ()


class StillhouseError(Exception):
    """The root. `detail` is for the person at the other end."""

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.specific_code = code

    def fault(self) -> Fault:
        """Return this error as data."""
        return Fault(
            code=self.specific_code or self.code,
            title=self.title,
            detail=self.detail,
            retryable=self.retryable,
            errors=self.errors,
        )


class RequestError(StillhouseError):
    """The caller can mend it."""


class Malformed(RequestError):
    code, title = "malformed_request", "The request could not be read"


class Invalid(RequestError):
    code, title = "invalid_request", "The request is not valid"


class NotAvailable(Invalid):
    code, title = "not_available", "This version does not do that"


class Unauthenticated(RequestError):
    code, title = "unauthenticated", "No valid API key"


class Forbidden(RequestError):
    code, title = "forbidden", "The API key does not allow this"


class NotFound(RequestError):
    code, title = "not_found", "There is no such resource"


class MethodNotAllowed(RequestError):
    code, title = "method_not_allowed", "The resource does not take this method"


class Conflict(RequestError):
    code, title = "conflict", "The resource's state does not allow this"


class WrongOffset(Conflict):
    code, title = "wrong_offset", "The upload continues at another offset"

    def __init__(self, detail: str, *, expected: int, provided: int) -> None:
        super().__init__(detail)
        self.expected, self.provided = expected, provided


class TooLarge(RequestError):
    code, title = "too_large", "The content is too large"


class UnsupportedMediaType(RequestError):
    code, title = "unsupported_media_type", "The content's type is not taken here"


class RangeNotSatisfiable(RequestError):
    code, title = "range_not_satisfiable", "The range lies outside the file"

    def __init__(self, detail: str, *, size: int) -> None:
        super().__init__(detail)
        self.size = size


class PreconditionFailed(RequestError):
    code, title = "precondition_failed", "A precondition does not hold"


class TooManyRequests(RequestError):
    code, title, retryable = "too_many_requests", "Too many requests", True


class DigestMismatch(RequestError):
    code, title = "digest_mismatch", "The bytes are not those that were promised"


class InputRejected(StillhouseError):
    code, title = "input_rejected", "The file cannot be used"


class JobError(StillhouseError):
    code, title = "job_failed", "The job failed"


class Diverged(JobError):
    code, title = "diverged", "Training diverged"


class OutOfMemory(JobError):
    code, title = "out_of_memory", "The job ran out of memory"


class DeadlineExceeded(JobError):
    code, title = "deadline_exceeded", "The job's deadline passed"


class AttemptsExhausted(JobError):
    code, title, retryable = "attempts_exhausted", "The job's worker died too often", True


class VerificationFailed(JobError):
    code, title = "verification_failed", "The exported model does not compute what the trained one does"


class LeaseLost(StillhouseError):
    code, title = "lease_lost", "Another worker holds the job"


class Unavailable(StillhouseError):
    code, title, retryable = "unavailable", "A part of the service does not answer", True


class Internal(StillhouseError):
    code, title = "internal", "A fault of the service"
