"""What the children of the tests do."""

import os
import sys
import time

from workers.lifeline import Lifeline
from workers.pipe import Halted, Read


def tell(order: str, lifeline: Lifeline) -> None:
    modules = [name for name in ("celery", "torch", "sqlalchemy.pool") if name in sys.modules]
    lifeline.channel.send(Read(facts={"order": order, "modules": modules, "group": os.getpgrp() == os.getpid()}))


def wait_for_a_stop(order: str, lifeline: Lifeline) -> None:
    lifeline.stop_requested.wait(30)
    lifeline.channel.send(Halted())


def sleep(order: str, lifeline: Lifeline) -> None:
    time.sleep(60)


def leave(order: str, lifeline: Lifeline) -> None:
    os._exit(int(order))


def crash(order: str, lifeline: Lifeline) -> None:
    os.kill(os.getpid(), int(order))
