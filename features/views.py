"""The feature views: the one table from which Feast's objects, the online readers and the writers are made.

Units: *_ts_ms UTC milliseconds since the epoch; duration_s seconds; bitrate and throughput kbit/s; sizes bytes.
"""

from typing import Final

from features.layout import ValueKind, View

PROFILE_HISTORY: Final = View(
    name="profile_history",
    join_keys=("profile_id",),
    features={
        "title_ids": ValueKind.STRINGS,
        "kinds": ValueKind.INT32S,
        "ts_ms": ValueKind.INT64S,
        "progress": ValueKind.FLOAT32S,
        "n_events": ValueKind.INT64,
    },
    about="Newest events of a profile, oldest first, as arrays of one length; kinds are codes of KIND_CODES.",
)

PROFILE_STATS: Final = View(
    name="profile_stats",
    join_keys=("profile_id",),
    features={
        "counts": ValueKind.INT64S,
        "first_ts_ms": ValueKind.INT64,
        "last_ts_ms": ValueKind.INT64,
        "my_list": ValueKind.STRINGS,
        "region": ValueKind.STRING,
        "device": ValueKind.STRING,
        "kids": ValueKind.BOOL,
        "region_ts_ms": ValueKind.INT64,
        "device_ts_ms": ValueKind.INT64,
        "mark_title_ids": ValueKind.STRINGS,
        "mark_ts_ms": ValueKind.INT64S,
        "mark_added": ValueKind.BOOLS,
    },
    about="Counts by event kind (in the order of KINDS), my list, region and device. The mark and *_ts_ms features of "
    "list, region and device let late events fold in.",
)

TITLE_METADATA: Final = View(
    name="title_metadata",
    join_keys=("title_id",),
    features={
        "name": ValueKind.STRING,
        "year": ValueKind.INT64,
        "genres": ValueKind.STRINGS,
        "duration_s": ValueKind.FLOAT64,
        "kids": ValueKind.BOOL,
        "regions": ValueKind.STRINGS,
        "added_ts_ms": ValueKind.INT64,
    },
    about="The catalogue's entry of a title.",
)

TITLE_STATS: Final = View(
    name="title_stats",
    join_keys=("title_id",),
    features={
        "impressions": ValueKind.INT64,
        "plays": ValueKind.INT64,
        "finishes": ValueKind.INT64,
        "thumbs_up": ValueKind.INT64,
        "thumbs_down": ValueKind.INT64,
        "last_ts_ms": ValueKind.INT64,
        "trend": ValueKind.FLOAT64,
    },
    about="How viewers take a title: counts, and log2 of its plays with each worth half as much every three days.",
)

RENDITION_SEGMENTS: Final = View(
    name="rendition_segments",
    join_keys=("title_id", "rung"),
    features={
        "bitrate_kbps": ValueKind.FLOAT64,
        "segment_s": ValueKind.FLOAT64,
        "sizes_bytes": ValueKind.INT64S,
        "vmaf": ValueKind.FLOAT32S,
    },
    about="Size and perceptual quality (VMAF, 0 to 100) of each segment of one rung of a title.",
)

NETWORK_THROUGHPUT: Final = View(
    name="network_throughput",
    join_keys=("cdn", "asn"),
    features={
        "log_mean_kbps": ValueKind.FLOAT64,
        "log_std_kbps": ValueKind.FLOAT64,
        "sessions": ValueKind.INT64,
        "last_ts_ms": ValueKind.INT64,
    },
    about="Distribution of log throughput (natural log of kbit/s) seen through one CDN from one network.",
)

_QOE: Final = {
    "weight": ValueKind.FLOAT64,
    "start_failures": ValueKind.FLOAT64,
    "slow_starts": ValueKind.FLOAT64,
    "stalls": ValueKind.FLOAT64,
    "failures": ValueKind.FLOAT64,
    "low_bitrate": ValueKind.FLOAT64,
    "last_ts_ms": ValueKind.INT64,
}

NETWORK_QOE: Final = View(
    name="network_qoe",
    join_keys=("cdn", "asn"),
    features=_QOE,
    about="How playback goes through one CDN from one network, lately: shares of 0 to 1 of what went wrong.",
)

TITLE_QOE: Final = View(
    name="title_qoe",
    join_keys=("title_id",),
    features=_QOE,
    about="How playback of one title goes, lately: shares of 0 to 1 of what went wrong.",
)

VIEWS: Final = (
    PROFILE_HISTORY, PROFILE_STATS, TITLE_METADATA, TITLE_STATS, RENDITION_SEGMENTS, NETWORK_THROUGHPUT, NETWORK_QOE,
    TITLE_QOE,
)  # fmt: skip
"""All views."""
