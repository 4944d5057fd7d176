"""What a dead process had in hand, read from its journal."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from pipeline.distributed import journal as module
from pipeline.distributed.journal import InHand, Journal, read_journal


def task(number: int) -> bytes:
    return number.to_bytes(16, "big")


def write_and_die(path: Path) -> None:
    journal = Journal(path)
    for number in range(5):
        journal.begin(task(number))
    journal.part("ab" * 16)
    journal.done(task(1))
    journal.done(task(3))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_what_it_had_in_hand(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(tmp_path / "journal",))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    expected = InHand(in_flight=frozenset(map(task, (0, 2, 4))), parts=("ab" * 16,))
    assert read_journal(tmp_path / "journal") == expected


def test_a_record_cut_off_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin(task(1))
    journal.begin(task(2))
    written = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(written[:-3])
    assert read_journal(tmp_path / "journal").in_flight == {task(1)}


def test_a_long_journal_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    journal = Journal(tmp_path / "journal")
    for number in range(1000):
        journal.begin(task(number))
        if number >= 3:
            journal.done(task(number - 3))
    assert (tmp_path / "journal").stat().st_size <= 1100
    assert read_journal(tmp_path / "journal").in_flight == {task(997), task(998), task(999)}


def test_no_journal_is_an_error_and_a_journal_can_be_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_journal(tmp_path / "journal")
    Journal(tmp_path / "journal").remove()
    assert not (tmp_path / "journal").exists()
