import os

from deployments.leftovers import clean
from deployments.processes import ProcessRecord
from deployments.state import RunFolder, StackState


class Silent:
    def tell(self, notice):
        pass


def test_a_ray_that_died_before_its_logs_is_cleared_away(tmp_path):
    folder, temporary = RunFolder(tmp_path / "home"), tmp_path / "playhead-x"
    (temporary / "ray" / "session_2026_1").mkdir(parents=True)
    (temporary / "ray" / "session_2026_2" / "logs").mkdir(parents=True)
    (temporary / "ray" / "session_2026_2" / "logs" / "gcs.out").write_text("last words")
    state = StackState(
        supervisor=ProcessRecord.of("supervisor", os.getpid()),
        url="http://127.0.0.1:1",
        placement="local",
        data="d",
        redis_url="",
        temporary=str(temporary),
    )
    state.write(folder)
    assert clean(folder, Silent()) == 0
    assert not temporary.exists()
    assert StackState.read(folder) is None
    assert clean(folder, Silent()) == 0
