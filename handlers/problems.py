"""Error answers: turns exceptions of Litestar and the kernel into `application/problem+json` (RFC 9457).

`type` is always "about:blank": the status says what kind of problem it is, `detail` and `errors` say the rest.
"""

import logging
import math
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, ServiceUnavailableException
from litestar.types import ExceptionHandlersMap

from kernel import BroadcastFailed, CircuitOpen, EventTooLarge, FieldError, MessageInvalid, NotStarted

__all__ = ["DETAILS", "PROBLEM_JSON", "Problem", "QueryInvalid", "exception_handlers", "log_unexpected"]

PROBLEM_JSON: Final = "application/problem+json"

_logger = logging.getLogger(__name__)

# Details for statuses for which Litestar's own text only repeats the title.
DETAILS: Final = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not support this method; the Allow header lists those it supports.",
    HTTPStatus.UPGRADE_REQUIRED: "This path is a WebSocket: send an upgrade request.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "An unexpected error occurred in this service; see its log.",
}


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an error answer; `errors` lists the invalid fields, if any."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()


class QueryInvalid(Exception):
    """Parameters of the query are not valid."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        super().__init__(errors)
        self.errors = errors


def _as_problem(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    answer = _answer_to(request, error)
    if "expect" in request.headers:
        # The client may omit the body after this answer; its next request would then be taken for the body.
        answer.headers["connection"] = "close"
    return answer


def _answer_to(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    match error:
        case EventTooLarge(errors=errors):
            return _answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "An event is too large.", errors=tuple(errors))
        case MessageInvalid(errors=errors):
            return _answer(HTTPStatus.BAD_REQUEST, "The body is not valid.", errors=tuple(errors))
        case QueryInvalid(errors=errors):
            return _answer(HTTPStatus.BAD_REQUEST, "The query is not valid.", errors=errors)
        case CircuitOpen(retry_after=seconds):
            return _unavailable("The link to Redis is down; nothing was published.", seconds)
        case BroadcastFailed(retry_after=seconds):
            return _unavailable(
                "Redis did not confirm the publish within the retries: repeat it, with its Idempotency-Key if any.",
                seconds,
            )
        case NotStarted():
            return _unavailable("The service is starting or stopping.", 1.0)
        case ServiceUnavailableException(detail=detail):
            return _unavailable(detail, 1.0)
        case MethodNotAllowedException(headers={"allow": "websocket"}):
            if request.method == "GET":
                status = HTTPStatus.UPGRADE_REQUIRED
                return _answer(status, DETAILS[status], headers={"upgrade": "websocket", "connection": "upgrade"})
            status = HTTPStatus.METHOD_NOT_ALLOWED
            return _answer(status, DETAILS[status], headers={"allow": "GET"})
        case HTTPException() if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            status = HTTPStatus(error.status_code)
            detail = DETAILS.get(status) or error.detail
            if status is HTTPStatus.NOT_FOUND and request.app.openapi_config is not None:
                detail = "There is nothing at this path; GET /schema lists the paths."
            return _answer(status, detail, headers=error.headers)
        case _:
            log_unexpected(error, f"in answer to {request.method} {request.scope['path']!r}")
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            return _answer(status, DETAILS[status])


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
    """Log the class and the place of an unexpected error, but not its text, which may quote a client's input."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    _logger.error("%s at %s:%s %s", type(error).__name__, place.filename, place.lineno, where)


# Litestar itself logs no exceptions, because the application has no logging_config.
exception_handlers: Final[ExceptionHandlersMap] = {HTTPException: _as_problem, Exception: _as_problem}
