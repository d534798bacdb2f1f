"""The child's job: canonical inputs and a spec go through a pipeline, and the result's folder comes out.

The fork server imports this module, and with it torch, once; no CUDA is touched before the fork.
"""

import logging
import os
import tempfile
from typing import Any

import torch
import torch._dynamo  # the first optimiser and the first export import it, and it takes seconds
import torch.export._trace  # as above
from pydantic import TypeAdapter
from structlog import get_logger
from structlog.contextvars import bound_contextvars

from service.contract.errors import Internal, OutOfMemory, StillhouseError
from service.contract.job_spec import JobSpec
from workers import logs
from workers.formats import datasets as _datasets  # noqa: F401  imported for the readers forked after this
from workers.formats import models as _models  # noqa: F401  as above
from workers.job import JobReport
from workers.journal import Stopped
from workers.lifeline import Lifeline
from workers.orders import RunOrder
from workers.pipe import Failed, Finished, Halted, LastWord, Reported
from workers.piped_journal import PipedJournal
from workers.pipeline import PIPELINES, JobContext, stages_of
from workers.training.determinism import deterministic

OUT_OF_MEMORY_ADVICE = "try a smaller batch size, or a smaller student"
_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
log = get_logger(__name__)


class JournalHandler(logging.Handler):
    """Lines of Python's logging become events of the job."""

    def __init__(self, journal: PipedJournal) -> None:
        super().__init__(level=logging.INFO)
        self.journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.name == __name__:
            return  # tracebacks are for the operator, who has the worker's log
        text = record.msg.get("event") if isinstance(record.msg, dict) else record.getMessage()
        self.journal.event("log", {"text": str(text), "level": record.levelname.lower(), "logger": record.name})


def run(order_text: str, lifeline: Lifeline) -> None:
    """Do what the order says; the last word says how it ended."""
    order = RunOrder.model_validate_json(order_text)
    with bound_contextvars(job=order.job_id, attempt=order.attempt, epoch=order.epoch):
        logs.configure(order.log_level, order.log_format)
        spec = _SPEC.validate_python(order.spec)
        journal = PipedJournal(lifeline, order.checkpoint_seconds, stages_of(spec))
        logging.getLogger().addHandler(JournalHandler(journal))
        lifeline.channel.send(_last_word(order, spec, journal))


def _last_word(order: RunOrder, spec: JobSpec, journal: PipedJournal) -> LastWord:
    try:
        return _compute(order, spec, journal)
    except Stopped:
        return Halted()
    except StillhouseError as error:
        return Failed(fault=error.fault())
    except Exception as error:
        if is_out_of_memory(error):
            return Failed(fault=OutOfMemory(f"{_first_line(error)}; {OUT_OF_MEMORY_ADVICE}").fault())
        log.exception("the pipeline failed")
        detail = f"the pipeline failed ({type(error).__name__}); the worker's log tells more under {order.job_id}"
        return Failed(fault=Internal(detail).fault())


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: on a GPU, in Python, or in torch's CPU allocator (a RuntimeError)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["an allocation failed"])[0].removesuffix(".")


def _compute(order: RunOrder, spec: JobSpec, journal: PipedJournal) -> Finished | Reported:
    os.environ["TMPDIR"] = tempfile.tempdir = str(order.work_dir)  # what a library leaves behind goes with the job
    torch.set_num_threads(order.num_threads)
    context = JobContext(
        job_id=order.job_id,
        spec=spec,
        inputs=order.inputs,
        work_dir=order.work_dir,
        seed=spec.seed,
        device=choose_device(order.device),
        num_threads=order.num_threads,
        checkpoint=order.checkpoint,
        journal=journal,
    )
    with deterministic(context.device):  # before the first kernel: what it sets is read when a GPU's library starts
        result = PIPELINES[spec.type](context)
    if isinstance(result, JobReport):
        return Reported(report=_plain(result.report))
    return Finished(
        folder=result.folder.absolute(),
        name=result.name,
        declaration=_plain(result.declaration),
        facts=_plain(result.facts),
        report=_plain(result.report),
    )


def _plain(document: Any) -> dict[str, Any]:
    """Return a document as JSON-like data, whether it came as a model or as a dict."""
    data: dict[str, Any] = document.model_dump(mode="json") if hasattr(document, "model_dump") else dict(document)
    return data


def choose_device(wanted: str) -> torch.device:
    """Return the device that the settings name; "auto" is a GPU where there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
