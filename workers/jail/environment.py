"""Secrets leave the environment before the process starts from which all readers are forked.

A process's memory holds its environment, and a reader that has been taken over could write what it
finds there into its output. Keys of the database, the storage and the broker are the Celery
process's alone: its children get files and JSON.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

SECRET = re.compile(r"^(STILLHOUSE|AWS|PG|REDIS|AZURE|GOOGLE)_?|SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY")


@contextmanager
def without_secrets() -> Iterator[None]:
    """Take variables away whose names speak of secrets, while a process starts; then put them back."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if SECRET.search(name.upper())}
    try:
        yield
    finally:
        os.environ.update(taken)
