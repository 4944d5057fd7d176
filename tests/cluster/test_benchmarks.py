"""The benchmarks that start a Ray, at their smallest: figures are printed, and all contestants render one picture."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_ray_data_done_well_renders_the_same_pictures(tmp_path: Path) -> None:
    (tmp_path / "ray-token").write_text("a" * 64)
    environment = {
        **os.environ,
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "ray-token"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [
        *(sys.executable, "-m", "benchmarks.ray_data", "--work", "W3", "--rivals", "B4", "--pairs", "1"),
        *("--workers", "1", "--tasks", "12", "--batch", "3", "--steps", "2", "4"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    surroundings, _, line = done.stdout.splitlines()
    assert re.search(r"ray \d.*seed 0; 12 images, 1 pairs, 1 workers, batch 3", surroundings)
    work, rival, *figures = line.split()
    *rates, difference = map(float, figures)
    assert (work, rival, len(rates)) == ("W3", "B4", 6)
    assert min(rates) > 0
    assert difference < 0.5


def test_sleeping_workers_lose_little_time() -> None:
    words = ["-m", "benchmarks.dispatch", "--workers", "2", "--shards", "4", "--shard-s", "0.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    names, line = (re.split(r" {2,}", text.strip()) for text in done.stdout.splitlines()[1:])
    found = dict(zip(names, line, strict=True))
    assert (found["workers"], found["shards"], found["ideal s"]) == ("2", "8", "2.0")
    assert float(found["took s"]) >= 2.0
    assert int(found["fewest"]) >= 1
