import pytest

from features.errors import FeaturesError
from features.settings import Settings


def test_values_come_from_the_environment(tmp_path):
    env = {
        "PLAYHEAD_HOME": str(tmp_path),
        "REDIS_URL": "redis://127.0.0.1:1/2",
        "PLAYHEAD_STORE_DEADLINE_MS": "12.5",
    }
    settings = Settings.from_env(env)
    assert (settings.home, settings.redis_url, settings.store_deadline_ms) == (tmp_path, env["REDIS_URL"], 12.5)
    assert Settings.from_env({}).store_deadline_ms == 50.0
    assert Settings.from_env({"PLAYHEAD_MEDIA": str(tmp_path)}).media == tmp_path
    assert Settings.from_env({"PLAYHEAD_MEDIA": ""}).media is Settings.from_env({}).media is None


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused_by_name(text):
    with pytest.raises(FeaturesError, match="PLAYHEAD_STORE_DEADLINE_MS: got"):
        Settings.from_env({"PLAYHEAD_STORE_DEADLINE_MS": text})
