"""The running service against its own OpenAPI document."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.system.producers import KINDS, route_of
from tests.system.replica import Replica

# In JSON Schema 34.0 is an integer, but the service's types are strict and refuse it.
EXCLUDED = [positive_data_acceptance]

OPERATIONS = [("POST", route_of(kind)) for kind in KINDS] + [
    ("POST", "/broadcast/batch"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
]
# a GET has no input that could be invalid
TRIED = [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS] + [
    (*operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation[0] == "POST"
]


def without_int64(node: Any) -> Any:
    """Return the document without the size of integers: the service takes larger ones than it promises to take."""
    if isinstance(node, list):
        return [without_int64(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {key: without_int64(value) for key, value in node.items() if (key, value) != ("format", "int64")}


def lenient(body: Any) -> bool:
    """True for an envelope without a `type`, which the service takes although the document asks for the `type`."""
    return isinstance(body, dict) and "data" in body and "type" not in body


@pytest.fixture(scope="module")
def document(pair: tuple[Replica, Replica]) -> Any:
    """The OpenAPI document that the service returns."""
    return schemathesis.openapi.from_url(f"{pair[0].url}/schema/openapi.json")


@pytest.fixture(scope="module")
def loose_document(document: Any) -> Any:
    """The document without the size of integers: what is not valid under it must be refused."""
    return schemathesis.openapi.from_dict(without_int64(document.raw_schema))


@pytest.mark.parametrize(("method", "path", "mode"), TRIED)
def test_answers_are_as_described(
    document: Any, loose_document: Any, method: str, path: str, mode: GenerationMode
) -> None:
    """Every response to generated input has a status, headers and a body that the document describes."""
    operation = (document if mode is GenerationMode.POSITIVE else loose_document)[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def try_it(case: Any) -> None:
        excluded = [*EXCLUDED, negative_data_rejection] if lenient(case.body) else EXCLUDED
        case.call_and_validate(document.get_base_url(), excluded_checks=excluded)

    try_it()


def test_every_route_is_described(document: Any) -> None:
    """The document describes exactly the public routes."""
    described = {(found.ok().method.upper(), found.ok().path) for found in document.get_all_operations()}
    untried = {("GET", "/metrics"), ("GET", "/events"), ("GET", "/events/poll")}  # the last two wait, or never end
    assert described == {*OPERATIONS, *untried}
