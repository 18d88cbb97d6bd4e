import httpx
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.events import Event
from loadtests.scenario import Audience, check_target, plan_requests, read_scenario, run_scenario, scenario_names
from serve.errors import InvalidInput, Unavailable

GOOD = 'rate_rps = 10\nduration_s = 1\n[[requests]]\nlabel = "a"\npath = "/v1/home?profile_id={profile_id}"\n'


def planned(name, seed=1, audience=None, duration_s=20.0):
    return plan_requests(
        read_scenario(name),
        audience or Audience.numbered(100),
        rate_rps=50,
        duration_s=duration_s,
        seed=seed,
        start_ms=1_700_000_000_000,
        run_id="run",
    )


@pytest.mark.parametrize("name", ["home", "similar", "events", "mixed"])
def test_scenarios_that_come_with_playhead_plan_requests(name):
    assert name in scenario_names()
    plan = planned(name)
    assert len(plan) > 800
    assert [request.at_s for request in plan] == sorted(request.at_s for request in plan)
    assert all("{" not in request.path for request in plan)


def test_same_seed_same_plan():
    assert planned("mixed", seed=4) == planned("mixed", seed=4)
    assert planned("mixed", seed=4) != planned("mixed", seed=5)


def test_planned_events_fit_the_event_schema_and_never_repeat_an_id():
    bodies = [orjson.loads(request.body) for request in planned("mixed") if request.body]
    events = [Event.model_validate(event) for body in bodies for event in body["events"]]
    assert len({event.event_id for event in events}) == len(events) > 400
    assert all(1_700_000_000_000 <= event.ts <= 1_700_000_020_000 for event in events)


def test_weights_are_kept():
    labels = [request.label for request in planned("mixed", duration_s=100)]
    assert labels.count("events") / len(labels) == pytest.approx(0.6, abs=0.03)
    assert labels.count("similar") / len(labels) == pytest.approx(0.1, abs=0.02)


def test_ids_are_encoded_into_paths():
    plan = planned("home", audience=Audience(["a/b&c=d#é"], ["t"]))
    assert plan[0].path == "/v1/home?profile_id=a%2Fb%26c%3Dd%23%C3%A9"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (GOOD.replace("rate_rps = 10", "rate_rps = -1"), "rate_rps"),
        (GOOD.replace("rate_rps", "rate"), "rate"),
        (GOOD.replace("/v1", "v1"), "path"),
        (GOOD.replace("{profile_id}", "{profile}"), "path"),
        (GOOD + 'weight = "much"\n', "weight"),
        (GOOD + '[requests.body]\nevents = [{ts = "{when}"}]\n', "body"),
        ("rate_rps = \n", "wrong.toml"),
        ("rate_rps = 10\nduration_s = 1\n", "requests"),
    ],
)
def test_a_wrong_scenario_is_refused_by_field(tmp_path, text, field):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_scenario(path)
    assert field in caught.value.field


def test_an_unknown_scenario_is_told_which_there_are():
    with pytest.raises(InvalidInput, match="events, home, mixed, similar"):
        read_scenario("homes")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:1/", "http://[::1]:80", "http://127.9.9.9"])
def test_this_machine_may_be_loaded(url):
    assert check_target(url, allow_remote=False) == url.rstrip("/")


@pytest.mark.parametrize("url", ["http://example.com", "http://192.0.2.1:8000", "http://localhost.example.com:8000"])
def test_another_machine_only_when_asked_for(url):
    with pytest.raises(InvalidInput, match="allow-remote"):
        check_target(url, allow_remote=False)
    assert check_target(url, allow_remote=True) == url


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://"])
def test_what_is_no_http_url_is_refused(url):
    with pytest.raises(InvalidInput, match="base_url"):
        check_target(url, allow_remote=True)


def test_profiles_and_titles_come_from_a_prepared_data_set(tmp_path):
    with pytest.raises(InvalidInput, match=r"profiles\.parquet"):
        Audience.of_dataset(tmp_path)
    pq.write_table(pa.table({"profile_id": ["p1", "p2"], "kids": [False, True]}), tmp_path / "profiles.parquet")
    pq.write_table(pa.table({"title_id": ["t1"]}), tmp_path / "titles.parquet")
    assert Audience.of_dataset(tmp_path) == Audience(["p1", "p2"], ["t1"])
    pq.write_table(pa.table({"title_id": pa.array([], pa.string())}), tmp_path / "titles.parquet")
    with pytest.raises(InvalidInput, match="at least one"):
        Audience.of_dataset(tmp_path)


def test_a_run_against_a_real_server(server):
    shares = []
    report = run_scenario("mixed", base_url=server, rps=60, seconds=2, seed=2, profiles=20, on_progress=shares.append)
    assert report.errors == {}
    assert set(report.by_label) == {"home", "similar", "events"}
    assert report.degraded == report.by_label["home"][0]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    events = sum(httpx.get(f"{server}/counts", timeout=5).json().values())
    assert events == report.by_label["events"][0]


def test_nobody_there_is_said_before_any_load(closed_port_url):
    with pytest.raises(Unavailable, match="playhead up"):
        run_scenario("home", base_url=closed_port_url)
