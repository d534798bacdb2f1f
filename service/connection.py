"""One HTTP connection to a Stillhouse: who calls, what went wrong, and when to ask again.

    ClientError
    ├── ProblemError    the service refused; its problem+json says why
    ├── Unreachable     no answer, even after asking again
    └── Corrupted       the bytes that arrived are not those that the service holds

A request that may be repeated (a read, a deletion, or a POST with an idempotency key) is sent again
after a cut connection or an answer that says a retry can help; any request is, when no connection
was made at all.
"""

import ipaddress
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx

Json = dict[str, Any]
RETRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
TRANSIENT = frozenset({429, 502, 503, 504})


class ClientError(Exception):
    """The root of what a client raises."""


class Unreachable(ClientError):
    """No answer, even after asking again."""


class Corrupted(ClientError):
    """The bytes that arrived are not those that the service holds."""


class ProblemError(ClientError):
    """The service refused. `errors` are pairs of a JSON pointer and what is wrong there."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", "error"))
        self.title = str(problem.get("title", "Error"))
        self.detail = str(problem.get("detail", self.title))
        self.request_id = problem.get("request_id")
        self.retryable = bool(problem.get("retryable", False))
        self.errors = tuple((str(error["pointer"]), str(error["detail"])) for error in problem.get("errors") or ())
        super().__init__(self.detail)


def problem_of(response: httpx.Response) -> ProblemError:
    """Return the problem that an answer carries, whoever made it."""
    with suppress(ValueError, httpx.ResponseNotRead):
        body = response.json()
        if isinstance(body, dict) and "code" in body:
            return ProblemError(response.status_code, body)
    detail = f"the answer was {response.status_code} {response.reason_phrase}, and not from Stillhouse; check the URL"
    return ProblemError(response.status_code, {"code": "unexpected_answer", "detail": detail})


def pause_before(attempt: int, retry_after: str | None) -> float:
    """Return how long to wait before the next try: as told, or exponentially longer with jitter."""
    if retry_after is not None and retry_after.isdigit():
        return min(float(retry_after), LONGEST_PAUSE)
    return min(FIRST_PAUSE * 2.0**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311  no secret


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine, which no proxy can stand before."""
    host = httpx.URL(url).host
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class Connection:
    """Sends requests with the API key, again where that is safe, and raises problems as errors."""

    def __init__(self, base_url: str, api_key: str, transport: httpx.BaseTransport | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=TIMEOUT,
            transport=transport,
            trust_env=not is_loopback(base_url),
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def request(self, method: str, path: str, *, repeatable: bool | None = None, **options: Any) -> httpx.Response:
        """Send a request and return its answer. Raises ProblemError and Unreachable."""
        if repeatable is None:
            repeatable = method in {"GET", "HEAD", "DELETE"}
        for attempt in range(RETRIES + 1):
            response = None
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                may_repeat = repeatable or isinstance(error, httpx.ConnectError)
                if attempt == RETRIES or not may_repeat:
                    raise self._unreachable(error) from error
            else:
                if not response.is_error:
                    return response
                problem = problem_of(response)
                transient = response.status_code in TRANSIENT or problem.retryable
                if attempt == RETRIES or not (repeatable and transient):
                    raise problem
            time.sleep(pause_before(attempt, response.headers.get("retry-after") if response else None))
        raise AssertionError("the last attempt returns or raises")

    def json(self, method: str, path: str, **options: Any) -> Json:
        """Send a request and return the object in its answer."""
        body: Json = self.request(method, path, **options).json()
        return body

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Send a request once; yield the answer while its body is still to be read."""
        try:
            with self._http.stream(method, path, **options) as response:
                if response.is_error:
                    response.read()
                    raise problem_of(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        why = str(error) or type(error).__name__
        return Unreachable(f"no answer from {self.base_url} ({why}); is Stillhouse running there?")
