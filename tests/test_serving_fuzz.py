"""Schemathesis over the server's own OpenAPI document: whatever is sent, the server does not
fail, and every refusal is an OpenAI error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from support_serving import XRouterServer, get_json

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XRouterServer]:
    policy = {"kind": "baseline", "name": "agreement"}
    with XRouterServer(tmp_path_factory.mktemp("fuzz"), policy=policy) as running:
        yield running


OPERATIONS = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/router/explain"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"),
    ("GET", "/metrics"),
    ("GET", "/health/ready"),
    ("GET", "/"),
)


@pytest.fixture(scope="module")
def api(fuzzed: XRouterServer) -> Any:
    return schemathesis.openapi.from_url(f"{fuzzed.root}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("examples", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_no_request_makes_the_server_fail(
    api: Any, method: str, path: str, mode: GenerationMode, examples: int
) -> None:
    cases = api[path][method].as_strategy(generation_mode=mode)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Any) -> None:
        response = case.call(timeout=60)
        case.validate_response(response, checks=[not_a_server_error])
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    try:
        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "an operation without parameters"


def test_every_operation_of_the_document_is_fuzzed(api: Any) -> None:
    found = {(op.ok().method.upper(), op.ok().path) for op in api.get_all_operations()}
    assert found - set(OPERATIONS) <= {("GET", "/health/live")}


def test_after_the_fuzzing_the_ledger_adds_up(fuzzed: XRouterServer) -> None:
    with fuzzed.ledger() as ledger:
        assert ledger.discrepancies() == []


def test_the_document_describes_the_request(fuzzed: XRouterServer) -> None:
    document = get_json(f"{fuzzed.root}/openapi.json")
    body = document["components"]["schemas"]["ChatRequest"]
    assert {"model", "messages"} <= set(body["required"])
    assert "lambda" in document["components"]["schemas"]["RouterOptions"]["properties"]
