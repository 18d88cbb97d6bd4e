"""The bitrate routes, end to end in one process: decisions, what is left without a part, and CMCD answered by CMSD."""

import asyncio
import json
import math
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from features.networks import Throughput, store_throughput
from features.renditions import Rendition, store_renditions
from features.settings import Settings
from serve.arguments import Arguments
from serve.bitrate.planner import Plan
from serve.bitrate.rules import SAFE_REBUFFER
from serve.bitrate.schemas import MAX_SESSIONS, SESSION_EXAMPLE, BitrateDecision, BitrateDecisions
from serve.bitrate.sessions import Session
from tests.conftest import ValkeyProcess
from tests.serve.bitrate.small_policy import export_policy, small_policy
from tests.serve.bitrate.test_sessions import SESSIONS
from tests.serve.gateway.conftest import OpenClient, install_model, opened
from tests.waiting import eventually

LADDER = [300, 750, 1200, 1850, 2850, 4300]
SESSION: dict[str, Any] = {
    "session_id": "s1",
    "segment_s": 4,
    "buffer_s": 16,
    "last_rung": 2,
    "throughput_kbps": [2000, 2100, 1900, 2050],
    "download_s": [2.0, 1.9, 2.1, 2.0],
    "rungs_kbps": LADDER,
}
START = {name: SESSION[name] for name in ("session_id", "segment_s", "rungs_kbps")} | {"buffer_s": 0}


@pytest.fixture
def planning(arguments: Arguments) -> Arguments:
    """Arguments of a gateway with a bitrate policy, too."""
    assert arguments.home is not None
    install_model(arguments.home, small_policy(), "bitrate")
    return arguments


async def ask(client: httpx.AsyncClient, session: Any, **changes: Any) -> BitrateDecision:
    answer = await client.post("/v1/bitrate", content=json.dumps(session | changes))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    decision = BitrateDecision.model_validate_json(answer.content)
    assert decision.request_id == answer.headers["x-request-id"]
    return decision


async def ask_all(client: httpx.AsyncClient, body: Any) -> BitrateDecisions:
    answer = await client.post("/v1/bitrate", content=json.dumps(body))
    assert answer.status_code == 200, answer.text
    return BitrateDecisions.model_validate_json(answer.content)


async def test_the_policy_decides(planning: Arguments) -> None:
    async with opened(planning) as client:
        decision = await ask(client, SESSION)
        assert decision.versions.bitrate == small_policy().name
        assert (decision.degraded, decision.session_id, decision.ttl_s) == ((), "s1", 4)
        assert decision.bitrate_kbps == LADDER[decision.rung]
        assert decision.max_safe_kbps in LADDER
        assert (decision.bitrate_kbps <= decision.max_safe_kbps) is (decision.rebuffer_probability < SAFE_REBUFFER)
        assert decision.expected_quality == LADDER[decision.rung] / 1000
        assert decision.throughput_kbps.p10 < decision.throughput_kbps.p50 < decision.throughput_kbps.p90
        assert decision.throughput_kbps.p50 == pytest.approx(2011, rel=0.01)
        models = (await client.get("/v1/models")).json()["models"]
        assert {model["name"]: (model["version"], model["state"]) for model in models}["bitrate"] == (
            small_policy().name,
            "live",
        )
        metrics = (await client.get("/metrics")).text
    assert 'playhead_bitrate_decisions_total{source="model"} 1.0' in metrics
    assert 'playhead_stage_seconds_count{stage="bitrate"} 1.0' in metrics
    assert f'playhead_model_live{{model="bitrate",version="{small_policy().name}"}} 1.0' in metrics


async def test_one_by_one_in_a_list_and_as_sessions_it_is_the_same(planning: Arguments) -> None:
    sessions = [SESSION | {"session_id": f"s{place}", "buffer_s": 2 * place} for place in range(20)]
    async with opened(planning) as client:
        apart = await asyncio.gather(*(ask(client, session) for session in sessions))
        listed = await ask_all(client, sessions)
        named = await ask_all(client, {"sessions": sessions})
    assert [decision.session_id for decision in listed.decisions] == [session["session_id"] for session in sessions]
    for alone, one, other in zip(apart, listed.decisions, named.decisions, strict=True):
        assert one == other
        assert alone.model_dump(exclude={"request_id", "versions"}) == one.model_dump()
    assert len({decision.rung for decision in apart}) > 1, "the buffer should matter"


@pytest.mark.parametrize("count", [0, 1, 65, MAX_SESSIONS])
async def test_a_tick_of_any_size_is_answered_in_order(planning: Arguments, count: int) -> None:
    sessions: list[Any] = [SESSION | {"session_id": str(place), "buffer_s": place % 50} for place in range(count)]
    sessions[3:4] = [None] if count > 3 else []
    async with opened(planning) as client:
        answer = await ask_all(client, sessions)
        assert len(answer.decisions) == count
        if count > 3:
            assert answer.decisions[3].degraded == ("bad_session",)
            assert answer.degraded == ("bad_session",)
            assert answer.decisions[64].session_id == "64"
        for place in range(4, count, 97):
            alone = await ask(client, sessions[place])
            assert alone.model_dump(exclude={"request_id", "versions"}) == answer.decisions[place].model_dump()


@pytest.mark.timed
async def test_a_large_tick_does_not_stop_the_loop(planning: Arguments) -> None:
    """Best of a few: what else the machine does only ever makes a pause longer."""
    body, pauses_s = json.dumps([SESSION] * MAX_SESSIONS), []
    async with opened(planning) as client:
        for _ in range(5):
            tick = asyncio.ensure_future(client.post("/v1/bitrate", content=body, timeout=20))
            longest_s, before_s = 0.0, time.perf_counter()
            while not tick.done():
                await asyncio.sleep(0)
                now_s = time.perf_counter()
                longest_s, before_s = max(longest_s, now_s - before_s), now_s
            assert tick.result().status_code == 200
            pauses_s.append(longest_s)
    assert min(pauses_s) < 0.1, pauses_s


async def test_more_than_the_limit_is_refused_whole(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/bitrate", content=json.dumps([START] * (MAX_SESSIONS + 1)))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["expected"] == "at most 1000"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[1, 2", 400),
        (b'{"buffer_s": NaNs}', 400),
        (b"\xff\xfe{}", 400),
        (b'{"session_id": "\xff"}', 400),
        (b"[" * 100_000, 400),
        (b"3", 422),
        (b'"x"', 422),
        (b"null", 422),
        (b"NaN", 422),
        (b" " * (5 << 20), 413),
    ],
)
async def test_only_what_is_no_session_at_all_is_refused(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    answer = await client.post("/v1/bitrate", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()["errors"][0]
    assert all(problem[name] for name in ("field", "got", "expected", "next_step"))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-0.0", '"12"', "{}", "true"])
async def test_values_that_json_does_not_even_have_get_a_safe_rung(client: httpx.AsyncClient, value: str) -> None:
    body = json.dumps(SESSION | {"buffer_s": "HERE"}).replace('"HERE"', value)
    answer = await client.post("/v1/bitrate?unknown=parameter", content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 200, answer.text
    decision = BitrateDecision.model_validate_json(answer.content)
    expected = {"model_missing"} if value == "-0.0" else {"bad_field:buffer_s"}
    assert set(decision.degraded) == expected
    assert decision.rung <= 2


async def test_sessions_of_another_kind_are_no_sessions(client: httpx.AsyncClient) -> None:
    answer = await ask_all(client, {"sessions": 5})
    assert (answer.decisions, answer.degraded) == ((), ("bad_field:sessions",))


@pytest.mark.hypothesis  # one is inside
@pytest.mark.parametrize("with_policy", [False, True])
async def test_no_garbage_is_refused_or_breaks_anything(arguments: Arguments, *, with_policy: bool) -> None:
    assert arguments.home is not None
    if with_policy:
        install_model(arguments.home, small_policy(), "bitrate")
    loop = asyncio.get_running_loop()
    async with opened(arguments) as client:

        async def post(body: str) -> httpx.Response:
            return await client.post("/v1/bitrate", content=body)

        @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.one_of(st.lists(SESSIONS, max_size=4), SESSIONS.map(lambda session: {"sessions": [session]})))
        def answered(body: Any) -> None:
            text = json.dumps(body)
            response = asyncio.run_coroutine_threadsafe(post(text), loop).result(20)
            assert response.status_code == 200, (text, response.text)
            BitrateDecisions.model_validate_json(response.content)

        await asyncio.to_thread(answered)


async def test_without_a_model_the_simple_rule_decides(arguments: Arguments) -> None:
    async with opened(arguments) as client:
        decision = await ask(client, SESSION)
        assert (decision.degraded, decision.versions.bitrate) == (("model_missing",), None)
        assert decision.rung == 2
        assert (await ask(client, START)).rung == 0
        metrics = (await client.get("/metrics")).text
        assert 'playhead_bitrate_decisions_total{source="rule"} 2.0' in metrics
        assert 'playhead_degraded_total{reason="model_missing"} 2.0' in metrics


async def test_a_model_is_taken_live_beside_the_requests_and_a_damaged_one_is_not(
    planning: Arguments, tmp_path: Path
) -> None:
    assert planning.home is not None
    newer = export_policy(tmp_path / "models", {"published": "again"})
    async with opened(planning) as client:

        async def until(version: str, state: str, *reasons: str) -> dict[str, Any]:
            async def told() -> dict[str, Any] | None:
                models = (await client.get("/v1/models")).json()["models"]
                model = next(model for model in models if model["name"] == "bitrate")
                assert set((await ask(client, SESSION)).degraded) <= set(reasons)
                return model if (model["version"], model["state"]) == (version, state) else None

            found: dict[str, Any] = await eventually(told)
            return found

        await until(small_policy().name, "live")
        install_model(planning.home, newer, "bitrate")
        await until(newer.name, "live")
        damaged = planning.home / "models" / "bitrate" / ("0" * 12)
        damaged.mkdir()
        (damaged / "manifest.json").write_text("{}")
        (planning.home / "models" / "bitrate" / "champion").write_text("0" * 12)
        assert (await until(newer.name, "refused", "stale_model"))["detail"]
        answer = await ask(client, SESSION)
        assert (answer.versions.bitrate, answer.degraded) == (newer.name, ("stale_model",))


class Faulty:
    """A planner with a fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
        if self.fault == "fails":
            raise RuntimeError("no such luck")
        if self.fault == "is slow":
            async with asyncio.timeout(within_s):
                await asyncio.sleep(30)
        count = len(sessions)
        return Plan("v", [-1] * count, [0] * count, [math.nan] * count, [[math.nan] * 3] * count)


@pytest.mark.timed
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("fails", "planner_failed"), ("is slow", "planner_timeout"), ("gives no numbers", "planner_failed")],
)
async def test_a_planner_with_a_fault_costs_the_plan_and_not_the_answer(
    open_client: OpenClient, planning: Arguments, caplog: pytest.LogCaptureFixture, fault: str, reason: str
) -> None:
    async with open_client(planning, stages={"planner": Faulty(fault)}) as client:
        started = time.monotonic()
        for _ in range(3):
            answer = await client.post(
                "/v1/bitrate", content=json.dumps(SESSION), headers={"x-request-timeout-seconds": "0.1"}
            )
            decision = BitrateDecision.model_validate_json(answer.content)
            assert (decision.degraded, decision.versions.bitrate, decision.rung) == ((reason,), None, 2)
        assert time.monotonic() - started < 1
    assert sum(record.exc_info is not None for record in caplog.records) <= 1


async def test_segments_and_networks_come_from_the_feature_store(planning: Arguments, settings: Settings) -> None:
    sizes = [[100 * kbps] * 30 for kbps in LADDER]  # far less than nominal: 0.8 s of 4
    vmaf = [[30.0 + 10 * rung] * 30 for rung in range(6)]
    renditions = [Rendition(kbps, 4.0, size, quality) for kbps, size, quality in zip(LADDER, sizes, vmaf, strict=True)]
    store_renditions(settings, {"film": renditions}, 1)
    store_throughput(settings, {("edge", "3320"): Throughput(math.log(9000), 0.2, 50, 1)})
    async with opened(planning) as client:
        nominal = await ask(client, SESSION, buffer_s=4)
        small = await ask(client, SESSION, buffer_s=4, title_id="film", segment_index=3)
        assert small.rung > nominal.rung
        assert small.degraded == ()
        rated = await ask(client, SESSION, title_id="film", segment_index=3, qoe="perceptual")
        assert rated.expected_quality == 30 + 10 * rated.rung
        nobodys = await ask(client, SESSION, title_id="nobody's", segment_index=3)
        assert nobodys.degraded == ("unknown_title",)
        assert nobodys.versions.bitrate is not None
        ladderless = {name: value for name, value in SESSION.items() if name != "rungs_kbps"}
        assert (await ask(client, ladderless, title_id="film")).bitrate_kbps in LADDER
        cold = await ask(client, START)
        assert cold.throughput_kbps.p50 == pytest.approx(math.exp(7), rel=0.01)
        warm = await ask(client, START, cdn="edge", asn=3320)
        assert warm.throughput_kbps.p50 == pytest.approx(9000, rel=0.01)
        elsewhere = await ask(client, START, cdn="edge", asn="1")
        assert (elsewhere.throughput_kbps, elsewhere.degraded) == (cold.throughput_kbps, ())


@pytest.mark.timed
@pytest.mark.parametrize("trouble", ["down", "frozen"])
async def test_without_the_store_sizes_are_estimated_and_said_so(
    planning: Arguments, valkey_process: ValkeyProcess, trouble: str
) -> None:
    arguments = planning.model_copy(update={"redis_url": valkey_process.url, "store_deadline_ms": 50})
    async with opened(arguments) as client:
        assert (await ask(client, SESSION, title_id="film")).degraded == ("unknown_title",)
        assert valkey_process.process is not None
        if trouble == "down":
            valkey_process.kill()
        else:
            os.kill(valkey_process.process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(0.05)
            reason = "segments_unavailable" if trouble == "down" else "segments_timeout"
            started = time.monotonic()
            decision = await ask(client, SESSION, title_id="another")
            assert decision.degraded == (reason,)
            assert decision.versions.bitrate is not None
            for place in range(20):  # the next do not wait for it
                assert (await ask(client, SESSION, title_id=f"another {place}")).degraded == (reason,)
            assert time.monotonic() - started < 0.5
        finally:
            if valkey_process.process is not None:
                os.kill(valkey_process.process.pid, signal.SIGCONT)


def cmcd(**values: str) -> str:
    return quote(",".join(f"{name}={value}" if value else name for name, value in values.items()), safe="")


async def guided(client: httpx.AsyncClient, query: str, **headers: str) -> tuple[dict[str, int], httpx.Response]:
    answer = await client.get(f"/v1/bitrate/cmsd?{query}", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["cache-control"] == "no-store"
    found = re.fullmatch(r'"playhead"((?:;(?:etp|mb|rtt)=\d+)*)', answer.headers["cmsd-dynamic"])
    assert found is not None, answer.headers["cmsd-dynamic"]
    told = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", found[1])}
    return told, answer


VIDEO = {"ot": "v", "bl": "16000", "br": "1200", "d": "4000", "mtp": "2000", "tb": "4300", "sid": '"s1"'}
OTHER, FILM = '"other"', '"film"'


async def test_cmcd_is_answered_with_the_rung_to_play(planning: Arguments) -> None:
    async with opened(planning) as client:
        told, answer = await guided(client, f"CMCD={cmcd(**VIDEO)}&rungs_kbps=300,750,1200,1850,2850,4300&rtt_us=23600")
        decision = await ask(client, SESSION, throughput_kbps=[2000], download_s=[2.4])
        assert told == {"etp": 2000, "mb": decision.bitrate_kbps, "rtt": 24}
        assert answer.headers["playhead-versions"] == f"bitrate={small_policy().name}"
        assert "playhead-degraded" not in answer.headers


async def test_headers_and_version_2_say_the_same(planning: Arguments) -> None:
    ladder = "rungs_kbps=300,750,1200,1850,2850,4300"
    split = {
        "CMCD-Request": "bl=16000,mtp=2000",
        "CMCD-Object": "br=1200,d=4000,ot=v,tb=4300",
        "CMCD-Session": 'sid="s2"',
    }
    second = 'bl=(16000;v 9000;a),br=(1200;v),d=4000,mtp=(2000),ot=v,sid="s3",v=2'
    async with opened(planning) as client:
        first, _ = await guided(client, f"CMCD={cmcd(**VIDEO)}&{ladder}")
        assert (await guided(client, ladder, **split))[0] == first
        assert (await guided(client, f"CMCD={quote(second, safe='')}&{ladder}"))[0] == first


async def test_the_cap_holds_for_audio_beside_the_video(planning: Arguments) -> None:
    ladder = "rungs_kbps=300,750,1200,1850,2850,4300"
    async with opened(planning) as client:
        alone, _ = await guided(client, f"CMCD={cmcd(**VIDEO)}&{ladder}")
        audio, _ = await guided(client, f"CMCD={cmcd(ot='a', br='128', sid=VIDEO['sid'])}&{ladder}")
        assert audio == {"etp": alone["etp"], "mb": alone["mb"] + 128}
        both, _ = await guided(client, f"CMCD={cmcd(**VIDEO)}&{ladder}")
        assert both["mb"] == alone["mb"] + 128
        manifest, _ = await guided(client, f"CMCD={cmcd(ot='m', sid=VIDEO['sid'])}")
        assert manifest == both
        stranger, _ = await guided(client, f"CMCD={cmcd(ot='m', sid=OTHER)}")
        assert stranger == {}


async def test_samples_of_a_session_are_remembered(planning: Arguments) -> None:
    ladder = "rungs_kbps=300,750,1200,1850,2850,4300"
    async with opened(planning) as client:
        for kbps in ("8000", "500", "500", "500"):
            told, _ = await guided(client, f"CMCD={cmcd(**VIDEO | {'mtp': kbps})}&{ladder}")
        assert told["etp"] == 1000  # the geometric mean: what the policy makes of all four
        fresh, _ = await guided(client, f"CMCD={cmcd(**VIDEO | {'mtp': '500', 'sid': OTHER})}&{ladder}")
        assert fresh["etp"] == 500


async def test_the_ladder_comes_from_the_title_or_else_from_the_top_bitrate(
    planning: Arguments, settings: Settings
) -> None:
    store_renditions(settings, {"film": [Rendition(kbps, 4.0, [1000 * kbps] * 9) for kbps in (401, 1601, 2401)]}, 1)
    async with opened(planning) as client:
        stored, _ = await guided(client, f"CMCD={cmcd(**VIDEO, cid=FILM)}")
        assert stored["mb"] in {401, 1601, 2401}
        made, answer = await guided(client, f"CMCD={cmcd(**VIDEO, cid=OTHER)}")
        assert 150 <= made["mb"] <= 4300
        assert answer.headers["playhead-degraded"] == "unknown_title"
        bare, _ = await guided(client, f"CMCD={cmcd(ot='v', bl='16000', mtp='2000')}")
        assert bare == {"etp": bare["etp"]}


async def test_a_ladder_made_of_what_the_player_says_does_not_sink_with_what_it_was_told(planning: Arguments) -> None:
    """A player that leaves what `mb` excludes out of its own `tb`, as dash.js does, on a network that got better."""
    async with opened(planning) as client:
        top, told = 4300, []
        for kbps in [900] * 4 + [20_000] * 12:
            says = VIDEO | {"mtp": str(kbps), "br": str(min(top, 1200)), "tb": str(top)}
            guidance, _ = await guided(client, f"CMCD={cmcd(**says)}")
            top = guidance["mb"]
            told.append(top)
        assert min(told) < 4300
        assert told[-1] == 4300, told
        other, _ = await guided(client, f"CMCD={cmcd(**VIDEO | {'tb': '1200', 'mtp': '20000'}, cid=OTHER)}")
        assert other["mb"] == 1200  # another title begins anew


async def test_a_player_that_names_each_segment_s_own_bitrate_keeps_a_low_rung(planning: Arguments) -> None:
    async with opened(planning) as client:
        for place in range(30):
            says = VIDEO | {"br": str(3000 + 37 * place), "mtp": "300", "bl": "1000"}
            guidance, _ = await guided(client, f"CMCD={cmcd(**says)}")
        assert guidance["mb"] < 300


@pytest.mark.parametrize(
    "query",
    [
        "",
        "CMCD=",
        "CMCD=%ff%00,bl",
        "CMCD=bl%3D-1,ot%3Dv,br%3Dx",
        "CMCD=ot%3Dv,br%3D0,mtp%3D0,bl%3D0,d%3D0",
        "CMCD=ot%3Dv,br%3D999999999999999,mtp%3D999999999999999,bl%3D999999999999999,d%3D999999999999999,pr%3D0",
        "CMCD=ot%3Dv,br%3D1&rungs_kbps=nan,inf,,x,-1,0",
        "rungs_kbps=" + "1," * 5000,
        "rtt_us=-1",
        "rtt_us=99999999999999999999",
        "&" * 500,
        "a=1&" * 200,
    ],
)
async def test_no_cmcd_is_refused(planning: Arguments, query: str) -> None:
    async with opened(planning) as client:
        told, _ = await guided(client, query)
        assert told.get("mb", 1) > 0


@pytest.mark.hypothesis  # one is inside
async def test_any_cmcd_is_answered(planning: Arguments) -> None:
    loop = asyncio.get_running_loop()
    async with opened(planning) as client:

        @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(
            st.text(alphabet='blrmtpdov=();", ?012.-', max_size=50) | st.text(max_size=30),
            st.text(alphabet="0123456789,.-e", max_size=20),
        )
        def answered(text: str, rungs: str) -> None:
            query = f"CMCD={quote('ot=v,' + text, safe='', errors='replace')}&rungs_kbps={rungs}"
            asyncio.run_coroutine_threadsafe(guided(client, query), loop).result(20)

        await asyncio.to_thread(answered)


async def test_the_documented_example_is_decided(planning: Arguments) -> None:
    async with opened(planning) as client:
        decision = await ask(client, SESSION_EXAMPLE)
        assert decision.degraded == ("unknown_title",)
