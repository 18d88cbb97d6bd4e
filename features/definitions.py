"""Feast's objects: entities, sources, views and one feature service per model, made from the table in views.py.

Importing this module imports Feast, which takes seconds; the service's hot path does not.
"""

from pathlib import Path
from typing import Any, Final

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Bool, FeastType, Float32, Float64, Int32, Int64, String

from features.layout import ValueKind, View
from features.records import READ_FEATURES
from features.settings import Settings
from features.views import NETWORK_QOE, NETWORK_THROUGHPUT, RENDITION_SEGMENTS, TITLE_QOE, VIEWS

RECOMMEND: Final = "recommend_v1"
"""Service of the recommendation model: what `OnlineFeatures.read` reads."""

BITRATE: Final = "bitrate_v1"
"""Service of the bitrate planner."""

QOE: Final = "qoe_v1"
"""How playback goes, by network and by title. Their features have the same names: ask for full feature names."""

_TYPES: Final[dict[ValueKind, FeastType]] = {
    ValueKind.STRING: String,
    ValueKind.INT64: Int64,
    ValueKind.FLOAT64: Float64,
    ValueKind.FLOAT32: Float32,
    ValueKind.BOOL: Bool,
    ValueKind.STRINGS: Array(String),
    ValueKind.INT32S: Array(Int32),
    ValueKind.INT64S: Array(Int64),
    ValueKind.FLOAT32S: Array(Float32),
    ValueKind.BOOLS: Array(Bool),
}

_ENTITIES: Final = {
    key: Entity(name=name, join_keys=[key], value_type=ValueType.STRING, description=about)
    for key, name, about in (
        ("profile_id", "profile", "One viewer's profile."),
        ("title_id", "title", "One entry of the catalogue."),
        ("rung", "rung", "One rung of a bitrate ladder; with a title, one rendition of it."),
        ("cdn", "cdn", "A content delivery network."),
        ("asn", "asn", "A viewer's network; with a cdn, the network as seen through it."),
    )
}
"""Feast entities by join key. Feast has one key an entity: a rendition is title and rung, a network is cdn and asn."""


def definitions(settings: Settings) -> list[Any]:
    """All objects that Feast is told of: entities, sources, views, services.

    Args:
        settings: whose home folder holds the offline files.
    """
    views = {view.name: _view(view, settings.home / "feast") for view in VIEWS}
    services = [
        FeatureService(
            name=RECOMMEND,
            features=[views[name][features] for name, features in READ_FEATURES.items()],
            description="What the recommendation model knows of a profile.",
        ),
        FeatureService(
            name=BITRATE,
            features=[views[RENDITION_SEGMENTS.name], views[NETWORK_THROUGHPUT.name]],
            description="What the bitrate planner knows of a rendition and a network.",
        ),
        FeatureService(
            name=QOE,
            features=[views[NETWORK_QOE.name], views[TITLE_QOE.name]],
            description="How playback goes through a network and of a title; to be read with full feature names.",
        ),
    ]
    return [*_ENTITIES.values(), *views.values(), *services]


def _view(view: View, folder: Path) -> FeatureView:
    file = FileSource(
        name=f"{view.name}_file",
        path=str(folder / f"{view.name}.parquet"),
        timestamp_field="event_timestamp",
    )
    return FeatureView(
        name=view.name,
        entities=[_ENTITIES[key] for key in view.join_keys],
        schema=[
            *(Field(name=key, dtype=String) for key in view.join_keys),
            *(Field(name=feature, dtype=_TYPES[kind]) for feature, kind in view.features.items()),
        ],
        source=PushSource(name=f"{view.name}_push", batch_source=file),
        description=view.about,
        online=True,
    )
