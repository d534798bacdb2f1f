"""What a supervisor and its child process say to each other, and the channel that carries it.

    child -> supervisor   StageBegan, Progressed, Measured, Told, Checkpointed, and one last word:
                          Finished, Reported, Read, Failed or Halted
    supervisor -> child   Beat (the lease was renewed), StopRequest

Messages travel as JSON, never as pickles: a child that reads untrusted files must not be able to
make its supervisor run anything.
"""

import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.contract.errors import Fault

MAX_MESSAGE_BYTES = 64 << 20


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageBegan(_Message):
    """A stage of the pipeline begins; `index` counts from 1."""

    kind: Literal["stage"] = "stage"
    name: str
    index: int
    total: int


class Progressed(_Message):
    """How far the stage is; the time left is in seconds."""

    kind: Literal["progress"] = "progress"
    fraction: float
    step: int
    total_steps: int
    eta_seconds: float | None


class Measured(_Message):
    """Points of series at a step; what is not finite travels as null."""

    kind: Literal["metrics"] = "metrics"
    step: int
    values: dict[str, float | None]


class Told(_Message):
    """A warning or a line of the log."""

    kind: Literal["event"] = "event"
    event: str
    data: dict[str, Any]


class Checkpointed(_Message):
    """A complete checkpoint lies at `path`."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: Path
    step: int


class Finished(_Message):
    """A job's last word: the folder of its artifact and what is to be recorded of it."""

    kind: Literal["finished"] = "finished"
    folder: Path
    name: str
    declaration: dict[str, Any]
    facts: dict[str, Any]
    report: dict[str, Any]


class Reported(_Message):
    """The last word of a job that makes no model: its report."""

    kind: Literal["reported"] = "reported"
    report: dict[str, Any]


class Read(_Message):
    """A reader's last word: what it found."""

    kind: Literal["read"] = "read"
    facts: dict[str, Any]


class Failed(_Message):
    """The last word of a child that met an error."""

    kind: Literal["failed"] = "failed"
    fault: Fault


class Halted(_Message):
    """The last word of a child that stopped because it was asked to."""

    kind: Literal["halted"] = "halted"


class Beat(_Message):
    """The lease was renewed; the renewal was begun at `at` by the machine's monotonic clock."""

    kind: Literal["beat"] = "beat"
    at: float


class StopRequest(_Message):
    """Take a last checkpoint and stop."""

    kind: Literal["stop"] = "stop"


LastWord = Finished | Reported | Read | Failed | Halted
Report = StageBegan | Progressed | Measured | Told | Checkpointed
Message = LastWord | Report | Beat | StopRequest
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


class Channel:
    """One end of a pipe. Any thread may send; one thread receives."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message. Raises OSError when the other end is gone."""
        data = message.model_dump_json().encode()
        with self._sending:
            self.connection.send_bytes(data)

    def poll(self, seconds: float | None) -> bool:
        """Wait for a message, or the other end's end; None waits for ever."""
        return self.connection.poll(seconds)

    def receive(self) -> Message:
        """Return the next message. Raises EOFError or OSError when the other end is gone."""
        return _MESSAGE.validate_json(self.connection.recv_bytes(MAX_MESSAGE_BYTES))

    def close(self) -> None:
        """Close this end."""
        self.connection.close()
