"""Versions as the folder, the registry and a service tell them, and what differs between two."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.table import Table
from typer.testing import CliRunner

from deployments.cli import app
from deployments.commands.output import Output
from deployments.overview import find_two, look_over
from features.settings import Settings
from serve.artifacts import Artifact, set_champion
from serve.errors import NotFound
from serve.gateway.ops import Models
from tests.contracts.small_model import copy_of, small_artifact
from tests.training.versions import settings_of, variant
from training.registry import Registry
from training.retention import using

MODEL = "small"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[Artifact]]:
    """Two versions in the folder, of which the first is the champion there; a third only in the registry."""
    settings = settings_of(tmp_path_factory.mktemp("home"))
    folder = settings.models / MODEL
    here = [variant(small_artifact(), folder, mark) for mark in (1, 2)]
    elsewhere = variant(small_artifact(), tmp_path_factory.mktemp("elsewhere"), 3)
    set_champion(settings.models, MODEL, here[0].version)
    registry = Registry.of(settings, {})
    with registry.run(MODEL) as run:
        registry.register(elsewhere, run.id)
    return settings, [*here, elsewhere]


@pytest.fixture
def playhead(home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runner = CliRunner(env={"PLAYHEAD_HOME": str(home[0].home), "COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, list(arguments))


def last_line(result):
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def service(home) -> Iterator[str]:
    """A listener that tells of models in the gateway's own schema."""
    _, (first, second, _) = home
    shared = {"name": MODEL, "loaded_ts": 1, "state": "live", "detail": ""}
    health = {"state": "suspect", "judged": True, "reasons": ["slow"], "readings": []}
    told = Models.model_validate({
        "request_id": "r",
        "models": [
            {**shared, "version": second.version, "role": "champion", "share": 0.9, "health": None},
            {**shared, "version": first.version, "role": "challenger", "share": 0.1, "health": health},
        ],
    })  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told.model_dump_json().encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_versions_of_the_folder_and_the_registry(playhead, home):
    _, (first, second, third) = home
    result = playhead("models", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["version"]: row for row in last_line(result)["models"]}
    assert rows.keys() == {first.version, second.version, third.version}
    assert (rows[first.version]["role"], rows[first.version]["here"], rows[first.version]["number"]) == (
        "champion", True, 0,
    )  # fmt: skip
    assert (rows[third.version]["here"], rows[third.version]["number"]) == (False, 1)
    assert rows[third.version]["lineage"] == third.manifest.lineage.model_dump(mode="json")
    assert rows[second.version]["headline"] == "ndcg@10"
    assert (rows[second.version]["value"], rows[second.version]["difference"]) == (0.25, 0.0)
    assert rows[first.version]["difference"] is None
    told = playhead("models").stdout
    assert "only in the registry" in told
    assert f"after {small_artifact().version}" in told


def test_a_service_that_runs_says_who_answers(playhead, home, service):
    _, (first, second, third) = home
    answer = last_line(playhead("models", "--url", service, "--json"))
    rows = {row["version"]: row for row in answer["models"]}
    assert answer["service"] == service
    assert [rows[one.version]["role"] for one in (first, second, third)] == ["challenger", "champion", ""]
    assert rows[first.version]["share"] == 0.1
    assert rows[first.version]["health"]["reasons"] == ["slow"]
    assert f"{first.version}: slow" in playhead("models", "--url", service).stdout


def test_what_is_down_is_a_note_and_no_failure(playhead, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = playhead("models", "--url", "http://127.0.0.1:9", "--json")
    assert result.exit_code == 0
    assert len(last_line(result)["models"]) == 2
    assert [note.split(" is not asked")[0] for note in last_line(result)["notes"]] == ["the registry", "the service"]


def test_a_damaged_version_is_listed_with_its_trouble(playhead, home):
    settings, _ = home
    broken = copy_of(small_artifact(), settings.models / MODEL)
    try:
        (broken / "vocabulary.parquet").write_bytes(b"no table")
        found = {entry.version: entry.trouble for entry in look_over(settings).versions}
        assert "vocabulary" in found[small_artifact().version]
        assert f"{MODEL} {small_artifact().version}: " in playhead("models").stdout
    finally:
        shutil.rmtree(broken)


def test_what_differs(playhead, home):
    _, (first, _, third) = home
    answer = last_line(playhead("models", "diff", "champion", third.version[:6], "--json"))
    assert (answer["model"], answer["first"], answer["second"]) == (MODEL, first.version, third.version)
    assert answer["parameters"] == {"mark": {"first": 1, "second": 3}}
    assert answer["lineage"] == {"seed": {"first": 1, "second": 3}}
    assert answer["graphs"] == answer["files"] == {"added": [], "removed": [], "changed": []}
    assert answer["vocabulary"]["added"] == 0
    told = playhead("models", "diff", MODEL, "champion", third.version).stdout
    assert "mark" in told
    for wrong in (
        ("champion", "previous"),
        (first.version, "0" * 12),
        (first.version,),
        ("other", "champion", "champion"),
    ):
        refused = playhead("models", "diff", *wrong, "--json")
        assert refused.exit_code == 1
        assert last_line(refused)["error"]["field"] in {"version", "versions"}


def test_two_versions_are_of_the_one_model_that_has_both(home):
    settings, (first, second, third) = home
    ours = [
        replace(entry, role={first.version: "champion", second.version: "challenger"}.get(entry.version, ""))
        for entry in look_over(settings).versions
    ]
    other = replace(next(entry for entry in ours if entry.role == "champion"), name="other", version="f" * 12)
    versions = [other, *ours]
    assert [one.version for one in find_two(versions, None, "champion", "challenger")] == [
        first.version,
        second.version,
    ]
    assert [one.version for one in find_two(versions, None, third.version[:5], "champion")] == [
        third.version, first.version,
    ]  # fmt: skip
    assert [one.name for one in find_two(versions, None, "ffff", third.version)] == ["other", MODEL]
    with pytest.raises(NotFound, match="previous"):  # the one that nobody has is named, not the one that two have
        find_two(versions, None, "champion", "previous")
    with pytest.raises(NotFound, match="2 versions"):
        find_two([*versions, replace(ours[0], name="other", role="challenger")], None, "champion", "challenger")


def test_a_table_that_is_piped_is_whole(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    Output(as_json=False).console.print(Table("version", *["a column that is long"] * 8, box=None))
    assert len(capsys.readouterr().out.splitlines()) == 1
    monkeypatch.setenv("COLUMNS", "80")
    assert Output(as_json=False).console.width == 80


def test_pruning_says_what_would_go_and_needs_to_know_who_answers(home, playhead, valkey_url, monkeypatch):
    settings, (first, second, elsewhere) = home
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    away = playhead("models", "prune", "--json")
    assert away.exit_code == 1
    assert last_line(away)["error"]["field"] == f"plan of {MODEL}"
    monkeypatch.setenv("REDIS_URL", valkey_url)
    result = playhead("models", "prune", "--keep", "1", "--dry-run", "--json")
    assert result.exit_code == 0
    answer = last_line(result)
    (told,) = answer["models"]
    assert (answer["dry_run"], told["model"], told["versions"]) == (True, MODEL, [])
    assert told["kept"][first.version] == "published"
    assert set(told["kept"]) == {first.version, second.version, elsewhere.version}, "the others are young"
    with using(settings.models, MODEL):
        assert playhead("models", "prune").exit_code == 1, "it did not what was asked"
    assert playhead("models", "prune", "--keep", "0").exit_code == 2
