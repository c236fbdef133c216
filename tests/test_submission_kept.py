"""What is handed in stays what it is: an edited byte is found, another submission is refused, a killed one finished."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import in_child, kill_at
from test_submission import answers_of, files_below, model_folder, run_of, small, written

from benchmarks.submission.manifest import read_submission
from benchmarks.submission.write import require_free, write_submission
from corpora import storage
from corpora.errors import Damaged, InputRefused


def test_any_edited_byte_is_found(tmp_path: Path) -> None:
    out = written(tmp_path, small(2026))
    manifest = read_submission(out)
    for name in manifest.files:
        path, before = out / name, (out / name).read_bytes()
        path.write_bytes(bytes([before[0] ^ 1]) + before[1:] if before else b"x")
        with pytest.raises(Damaged, match=re.escape(name)):
            read_submission(out)
        path.write_bytes(before)
    data = (out / "manifest.json").read_bytes()
    (out / "manifest.json").write_bytes(data.replace(b'"epochs": 10', b'"epochs": 9', 1))
    with pytest.raises(Damaged, match="its content has digest"):
        read_submission(out)
    (out / "manifest.json").write_bytes(data)
    read_submission(out)


def test_missing_and_added_files_are_told_together(tmp_path: Path) -> None:
    out = written(tmp_path, small(2024))
    (out / "checkpoints" / "main" / "config.json").unlink()
    (out / "checkpoints" / "main" / "optimizer.bin").write_bytes(b"x")
    with pytest.raises(Damaged) as damage:
        read_submission(out)
    missing, added = str(damage.value).splitlines()
    assert "config.json: missing" in missing and "optimizer.bin: the manifest does not list it" in added


def test_only_a_finished_submission_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="nothing finished; expected a submission"):
        read_submission(tmp_path)
    with pytest.raises(InputRefused, match="a run; expected a submission"):
        read_submission(model_folder(tmp_path / "run"))


def test_the_same_submission_is_left_and_another_one_refused(tmp_path: Path) -> None:
    year = small(2025)
    out = written(tmp_path, year)
    before = {name: (out / name).stat().st_mtime_ns for name in files_below(out)}
    assert written(tmp_path, year) == out
    assert {name: (out / name).stat().st_mtime_ns for name in files_below(out)} == before
    with pytest.raises(InputRefused, match="run.epochs is 10 there and 9 here"):
        written(tmp_path, year, epochs=9)
    read_submission(out)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "thesis.txt").write_text("x")
    with pytest.raises(InputRefused, match=r"holds sub/thesis.txt, which is no part of a submission \(1 such files\)"):
        written(tmp_path, small(2024))
    assert files_below(tmp_path / "out") == {"sub/thesis.txt"}


def test_where_no_submission_fits_is_known_without_its_predictions(tmp_path: Path) -> None:
    year = small(2024)
    run = run_of(tmp_path / "run", year)
    require_free(tmp_path / "new", run)
    require_free(written(tmp_path, year), run)
    with pytest.raises(InputRefused, match="holds another submission: epochs is 10 there and 9 here; expected this"):
        require_free(tmp_path / "out", replace(run, epochs=9))
    with pytest.raises(InputRefused, match="holds a run; expected an empty folder"):
        require_free(run.model, run)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputRefused, match="a file stands where a folder is needed"):
        require_free(tmp_path / "file", run)
    (tmp_path / "out" / "manifest.json").unlink()
    require_free(tmp_path / "out", run)
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(InputRefused, match="holds thesis.txt, which is no part of a submission"):
        require_free(tmp_path / "out", run)


def test_a_damaged_model_is_not_handed_in(tmp_path: Path) -> None:
    year = small(2024)
    run = run_of(tmp_path / "run", year)
    (run.model / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(Damaged, match="model.safetensors"):
        write_submission(run, answers_of(year, []), tmp_path / "out", year=year)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_writer_that_is_killed_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    year = small(2024)
    run, answers = run_of(tmp_path / "run", year), answers_of(year, [])
    unfinished = 0
    for number in range(1, 30, 4):
        out = tmp_path / f"out{number}"
        write = partial(write_submission, run, answers, out, year=year)
        monkeypatch.setattr(storage, "fault", kill_at(number))
        status = in_child(write)
        monkeypatch.setattr(storage, "fault", lambda operation, path: None)
        if not (out / "manifest.json").exists():
            assert status == -signal.SIGKILL
            with pytest.raises(InputRefused, match="nothing finished"):
                read_submission(out)
            unfinished += 1
        assert write().files == read_submission(out).files
    assert unfinished > 4
