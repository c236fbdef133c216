"""The whole path on the quick start's smaller twin: run, run again, killed and resumed, in two processes, refused.

Digests are of what must be reproducible: weights, metrics logs, caches, scores. Times lie in files of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpora.storage import file_digest
from distill.cli import app
from distill.project import Project

ROOT = Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.yaml")
REPRODUCIBLE = ("model.safetensors", "metrics.jsonl", "*.npy", "head.safetensors", "tokenizer.json")


def digests(run_dir: Path) -> dict[str, str]:
    """Digest of every reproducible file below a run folder, checkpoints aside."""
    return {
        str(path.relative_to(run_dir)): file_digest(path)
        for pattern in REPRODUCIBLE
        for path in sorted(run_dir.rglob(pattern))
        if "checkpoints" not in path.parts
    }


def command(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "distill", "run", SMOKE, f"run_dir={run_dir}", *overrides]


def cuvee(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and error lines of a command run in this process."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr.splitlines()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A finished run of the twin, and the seconds that the command took."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    started = time.monotonic()
    subprocess.run(command(run_dir), check=True, cwd=ROOT, capture_output=True, text=True)
    return run_dir, time.monotonic() - started


@pytest.fixture
def copy(finished: tuple[Path, float], tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_the_report_has_everybody_and_is_strict_json(finished: tuple[Path, float]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    report = json.loads((finished[0] / "report.json").read_text(), parse_constant=refuse)
    rows = {(row["name"], row["role"], row["view"]): row for row in report["rows"]}
    assert rows.keys() == {
        ("5-gram", "baseline", "causal"),
        ("llama", "teacher", "causal"),
        ("gptj", "teacher", "causal"),
        ("elc", "teacher", "masked"),
        ("llama+gptj (mixture, fitted)", "pool", "causal"),
        ("llama+gptj (product)", "pool", "causal"),
        ("baby_llama", "student", "causal"),
        ("baby_llama.no_teacher_equal_steps", "control", "causal"),
        ("elc_bert", "student", "masked"),
        ("elc_bert.no_teacher_equal_steps", "control", "masked"),
    }
    for (_, _, view), row in rows.items():
        assert row["test_cross_entropy"] > 0
        assert (row["bits_per_byte"] is None) == (view == "masked")
        assert 0 <= row["accuracy"] <= 1
    assert "baby_llama" in (finished[0] / "report.md").read_text()


def test_a_second_run_finds_everything_valid(finished: tuple[Path, float]) -> None:
    before = digests(finished[0])
    times = {path: path.stat().st_mtime_ns for path in finished[0].rglob("manifest.json")}
    second = subprocess.run(command(finished[0]), check=True, cwd=ROOT, capture_output=True, text=True)
    assert ": step " not in second.stdout and "cache:" not in second.stdout and "score:" not in second.stdout
    assert digests(finished[0]) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_killed_at_five_random_moments_it_ends_the_same(finished: tuple[Path, float], tmp_path: Path) -> None:
    uninterrupted, seconds = finished
    run_dir = tmp_path / "killed"
    draw = random.Random(20261121)
    kills = 0
    while kills < 5:
        process = subprocess.Popen(
            command(run_dir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.3, 0.9) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == 0:  # it was done before the kill: the remaining ones would meet nothing
            assert kills >= 1
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    subprocess.run(command(run_dir), check=True, cwd=ROOT, capture_output=True)
    assert digests(run_dir) == digests(uninterrupted)
    assert not list(run_dir.rglob("*.partial"))


def test_two_processes_draw_the_same_loss_curves(finished: tuple[Path, float], tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, *command(tmp_path / "two", "processes=2")[1:]],
        check=True,
        cwd=ROOT,
        capture_output=True,
        timeout=300,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    logs = {log.relative_to(finished[0]).parts[1].rsplit("-", 1)[0]: log for log in finished[0].rglob("metrics.jsonl")}
    others = {
        log.relative_to(tmp_path / "two").parts[1].rsplit("-", 1)[0]: log for log in tmp_path.rglob("metrics.jsonl")
    }
    assert logs.keys() == others.keys() and len(logs) == 7
    largest = 0.0
    for name, log in logs.items():
        for one, two in zip(log.read_text().splitlines(), others[name].read_text().splitlines(), strict=True):
            one, two = json.loads(one), json.loads(two)
            assert one.keys() == two.keys()
            if "facts" in one:  # the weights of the ensemble
                assert one["facts"]["ensemble_weights"].keys() == two["facts"]["ensemble_weights"].keys()
                continue
            largest = max(largest, *(abs(one[key] - two[key]) for key in one))
    print(f"two processes against one: largest difference of any logged number {largest:.1e}")
    assert largest < 1e-4


def test_two_processes_cache_the_same_bytes(copy: Path) -> None:
    """Each writes every second shard; nothing but their number may differ."""

    def cached(*launcher: str) -> dict[str, str]:
        shutil.rmtree(copy / "caches")
        subprocess.run(
            [*launcher, "-m", "distill", "cache", SMOKE, f"run_dir={copy}"],
            check=True,
            cwd=ROOT,
            capture_output=True,
            timeout=300,
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        return {name: digest for name, digest in digests(copy).items() if name.startswith("caches")}

    one = cached(sys.executable)
    two = cached(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert two == one and len(one) > 20


def test_fewer_processes_than_asked_for_are_refused(tmp_path: Path) -> None:
    code, lines = cuvee("run", SMOKE, f"run_dir={tmp_path / 'run'}", "processes=2")
    assert code == 2
    assert "1 take part, 2 were asked for" in lines[0]


def test_another_pool_needs_no_teacher_run(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(copy)
    other = [
        SMOKE,
        f"run_dir={copy}",
        "students.baby_llama.terms.1.members.gptj=3",
        "students.baby_llama.terms.1.weights=given",
        "students.baby_llama.terms.1.pool=product",
        "students.baby_llama.terms.1.temperature=2",
    ]

    def refuse(project: Project, name: str) -> None:
        raise AssertionError(f"teacher {name} is loaded")

    with monkeypatch.context() as patch:
        patch.setattr(Project, "load_teacher", refuse)
        assert cuvee("train", *other)[0] == 0
    code, _ = cuvee("run", *other)  # the new pool is scored on sentences, which nobody has cached
    assert code == 0
    after = digests(copy)
    assert {name: after[name] for name in before} == before, "what was there stays"
    new = {Path(name).parts[0] for name in after.keys() - before.keys()}
    assert new == {"students", "scores"}
    assert len(list((copy / "students").glob("baby_llama-*"))) == 2
    assert len(list((copy / "students").glob("baby_llama.no_teacher_equal_steps-*"))) == 1, "the control is shared"


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("cache.mask_seed=2", "view.mask_seed"),
        ("cache.window=32", "window"),
        ("cache.dtype=fp32", "dtype"),
        ("corpus.words=7000", "corpus.words"),
        ("teachers.llama.train.steps=13", "train.steps"),
    ],
)
def test_a_stale_artefact_is_refused_and_the_differing_field_named(copy: Path, override: str, field: str) -> None:
    before = digests(copy)
    # the masked teacher and student have masks of their own in their fingerprints; here the cache is what is stale
    overrides = (
        [override] if "mask_seed" not in override else [override, "teachers.elc.path=" + str(copy / "teachers/elc")]
    )
    if "mask_seed" in override:
        overrides += ["teachers.elc.model=null", "teachers.elc.train=null"]
    code, lines = cuvee("run", SMOKE, f"run_dir={copy}", *overrides)
    assert code == 3
    assert len(lines) == 1 and f"{field} is " in lines[0], lines
    assert digests(copy) == before


def test_a_member_with_another_tokenizer_is_refused(finished: tuple[Path, float], tmp_path: Path) -> None:
    code, lines = cuvee(
        "run",
        SMOKE,
        f"run_dir={tmp_path / 'run'}",
        "tokenizer.vocab_size=400",
        f"teachers.llama.path={finished[0] / 'teachers' / 'llama'}",
        "teachers.llama.model=null",
        "teachers.llama.train=null",
    )
    assert code == 3
    assert "teachers.llama" in lines[0] and "same tokenizer" in lines[0]


def test_a_hugging_face_folder_teaches(copy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(copy / "teachers/llama", tmp_path / "hub"))
    for name in ("manifest.json", "cuvee.json", "metrics.jsonl", "timings.jsonl"):
        (folder / name).unlink()
    overrides = [f"teachers.guest.path={folder}", "students.baby_llama.terms.1.members={guest: 1, gptj: 1}"]
    code, lines = cuvee("run", SMOKE, f"run_dir={copy}", *overrides)
    assert code == 3 and "teachers.guest.view must say" in lines[0], lines
    assert cuvee("run", SMOKE, f"run_dir={copy}", *overrides, "teachers.guest.view=causal")[0] == 0
    rows = {row["name"]: row for row in json.loads((copy / "report.json").read_text())["rows"]}
    assert rows["guest"]["test_cross_entropy"] == rows["llama"]["test_cross_entropy"]


def test_a_diverging_run_stops_with_its_cause(tmp_path: Path) -> None:
    code, lines = cuvee("train", SMOKE, f"run_dir={tmp_path / 'run'}", "teachers.llama.train.lr=1e30")
    assert code == 6
    assert "teachers/llama: step" in lines[0] and "lower train.lr" in lines[0]
    assert not (tmp_path / "run/teachers/llama/manifest.json").exists()


def test_a_full_disk_ends_with_five_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes: a teacher's weights do not fit

    full = subprocess.run(command(tmp_path / "run"), cwd=ROOT, preexec_fn=limit_files, capture_output=True, text=True)
    assert full.returncode == 5, full.stderr
    assert "make room" in full.stderr and len(full.stderr.splitlines()) == 1
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert not (tmp_path / "run/teachers/llama/manifest.json").exists()


def test_a_missing_corpus_and_a_misspelt_key_have_their_codes(tmp_path: Path) -> None:
    place = f"run_dir={tmp_path / 'run'}"
    assert cuvee("prepare", SMOKE, place, "corpus.source=folder", f"corpus.root={tmp_path / 'nowhere'}")[0] == 3
    code, lines = cuvee("run", SMOKE, place, "students.baby_llama.train.larning_rate=1")
    assert code == 2 and "larning_rate" in lines[0]


def test_the_pairs_of_the_embedded_corpus_are_files_in_blimp_format(finished: tuple[Path, float]) -> None:
    code, _ = cuvee("score", str(finished[0] / "teachers/llama"), "--blimp", str(finished[0] / "pairs-4"))
    assert code == 0
    assert len(list((finished[0] / "pairs-4").glob("*.jsonl"))) >= 12


def test_a_student_of_both_views_is_trained_and_scored_in_both(copy: Path) -> None:
    student = {
        "model": {"architecture": "llama", "num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 64},
        "train": {"views": {"causal": 1, "masked": 3}, "steps": 4, "batch_size": 8, "seq_len": 64},
        "terms": [
            {"loss": "cross_entropy"},
            {"loss": "forward_kl", "view": "causal", "members": {"gptj": 1}},
            {"loss": "forward_kl", "view": "masked", "members": {"elc": 1}},
        ],
        "controls": ["no_teacher_equal_steps"],
    }
    code, _ = cuvee("run", SMOKE, f"run_dir={copy}", f"students.hybrid={json.dumps(student)}")
    assert code == 0
    rows = {row["name"]: row for row in json.loads((copy / "report.json").read_text())["rows"]}
    assert {"hybrid (causal)", "hybrid (masked)", "hybrid.no_teacher_equal_steps (masked)"} <= rows.keys()
    assert rows["hybrid (masked)"]["test_cross_entropy"] != rows["hybrid (causal)"]["test_cross_entropy"]


def test_benchmarks_that_cannot_be_read_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    code, lines = cuvee("run", SMOKE, f"run_dir={tmp_path / 'run'}", "benchmarks.blimp={root: null}")
    assert code == 3 and "benchmarks.blimp.root" in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_broken_line_of_pairs_is_named(finished: tuple[Path, float], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "agreement.jsonl").write_text('{"sentence_good": "A b.", "sentence_bad": "B a."}\n{"sentence_good": 3}\n')
    code, lines = cuvee("score", str(finished[0] / "teachers/llama"), "--blimp", str(pairs))
    assert code == 3
    assert "agreement.jsonl:2" in lines[0]
