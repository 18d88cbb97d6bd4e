from pathlib import Path

import pytest

from deployments.placement import NAMES, Bindings, complete, configured_url, url_of
from serve.arguments import Arguments
from serve.errors import InvalidInput

BINDINGS = Bindings(port=8123, home=Path("/srv/home"), redis_url="redis://127.0.0.1:1/0", dataset="mine")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, at its import
@pytest.mark.parametrize("name", NAMES)
def test_placements_are_valid_for_serve_and_for_the_application(name):
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415  (warns at its import)

    config = complete(name, BINDINGS)
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert application.import_path == "serve.app:build"
    assert schema.http_options.host == "127.0.0.1"
    assert schema.http_options.port == 8123
    assert configured_url(config) == "http://127.0.0.1:8123"
    arguments = Arguments.model_validate(application.args)
    assert (arguments.dataset, arguments.home, arguments.redis_url) == (
        "mine",
        Path("/srv/home"),
        "redis://127.0.0.1:1/0",
    )
    assert arguments.placement == {"local": "fused", "cluster": "split"}[name]
    bound = {"Gateway"} if name == "local" else {"Gateway", "Features", "Ranker", "Planner"}
    assert {deployment.name for deployment in application.deployments} == bound
    for deployment in application.deployments:  # Serve's defaults are 5 and no limit
        assert deployment.max_ongoing_requests >= 64
        assert deployment.max_queued_requests >= 64


def test_what_a_placement_names_itself_stays(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("applications: [{import_path: a:b, args: {dataset: theirs, extra: 1}}]")
    config = complete(str(path), BINDINGS)
    assert config["applications"][0]["args"]["dataset"] == "theirs"
    assert config["applications"][0]["args"]["extra"] == 1
    assert config["http_options"]["port"] == 8123


def test_an_open_ingress_is_known_to_the_application(tmp_path):
    path = tmp_path / "open.yaml"
    path.write_text(
        "{http_options: {host: 0.0.0.0}, applications: [{import_path: a:b, args: {listen_host: 127.0.0.1}}]}"
    )
    assert complete(str(path), BINDINGS)["applications"][0]["args"]["listen_host"] == "0.0.0.0"


@pytest.mark.parametrize(
    "text", ["", "a: [", "applications: []", "applications: [1]", "applications: 3", "- x", "\ud7ff\x00"]
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        complete(str(path), BINDINGS)
    assert caught.value.field == str(path)


def test_an_ingress_on_all_interfaces_is_reached_by_this_machine():
    assert url_of("0.0.0.0", 8000) == "http://127.0.0.1:8000"
    assert url_of("10.0.0.7", 8000) == "http://10.0.0.7:8000"


def test_an_unknown_placement_is_refused():
    with pytest.raises(InvalidInput, match="local or cluster"):
        complete("galaxy", BINDINGS)
