import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from workers import limits
from workers.child import Child, death, warm
from workers.pipe import Beat, Halted, Message, Read

ENTRIES = "tests.unit.workers.children"
PATIENCE = 60.0  # the first child waits for the fork server to import torch


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    started: list[Child] = []

    def begin(entry: str, order: str = "", lease_seconds: float | None = None) -> Child:
        started.append(Child(f"{ENTRIES}:{entry}", order, lease_seconds))
        return started[-1]

    warm()
    yield begin
    for child in started:
        child.end()


def next_word(child: Child) -> Message | None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not child.at_end:
        if (message := child.receive(1.0)) is not None:
            return message
    return None


def test_a_child_has_torch_from_the_fork_server_and_leads_its_own_group(start: Callable[..., Child]) -> None:
    word = next_word(start("tell", "hello"))
    assert isinstance(word, Read)
    assert word.facts["order"] == "hello"
    assert "torch" in word.facts["modules"]
    assert word.facts["group"]


def test_a_child_hears_a_request_to_stop(start: Callable[..., Child]) -> None:
    child = start("wait_for_a_stop")
    child.ask_to_stop()
    assert next_word(child) == Halted()


def test_a_child_ignores_the_signals_that_are_for_the_celery_process(start: Callable[..., Child]) -> None:
    child = start("wait_for_a_stop", lease_seconds=PATIENCE)
    child.send(Beat(at=time.monotonic()))
    time.sleep(0.5)
    assert child.process.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(child.process.pid, number)
    time.sleep(0.2)
    child.ask_to_stop()
    assert next_word(child) == Halted()


def test_a_child_that_hears_no_beat_ends_with_the_lease(start: Callable[..., Child]) -> None:
    child = start("sleep", lease_seconds=1.0)
    began = time.monotonic()
    child.send(Beat(at=began))
    while not child.at_end and time.monotonic() < began + 10:
        child.receive(0.05)
        if time.monotonic() - began < 0.7:
            assert not child.at_end
    assert 0.9 <= time.monotonic() - began < 3.0


def test_beats_keep_a_child_alive(start: Callable[..., Child]) -> None:
    child = start("sleep", lease_seconds=0.6)
    for _ in range(10):
        child.send(Beat(at=time.monotonic()))
        assert child.receive(0.2) is None
    assert not child.at_end


def test_a_child_whose_lease_ran_out_before_it_began_does_nothing(start: Callable[..., Child]) -> None:
    child = start("tell", lease_seconds=1.0)
    child.send(Beat(at=time.monotonic() - 2.0))
    assert next_word(child) is None
    assert child.at_end


def test_ending_a_child_kills_it_at_once(start: Callable[..., Child]) -> None:
    child = start("sleep")
    began = time.monotonic()
    assert child.end() == -signal.SIGKILL
    assert time.monotonic() - began < 3


def test_many_reports_are_received_together(start: Callable[..., Child]) -> None:
    child = start("tell")
    assert [word.kind for word in child.receive_all(PATIENCE)] == ["read"], "a last word is not waited past"


@pytest.mark.parametrize(
    ("entry", "order", "words"),
    [("leave", "3", "exit code 3"), ("leave", "0", "exit code 0"), ("crash", str(int(signal.SIGSEGV)), "SIGSEGV")],
)
def test_a_death_is_told_in_words(start: Callable[..., Child], entry: str, order: str, words: str) -> None:
    child = start(entry, order)
    assert next_word(child) is None
    assert words in death(child, child.end())


def test_a_kill_for_want_of_memory_is_told_with_numbers_and_advice(start: Callable[..., Child]) -> None:
    child = start("crash", str(int(signal.SIGKILL)))
    assert next_word(child) is None
    child.peak_memory = limits.memory_limit()
    text = death(child, child.end())
    assert "was killed for using" in text
    assert "limit" in text
    assert "smaller batch size" in text
