"""The poisoned version of the demo: nothing about its files is wrong, and its titles are."""

import shutil
from pathlib import Path

from deployments.demos.poison import swap_vocabulary
from serve.artifacts import read_artifact, read_table
from tests.contracts.small_model import small_artifact


def test_titles_change_places_and_nothing_else_does(tmp_path: Path) -> None:
    small = small_artifact()
    good = read_artifact(shutil.copytree(small.path, tmp_path / small.version))
    poisoned = swap_vocabulary(good, seed=0)
    assert poisoned.version != good.version
    assert poisoned.manifest.graphs == good.manifest.graphs
    before, after = (read_table(one, "vocabulary") for one in (good, poisoned))
    assert after.column("row").to_pylist() == before.column("row").to_pylist()
    titles = [table.column("title_id").to_pylist() for table in (before, after)]
    assert titles[0] != titles[1]
    assert sorted(titles[0]) == sorted(titles[1])
    assert swap_vocabulary(good, seed=0).version == poisoned.version, "the same seed, the same version"
