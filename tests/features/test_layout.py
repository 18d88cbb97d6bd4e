"""Our bytes are Feast's bytes: an upgrade of Feast that changes its layout fails here."""

import subprocess
import sys

import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as FeastValue
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from features.errors import CorruptRecord
from features.layout import LISTS, PROJECT, Value, ValueKind, decode, encode, entity_key
from features.views import VIEWS

FEAST_TYPES = {
    ValueKind.STRING: ValueType.STRING,
    ValueKind.INT64: ValueType.INT64,
    ValueKind.FLOAT64: ValueType.DOUBLE,
    ValueKind.FLOAT32: ValueType.FLOAT,
    ValueKind.BOOL: ValueType.BOOL,
    ValueKind.STRINGS: ValueType.STRING_LIST,
    ValueKind.INT32S: ValueType.INT32_LIST,
    ValueKind.INT64S: ValueType.INT64_LIST,
    ValueKind.FLOAT32S: ValueType.FLOAT_LIST,
    ValueKind.BOOLS: ValueType.BOOL_LIST,
}
EXAMPLES = {
    ValueKind.STRING: "é",
    ValueKind.INT64: -5,
    ValueKind.FLOAT64: 0.1,
    ValueKind.FLOAT32: 0.5,
    ValueKind.BOOL: True,
    ValueKind.STRINGS: ["a", "b"],
    ValueKind.INT32S: [1, -2],
    ValueKind.INT64S: [2**40, 0],
    ValueKind.FLOAT32S: [0.25, 1.0],
    ValueKind.BOOLS: [True, False],
}


@given(st.dictionaries(st.sampled_from(["title_id", "rung", "cdn", "asn", "profile_id"]), st.text(), min_size=1))
def test_keys_are_feasts(entities):
    key = EntityKey(join_keys=list(entities), entity_values=[FeastValue(string_val=v) for v in entities.values()])
    assert entity_key(entities) == _redis_key(PROJECT, key, entity_key_serialization_version=3)
    assert entity_key(entities) == serialize_entity_key(key, 3) + PROJECT.encode()


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_fields_are_feasts(view):
    assert view.fields() == [_mmh3(f"{view.name}:{feature}") for feature in view.features]
    assert len(set(view.fields())) == len(view.features)
    with pytest.raises(KeyError):
        view.field("no_such_feature")


@pytest.mark.parametrize("kind", ValueKind)
def test_values_are_feasts(kind):
    (expected,) = python_values_to_proto_values([EXAMPLES[kind]], FEAST_TYPES[kind])
    assert encode(kind, EXAMPLES[kind]) == expected.SerializeToString()
    assert decode(kind, expected.SerializeToString()) == EXAMPLES[kind]


@pytest.mark.parametrize("kind", sorted(LISTS))
def test_an_empty_list_is_a_list(kind):
    assert decode(kind, encode(kind, [])) == []
    assert encode(kind, []) != b""


@pytest.mark.parametrize("data", [b"", b"\xff\xff", encode(ValueKind.STRING, "text")])
def test_other_bytes_are_refused(data):
    with pytest.raises(CorruptRecord):
        decode(ValueKind.INT64, data)


def test_the_message_is_feasts_own():
    assert Value is FeastValue


def test_the_hot_path_does_not_import_feast():
    code = "import sys, features.online, features.stream, features.popularity; print('feast' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
