"""The steering file: what it may say, and what is said of one that cannot be used."""

import json
from pathlib import Path

import pytest

from serve.errors import InvalidInput
from serve.steering.pathways import Damping, read_pathways

EXAMPLE = """
ttl_s: 60
pathways:
  - {id: alpha, weight: 3, capacity: 0.9}
  - {id: beta, weight: 1, only: {region: [eu], asn: [64500]}}
  - {id: gamma, weight: 0, clone: {base_id: alpha, host: gamma.example, params: {via: gamma}}}
damping: {hold_s: 60}
"""


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(EXAMPLE)
    read = read_pathways(tmp_path / "a.yaml")
    (tmp_path / "b.json").write_text(read.model_dump_json())
    assert read_pathways(tmp_path / "b.json") == read
    assert read.damping == Damping(hold_s=60)
    assert read.pathways[1].serves({"region": "eu", "asn": "64500"})
    assert read.pathways[1].serves({"asn": "64500"})
    assert not read.pathways[1].serves({"region": "eu", "asn": "64501"})


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", "steering"),
        ("pathways: []", "steering.pathways"),
        ("{pathways: [{id: a b}]}", "steering.pathways.0.id"),
        ("{pathways: [{id: a}], ttl: 9}", "steering.ttl"),
        ("{pathways: [{id: a}], ttl_s: 301}", "steering.ttl_s"),
        ("{pathways: [{id: a}, {id: a}]}", "steering"),
        ("{pathways: [{id: a, weight: 0}]}", "steering"),
        ("{pathways: [{id: a, capacity: 0.4}, {id: b}]}", "steering"),
        ("{pathways: [{id: a}, {id: b, clone: {base_id: c, host: h}}]}", "steering"),
        ("{pathways: [{id: a}], damping: {ramp: [0.5, 0.2, 1]}}", "steering.damping"),
        ("{pathways: [{id: a}], damping: {ramp: [0.5]}}", "steering.damping"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_was_wrong(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "steering.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"docs/steering\.md") as refused:
        read_pathways(path)
    assert refused.value.field == field
    assert str(path) in str(refused.value)


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_pathways(tmp_path / "none.yaml")


def test_the_example_of_the_documentation_can_be_used(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "steering.md"
    example = page.read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "steering.yaml").write_text(example)
    assert len(read_pathways(tmp_path / "steering.yaml").pathways) == 3


def test_a_capacity_below_the_weight_s_share_names_that_share(tmp_path: Path) -> None:
    path = tmp_path / "steering.json"
    path.write_text(json.dumps({"pathways": [{"id": "a", "weight": 3, "capacity": 0.5}, {"id": "b"}]}))
    with pytest.raises(InvalidInput, match=r"0\.75"):
        read_pathways(path)
