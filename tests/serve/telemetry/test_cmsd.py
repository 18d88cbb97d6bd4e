"""CMSD-Dynamic as players read it."""

import pytest

from serve.telemetry.cmsd import dynamic


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({}, '"playhead"'),
        ({"etp_kbps": 5249.9, "mb_kbps": 2850, "rtt_ms": 23.6}, '"playhead";etp=5200;mb=2850;rtt=24'),
        ({"etp_kbps": 3.0}, '"playhead";etp=100'),
        ({"mb_kbps": 1850.25}, '"playhead";mb=1851'),
    ],
)
def test_it_is_a_structured_field_with_one_entry(told: dict[str, float], text: str) -> None:
    assert dynamic(**told) == text
