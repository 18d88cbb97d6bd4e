import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import polars as pl
import pytest

from deployments import nextrung
from deployments.homepage import fetch, fetch_settled, page_lines, request_of, some_profile
from serve.arguments import TOKEN_VARIABLE
from serve.errors import InvalidInput, Unavailable

ITEM = {"name": "A [bold] name"}
PAGE = {
    "profile_id": "196",
    "versions": {"model": "3b0f6c1d9a42"},
    "degraded": [],
    "rows": [{"title": "Top picks", "reason": "Because", "items": [ITEM] * 30}],
}


@pytest.fixture
def service():
    """A service that gives the answers of a list in turn, the last one for ever."""
    answers, asked, tokens = [], [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            tokens.append(self.headers["Authorization"])
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", answers=answers, asked=asked, tokens=tokens)
        server.shutdown()
        thread.join()


def test_a_page_is_asked_for_again_while_something_was_late(service):
    url, answers, asked = service.url, service.answers, service.asked
    answers += [(200, {**PAGE, "degraded": ["features_timeout"]}), (200, PAGE)]
    assert fetch_settled(url, "a b") == PAGE
    assert asked == ["/v1/home?profile_id=a+b"] * 2


def test_no_proxy_is_asked_for_this_machine(service, monkeypatch):
    url, answers = service.url, service.answers
    answers.append((200, PAGE))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert fetch(url, "1") == PAGE


def test_a_page_that_stays_degraded_is_shown_as_it_is(service):
    url, answers, asked = service.url, service.answers, service.asked
    page = {**PAGE, "degraded": ["model_missing"]}
    answers.append((200, page))
    assert fetch_settled(url, "1") == page
    assert len(asked) == 1
    assert any("model_missing" in line for line in page_lines(page, 80))


def test_a_refusal_keeps_the_services_words(service):
    url, answers = service.url, service.answers
    told = {"field": "profile_id", "got": "''", "expected": "1 to 128", "next_step": "Send one."}
    answers.append((422, {"title": "Invalid input", "status": 422, "errors": [told]}))
    with pytest.raises(InvalidInput) as caught:
        fetch(url, "")
    assert {name: getattr(caught.value, name) for name in told} == told


@pytest.mark.parametrize("body", [b"<html>", b"", {"errors": []}, ["odd"]])
def test_a_refusal_that_is_no_problem_document(service, body):
    url, answers = service.url, service.answers
    answers.append((503, body))
    with pytest.raises(Unavailable, match="status 503"):
        fetch(url, "1")


def test_an_answer_that_is_no_json(service):
    url, answers = service.url, service.answers
    answers.append((200, b"<html>"))
    with pytest.raises(Unavailable, match="playhead up"):
        fetch(url, "1")


def test_lines_fit_and_names_are_no_markup():
    lines = list(page_lines(PAGE, 60))
    assert "196" in lines[0]
    titles = lines[-1]
    assert len(titles.replace("\\[", "[")) <= 60
    assert "\\[bold]" in titles


def test_where_the_service_wants_a_token_it_is_brought_and_never_printed(service, monkeypatch):
    service.answers.append((200, PAGE))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    fetch(service.url, "1")
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    fetch(service.url, "1")
    assert service.tokens == [None, "Bearer secret"]
    header = f'-H "Authorization: Bearer ${TOKEN_VARIABLE}"'
    assert request_of("http://h:1", "a") == f"curl 'http://h:1/v1/home?profile_id=a' {header}"
    assert nextrung.request_of("http://h:1").startswith(f"curl 'http://h:1/v1/bitrate' {header} -d '")


def test_the_request_is_what_a_shell_takes(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert request_of("http://h:1", "a&b") == "curl 'http://h:1/v1/home?profile_id=a%26b'"


def test_some_profile_has_events_in_the_middle_of_all(tmp_path):
    assert some_profile(tmp_path) is None
    pl.DataFrame({"profile_id": ["few", *["many"] * 9, *["some"] * 4]}).write_parquet(tmp_path / "events.parquet")
    assert some_profile(tmp_path) == "some"
