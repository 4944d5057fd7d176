"""More workers than the machine has room for are refused before anything is written."""

from pathlib import Path

from tests.test_end_to_end import Darkroom, write_manifest


def test_no_room_for_the_workers(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", [{"prompt": "a"}])
    words = ("render", "--manifest", "m.parquet", "-o", "out", "--set", "workers.gpus=0", "--set", "workers.count=9999")
    said = Darkroom(tmp_path).run(*words, code=2)
    assert "this machine has no room for the workers" in said
    assert "9999 × 1 CPU(s)" in said
    assert "of them here" in said
    assert "Traceback" not in said
    assert not [path for path in tmp_path.glob("out/**/*") if path.is_file()]
