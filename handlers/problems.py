"""Every error answer of the HTTP side, as `application/problem+json` (RFC 9457).

The one place that turns exceptions, Litestar's and the kernel's, into answers. `type` is always "about:blank": the
status says which kind of problem it is, `detail` and `errors` say the rest.
Not here: deciding that something is wrong (the routes, auth.py, the kernel).
"""

import logging
import math
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException
from litestar.types import ExceptionHandlersMap

from kernel import BroadcastFailed, CircuitOpen, FieldError, MessageInvalid, NotStarted

__all__ = ["PROBLEM_JSON", "Problem", "exception_handlers", "log_unexpected"]

PROBLEM_JSON: Final = "application/problem+json"

_logger = logging.getLogger(__name__)

# What is said where Litestar's own text would only repeat the title.
_DETAILS: Final = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path; GET /schema lists what there is.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not take this method; the Allow header names those it takes.",
    HTTPStatus.UPGRADE_REQUIRED: "This path is a WebSocket: it takes an upgrade, and no plain request.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something went wrong in this service; its log says where.",
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an error answer; `errors` is there when fields are at fault."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()


def _as_problem(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    answer = _answer_to(request, error)
    if "expect" in request.headers:
        # the body may never come, and then what comes next would be taken for it
        answer.headers["connection"] = "close"
    return answer


def _answer_to(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    match error:
        case MessageInvalid(errors=errors):
            return _answer(HTTPStatus.BAD_REQUEST, "The body is not valid.", errors=tuple(errors))
        case CircuitOpen(retry_after=seconds):
            return _unavailable("The link to Redis is down; nothing was published.", seconds)
        case BroadcastFailed(retry_after=seconds):
            return _unavailable(
                "Redis confirmed nothing within the retries: send it again, with its Idempotency-Key if it has one.",
                seconds,
            )
        case NotStarted():
            return _unavailable("The service is starting or stopping.", 1.0)
        case MethodNotAllowedException(headers={"allow": "websocket"}):
            if request.method == "GET":
                status = HTTPStatus.UPGRADE_REQUIRED
                return _answer(status, _DETAILS[status], headers={"upgrade": "websocket", "connection": "upgrade"})
            status = HTTPStatus.METHOD_NOT_ALLOWED
            return _answer(status, _DETAILS[status], headers={"allow": "GET"})
        case HTTPException() if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            status = HTTPStatus(error.status_code)
            detail = _DETAILS.get(status) or error.detail
            return _answer(status, detail, headers=error.headers)
        case _:
            log_unexpected(error, f"in answer to {request.method} {request.scope['path']!r}")
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            return _answer(status, _DETAILS[status])


def _unavailable(detail: str, seconds: float) -> Response[Problem]:
    retry_after = str(max(1, math.ceil(seconds)))
    return _answer(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"retry-after": retry_after})


def _answer(
    status: HTTPStatus, detail: str, *, errors: tuple[FieldError, ...] = (), headers: Mapping[str, str] | None = None
) -> Response[Problem]:
    sent = dict(headers or {})
    if status is HTTPStatus.UNAUTHORIZED:
        sent["www-authenticate"] = "Bearer"
    problem = Problem(type="about:blank", title=status.phrase, status=status.value, detail=detail, errors=errors)
    return Response(problem, status_code=status.value, media_type=PROBLEM_JSON, headers=sent)


def log_unexpected(error: Exception, where: str) -> None:
    """Log class and place of an unexpected error; never its text, which may quote what somebody sent."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    _logger.error("%s at %s:%s %s", type(error).__name__, place.filename, place.lineno, where)


# Litestar logs nothing of its own when it is given no logging_config; Exception catches its HTTPExceptions as well.
exception_handlers: Final[ExceptionHandlersMap] = {HTTPException: _as_problem, Exception: _as_problem}
