"""More workers than the machine has room for are refused before anything is written."""

from pathlib import Path

import pytest

from tests.test_end_to_end import Darkroom, write_manifest


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("workers.count=9999", "9999 × 1 CPU(s)", "of them here"),
        ("workers.cpus=9999", "1 × 9999 CPU(s)", "less than 9999 CPU(s) each: there are not as many"),
    ],
)
def test_no_room_for_the_workers(tmp_path: Path, setting: str, value: str, allowed: str) -> None:
    write_manifest(tmp_path / "m.parquet", [{"prompt": "a"}])
    words = ("render", "--manifest", "m.parquet", "-o", "out", "--set", "workers.gpus=0", "--set", setting)
    said = Darkroom(tmp_path).run(*words, code=2)
    assert "this machine has no room for the workers" in said
    assert value in said
    assert allowed in said
    assert "Traceback" not in said
    assert not [path for path in tmp_path.glob("out/**/*") if path.is_file()]
