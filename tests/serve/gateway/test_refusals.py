"""Every kind of bad input: the status, and the problem's exact fields. Nothing of the inside leaves the service."""

import json
import time
from typing import Any

import httpx
import pytest

from features.events import Event
from serve.gateway.requests import MAX_BODY_BYTES
from serve.schemas import MAX_EVENTS, MAX_ITEMS, MAX_ROWS

JSON = {"content-type": "application/json"}
HOME_FIELDS = "only profile_id, region, device, kids, rows, items"
KINDS = "'impression', 'play', 'progress', 'finish', 'thumbs_up', 'thumbs_down', 'add_to_list' or 'remove_from_list'"
ID_PATTERN = r"text that matches '^[\x21-\x7e]+$'"


def event(**given: Any) -> dict[str, Any]:
    return {"event_id": "e1", "profile_id": "p1", "title_id": "t1", "kind": "play", "ts": 1_700_000_000_000} | given


def body(**given: Any) -> dict[str, Any]:
    return {"content": json.dumps({"events": [event(**given)]}), "headers": JSON}


def raw(content: bytes, **headers: str) -> dict[str, Any]:
    return {"content": content, "headers": JSON | headers}


def problem(field: str, got: str, expected: str, next_step: str) -> dict[str, str]:
    return {"field": field, "got": got, "expected": expected, "next_step": next_step}


QUERY_CASES = [
    ("", 422, problem("profile_id", "nothing", "a value", "Add 'profile_id'.")),
    (
        "profile_id=",
        422,
        problem("profile_id", "''", "text with at least 1 character", "Send text with at least 1 character."),
    ),
    ("profile_id=a%20b", 422, problem("profile_id", "'a b'", ID_PATTERN, f"Send {ID_PATTERN}.")),
    ("profile_id=%00", 422, problem("profile_id", r"'\x00'", ID_PATTERN, f"Send {ID_PATTERN}.")),
    (
        "profile_id=" + "a" * 129,
        422,
        problem(
            "profile_id",
            "'" + "a" * 57 + "..." + "a" * 58 + "'",
            "text with at most 128 characters",
            "Send text with at most 128 characters.",
        ),
    ),
    (
        "profile_id=p1&rows=0",
        422,
        problem("rows", "'0'", "a number greater than or equal to 1", "Send a number greater than or equal to 1."),
    ),
    (
        f"profile_id=p1&rows={MAX_ROWS + 1}",
        422,
        problem(
            "rows",
            f"'{MAX_ROWS + 1}'",
            f"a number less than or equal to {MAX_ROWS}",
            f"Send a number less than or equal to {MAX_ROWS}.",
        ),
    ),
    (
        f"profile_id=p1&items={MAX_ITEMS + 1}",
        422,
        problem(
            "items",
            f"'{MAX_ITEMS + 1}'",
            f"a number less than or equal to {MAX_ITEMS}",
            f"Send a number less than or equal to {MAX_ITEMS}.",
        ),
    ),
    (
        "profile_id=p1&rows=many",
        422,
        problem(
            "rows",
            "'many'",
            "a valid integer, unable to parse string as an integer",
            "Send a valid integer, unable to parse string as an integer.",
        ),
    ),
    (
        "profile_id=p1&kids=perhaps",
        422,
        problem(
            "kids",
            "'perhaps'",
            "a valid boolean, unable to interpret input",
            "Send a valid boolean, unable to interpret input.",
        ),
    ),
    ("profile_id=p1&itmes=5", 422, problem("itmes", "'5'", HOME_FIELDS, "Did you mean 'items'?")),
    ("profile_id=p1&zzz=5", 422, problem("zzz", "'5'", HOME_FIELDS, "Leave it out.")),
    (
        "profile_id=p1&profile_id=p2",
        422,
        problem("profile_id", "['p1', 'p2']", "one value", "Send the parameter once."),
    ),
    (
        "profile_id=%ff",
        400,
        problem(
            "query",
            "'profile_id=%ff'",
            "percent-encoded UTF-8",
            "Encode the parameters as UTF-8, then percent-encode them.",
        ),
    ),
    (
        "&".join(f"x{number}=1" for number in range(65)),
        400,
        problem("query", "more than 64 parameters", "at most 64 parameters", "Leave out what the route does not know."),
    ),
]


@pytest.mark.parametrize(
    ("query", "status", "told"), QUERY_CASES, ids=[case[0][:30] or "empty" for case in QUERY_CASES]
)
async def test_query(client: httpx.AsyncClient, query: str, status: int, told: dict[str, str]) -> None:
    answer = await client.get(f"/v1/home?{query}")
    check(answer, status, told)


JSON_ERROR = problem("body", "", "JSON in UTF-8", "Send one JSON object, encoded as UTF-8.")
BODY_CASES: dict[str, tuple[dict[str, Any], int, dict[str, str]]] = {
    "not json": (raw(b"{"), 400, JSON_ERROR | {"got": "EOF while parsing an object at line 1 column 1"}),
    "empty": (raw(b""), 400, JSON_ERROR | {"got": "EOF while parsing a value at line 1 column 0"}),
    "not utf-8": (
        raw(b'{"events": "\xff"}'),
        400,
        JSON_ERROR | {"got": "invalid unicode code point at line 1 column 13"},
    ),
    "too deep": (raw(b"[" * 10_000), 400, JSON_ERROR | {"got": "recursion limit exceeded at line 1 column 202"}),
    "a list": (
        raw(b"[1]"),
        422,
        problem("body", "[1]", "an object", "Send an object."),
    ),
    "no events": (
        raw(b'{"events": []}'),
        422,
        problem("events", "[]", "a list with at least 1 item", "Send a list with at least 1 item."),
    ),
    "unknown field": (
        raw(b'{"event": []}'),
        422,
        problem("event", "[]", "only events", "Did you mean 'events'?"),
    ),
    "misspelt field of an event": (
        body(titel_id="t1"),
        422,
        problem(
            "events[0].titel_id",
            "'t1'",
            f"only {', '.join(Event.model_fields)}",
            "Did you mean 'title_id'?",
        ),
    ),
    "unknown kind": (
        body(kind="watch"),
        422,
        problem(
            "events[0].kind",
            "'watch'",
            KINDS,
            f"Send one of {KINDS}.",
        ),
    ),
    "text for a number": (
        body(ts="now"),
        422,
        problem("events[0].ts", "'now'", "a valid integer", "Send a valid integer."),
    ),
    "seconds with a fraction": (
        body(ts=1.5),
        422,
        problem("events[0].ts", "1.5", "a valid integer", "Send a valid integer."),
    ),
    "huge integer": (
        raw(json.dumps({"events": [event(ts=0)]}).replace('"ts": 0', '"ts": ' + "9" * 400).encode()),
        422,
        problem(
            "events[0].ts",
            "9" * 58 + "..." + "9" * 59,
            "a number less than or equal to 4102444800000",
            "Send a number less than or equal to 4102444800000.",
        ),
    ),
    "negative time": (
        body(ts=-1),
        422,
        problem(
            "events[0].ts", "-1", "a number greater than or equal to 0", "Send a number greater than or equal to 0."
        ),
    ),
    "NaN": (
        body(position_s=float("nan")),
        422,
        problem("events[0].position_s", "nan", "a finite number", "Send a finite number."),
    ),
    "Infinity": (
        body(position_s=float("inf")),
        422,
        problem("events[0].position_s", "inf", "a finite number", "Send a finite number."),
    ),
    "overflowing float": (
        raw(json.dumps({"events": [event(position_s=0)]}).replace('"position_s": 0', '"position_s": 1e999').encode()),
        422,
        problem("events[0].position_s", "inf", "a finite number", "Send a finite number."),
    ),
    "too many events": (
        raw(json.dumps({"events": [event()] * (MAX_EVENTS + 1)}).encode()),
        422,
        problem(
            "events", "", f"a list with at most {MAX_EVENTS} items", f"Send a list with at most {MAX_EVENTS} items."
        ),
    ),
    "errors without end": (
        raw(b'{"events": [{}], ' + b",".join(b'"%d": 1' % number for number in range(6000)) + b"}"),
        422,
        problem(
            "body",
            "6006 errors",
            "a body as the schema at /openapi.json describes",
            "Send the first element alone to see what is wrong with it.",
        ),
    ),
    "another media type": (
        {"content": b"{}", "headers": {"content-type": "text/plain"}},
        415,
        problem(
            "Content-Type",
            "'text/plain'",
            "application/json",
            "Send JSON with the header Content-Type: application/json.",
        ),
    ),
    "no media type": (
        {"content": b"{}"},
        415,
        problem(
            "Content-Type", "nothing", "application/json", "Send JSON with the header Content-Type: application/json."
        ),
    ),
    "declared too large": (
        raw(b"{}", **{"content-length": str(MAX_BODY_BYTES + 1)}),
        413,
        problem(
            "body", f"{MAX_BODY_BYTES + 1} bytes", f"at most {MAX_BODY_BYTES} bytes", "Split it into smaller requests."
        ),
    ),
}


@pytest.mark.parametrize("case", BODY_CASES)
async def test_body(client: httpx.AsyncClient, case: str) -> None:
    request, status, told = BODY_CASES[case]
    answer = await client.post("/v1/events", **request)
    if not told["got"]:
        told = told | {"got": answer.json()["errors"][0]["got"]}
    check(answer, status, told)


async def test_an_event_from_the_future_is_refused_and_a_fast_clock_is_not(client: httpx.AsyncClient) -> None:
    now_ms = time.time_ns() // 1_000_000
    refused = await client.post("/v1/events", **body(ts=now_ms + 3_700_000))
    assert refused.status_code == 422
    assert [error["field"] for error in refused.json()["errors"]] == ["events[0].ts"]
    assert (await client.post("/v1/events", **body(ts=now_ms + 3_500_000))).status_code == 200


async def test_only_what_is_wrong_is_told(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/events", **body(ts=-1))
    assert [error["field"] for error in answer.json()["errors"]] == ["events[0].ts"]


async def test_too_large_is_refused_without_reading_the_rest(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 65_536

    answer = await client.post("/v1/events", content=endless(), headers=JSON)
    check(
        answer,
        413,
        problem("body", "more than that", f"at most {MAX_BODY_BYTES} bytes", "Split it into smaller requests."),
    )
    assert sent <= MAX_BODY_BYTES // 65_536 + 2


@pytest.mark.parametrize(
    ("method", "path", "status", "told", "headers"),
    [
        (
            "DELETE",
            "/v1/home",
            405,
            problem("method", "'DELETE'", "GET for /v1/home", "Send GET instead."),
            {"allow": "GET"},
        ),
        (
            "GET",
            "/v1/events",
            405,
            problem("method", "'GET'", "POST for /v1/events", "Send POST instead."),
            {"allow": "POST"},
        ),
        (
            "POST",
            "/v1/quality/0123456789abcdef",
            405,
            problem("method", "'POST'", "DELETE, GET for /v1/quality/0123456789abcdef", "Send DELETE, GET instead."),
            {"allow": "DELETE, GET"},
        ),
        ("GET", "/v1/hoome", 404, problem("path", "'/v1/hoome'", "", "Did you mean /v1/home?"), {}),
        ("GET", "/v1/home/", 404, problem("path", "'/v1/home/'", "", "Did you mean /v1/home?"), {}),
        ("GET", "/%ff", 404, problem("path", "'/\ufffd'", "", "See /docs for what there is."), {}),
        (
            "GET",
            "/v1/titles/no%20such/similar",
            422,
            problem("title_id", "'no such'", ID_PATTERN, f"Send {ID_PATTERN}."),
            {},
        ),
        ("GET", "/healthz?full=1", 422, problem("full", "'1'", "nothing of that name", "Leave it out."), {}),
    ],
)
async def test_path_and_method(
    client: httpx.AsyncClient, method: str, path: str, status: int, told: dict[str, str], headers: dict[str, str]
) -> None:
    answer = await client.request(method, path)
    if not told["expected"]:
        told = told | {"expected": answer.json()["errors"][0]["expected"]}
    check(answer, status, told)
    assert headers.items() <= dict(answer.headers).items()


@pytest.mark.parametrize("given", ["0", "0.001", "-1", "nan", "inf", "61", "soon", ""])
async def test_deadline_header(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.get("/v1/home?profile_id=p1", headers={"x-request-timeout-seconds": given})
    told = problem(
        "x-request-timeout-seconds",
        repr(given),
        "seconds, 0.005 to 60",
        "Correct the header, or leave it out for the default.",
    )
    check(answer, 422, told)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False), ("\xe9", False)],
)
async def test_request_id(client: httpx.AsyncClient, given: str, *, kept: bool) -> None:
    for path in ("/v1/home?profile_id=p1", "/v1/nothing", "/v1/models"):
        answer = await client.get(path, headers=[(b"x-request-id", given.encode("latin-1"))])
        request_id = answer.headers["x-request-id"]
        assert answer.json()["request_id"] == request_id
        assert (request_id == given) is kept
        assert 0 < len(request_id) <= 64


def check(answer: httpx.Response, status: int, told: dict[str, str]) -> None:
    """The answer is a whole problem whose first error is the one told."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail", "request_id", "errors"}
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["errors"][0] == told
    assert told["field"] in document["detail"]
    assert "Traceback" not in answer.text
