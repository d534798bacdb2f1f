from multiprocessing import Pipe
from pathlib import Path

import pytest

from service.contract.errors import Diverged
from workers.pipe import (
    Beat,
    Channel,
    Checkpointed,
    Failed,
    Finished,
    Halted,
    Measured,
    Message,
    Progressed,
    Read,
    StageBegan,
    StopRequest,
    Told,
)

MESSAGES: list[Message] = [
    StageBegan(name="training", index=3, total=7),
    Progressed(fraction=0.5, step=1, total_steps=2, eta_seconds=None),
    Measured(step=1, values={"train/loss": 0.1 + 0.2, "train/accuracy": None}),
    Told(event="log", data={"text": "Grüße"}),
    Checkpointed(path=Path("/a/b"), step=4),
    Finished(folder=Path("/a"), name="n", declaration={}, facts={"macs": 10**12}, report={"accuracy": 1 / 3}),
    Read(facts={"classes": [1, 2]}),
    Failed(fault=Diverged("the loss is NaN").fault()),
    Halted(),
    Beat(at=123456.789),
    StopRequest(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    here, there = Pipe()
    Channel(here).send(message)
    assert Channel(there).receive() == message


def test_what_is_not_finite_in_a_report_arrives_as_null() -> None:
    here, there = Pipe()
    Channel(here).send(Read(facts={"loss": float("nan"), "bound": float("inf")}))
    assert Channel(there).receive() == Read(facts={"loss": None, "bound": None})


def test_a_pickle_on_the_pipe_is_refused_unread() -> None:
    here, there = Pipe()
    here.send({"kind": "halted"})  # Connection.send pickles
    with pytest.raises(ValueError, match="JSON"):
        Channel(there).receive()
