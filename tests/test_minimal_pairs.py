"""Pairs are read strictly, drawn by address, and judged so that no canary scores more than it earns."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from benchmarks.choices import ChoiceResults, ChoiceTask, score_choices
from benchmarks.json_lines import MAX_LINE_BYTES
from benchmarks.minimal_pairs import blimp_tasks, tasks_from_rows
from benchmarks.pair_files import pairs_in, read_pairs
from benchmarks.protocol import PROTOCOLS
from benchmarks.scorer import Candidate
from benchmarks.scoring import Scorer
from corpora.errors import Diverged, InputRefused

VOCAB = 300
LINE = {"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep.", "field": "syntax", "pairID": "0"}
ONE_LINE_OF_REFUSAL = re.compile(r"[^\n]+(:\d+)?: [^\n]+; expected [^\n]+; [^\n]+")


def _tasks(number: int = 50) -> list[ChoiceTask]:
    """Two tasks whose good sentence has a smaller second letter, at equal length."""
    draw = random.Random(3)
    rows = []
    for _ in range(number):
        low, high = sorted(draw.sample("abcdefghijklmnop", 2))
        rows.append({"sentence_good": f"x{low} {draw.random():.6f}", "sentence_bad": f"x{high} {draw.random():.6f}"})
    return tasks_from_rows({"first": rows, "second": rows[: number // 2]})


def _candidate(name: str, letter_sign: float = 0.0, filling: float = 0.0) -> Candidate:
    """Scores the second letter by its place in the alphabet times `letter_sign`, every other token by `filling`."""

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        log_probs_BTV = torch.full((*input_ids_BT.shape, VOCAB), filling)
        log_probs_BTV[:, 1] += letter_sign * (torch.arange(VOCAB) - 110.0) - 30 * abs(letter_sign)
        return log_probs_BTV[wanted_BT]

    return Candidate(name, "causal", log_probs)


def _score(candidate: Candidate, tasks: list[ChoiceTask], **keywords: bool) -> ChoiceResults:
    return score_choices(_scorer(candidate), tasks, **keywords)


def _scorer(candidate: Candidate, *, max_tokens: int = 2048, lower: bool = False) -> Scorer:
    return Scorer(candidate.name, (candidate,), tiny.byte_tokenizer(lower=lower), PROTOCOLS["cuvee"], max_tokens)


def test_verdicts_ties_and_macro_average() -> None:
    good = _score(_candidate("good", -0.1), _tasks())
    assert good.accuracy == 1.0 and good.ties == 0 and good.valid
    assert [len(task.wins) for task in good.tasks] == [50, 25]
    tasks = tasks_from_rows(
        {
            "won": [{"sentence_good": "xa", "sentence_bad": "xb"}],
            "half": [{"sentence_good": "xa", "sentence_bad": "xb"}, {"sentence_good": "xb", "sentence_bad": "xa"}],
        }
    )
    assert _score(_candidate("good", -0.1), tasks).accuracy == 0.75  # mean over tasks, not over pairs


def test_canary_constant_wins_nothing() -> None:
    results = _score(_candidate("constant"), _tasks())
    assert results.accuracy == 0.0 and results.ties == 75


def test_canary_nan_is_invalid_and_wins_nothing() -> None:
    nan = _candidate("nan", filling=float("nan"))
    with pytest.raises(Diverged, match=r"nan on first:1: scores nan .*75 items.*; expected"):
        _score(nan, _tasks())
    results = _score(nan, _tasks(), report_invalid=True)
    assert results.accuracy == 0.0 and results.non_finite == 75 and results.ties == 0 and not results.valid


def test_minus_infinity_on_the_bad_sentence_is_no_win() -> None:
    tasks = tasks_from_rows({"one": [{"sentence_good": "xa", "sentence_bad": "xb"}]})

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        log_probs_NV = torch.zeros(int(wanted_BT.sum()), VOCAB)
        log_probs_NV[:, ord("b") + 4] = -torch.inf
        return log_probs_NV

    results = _score(Candidate("holes", "causal", log_probs), tasks, report_invalid=True)
    assert results.accuracy == 0.0 and results.non_finite == 1


def test_canary_swapped_is_one_minus_accuracy_and_ties() -> None:
    rows = [{"sentence_good": f"x{a}", "sentence_bad": f"x{b}z"} for a in "abcd" for b in "abcd"]
    swapped = [{"sentence_good": row["sentence_bad"], "sentence_bad": row["sentence_good"]} for row in rows]
    forth, back = (_score(_candidate("c", -0.1), tasks_from_rows({"t": pairs})) for pairs in (rows, swapped))
    assert forth.ties == back.ties == 4
    assert back.accuracy == pytest.approx(1 - forth.accuracy - forth.ties / len(rows))


def test_canary_random_is_about_half() -> None:
    generator = torch.Generator().manual_seed(0)

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        return torch.randn(int(wanted_BT.sum()), VOCAB, generator=generator).log_softmax(-1)

    assert 0.42 < _score(Candidate("random", "causal", log_probs), _tasks(400)).accuracy < 0.58


def test_a_pair_that_tokenises_alike_is_a_tie() -> None:
    tasks = tasks_from_rows({"t": [{"sentence_good": "a cat", "sentence_bad": "A CAT"}]})
    results = score_choices(_scorer(_candidate("c", 0.1), lower=True), tasks)
    assert results.ties == 1 and results.accuracy == 0.0


def test_an_over_long_sentence_is_named() -> None:
    tasks = tasks_from_rows({"t": [LINE, {"sentence_good": "x" * 99, "sentence_bad": "y"}]})
    with pytest.raises(InputRefused, match="t:2: 100 tokens; expected at most 50"):
        score_choices(_scorer(_candidate("c"), max_tokens=50), tasks)


def _write(path: Path, *lines: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_files_are_read_with_their_names(tmp_path: Path) -> None:
    path = _write(tmp_path / "stem.jsonl", LINE, LINE | {"UID": "named", "linguistics_term": "agreement"})
    first, second = read_pairs(path)
    assert (first.good, first.bad) == ("The cat sleeps.", "The cat sleep.")
    assert (first.uid, first.field, first.term, first.number) == ("stem", "syntax", "", 1)
    assert (second.uid, second.term, second.place) == ("named", "agreement", f"{path}:2")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b"[1]", "found a list"),
        (b'{"sentence_good": "a"}', "key sentence_bad is missing"),
        (b'{"sentence_good": "a", "sentence_bad": 3}', "sentence_bad is a number"),
        (b'{"sentence_good": "a", "sentence_bad": "  "}', "sentence_bad is blank"),
        (b'{"sentence_good": "a", "sentence_bad": "a"}', "are equal"),
        (b'{"sentence_good": "a", "sentence_good": "c", "sentence_bad": "b"}', "'sentence_good' occurs twice"),
        (b'{"sentence_good": "a", "sentence_bad": "b", "x": NaN}', "NaN"),
        (b'{"sentence_good": "a\\u0000", "sentence_bad": "b"}', "NUL"),
        (b'{"sentence_good": "a\\ud800", "sentence_bad": "b"}', "lone surrogate"),
        (b'{"sentence_good": "a\xff", "sentence_bad": "b"}', "byte 21 is not UTF-8"),
        (b'{"sentence_good": "a", "sentence_bad": "b", "UID": 7}', "UID is a number"),
        (b'{"sentence_good": "a", "sentence_bad": "b", "x": ' + b"[" * 9 + b"]" * 9 + b"}", "nested too deeply"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"sentence_good": "a", "sentence_bad": "' + b"b" * MAX_LINE_BYTES + b'"}', "more than 65,536 bytes"),
        (b"1" * 6000, "not JSON"),
    ],
)
def test_what_is_not_a_pair_is_refused_by_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputRefused) as refusal:
        read_pairs(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}:2: ") and reason in message and ONE_LINE_OF_REFUSAL.fullmatch(message)


# 100,000 lines that were made wrong: bytes, structure, characters, lengths

ROW: dict[str, Any] = LINE | {"UID": "u", "linguistics_term": "t", "nested": {"a": [1, 2.5, None]}}
SENTENCES = ("sentence_good", "sentence_bad")
LINES_OF_A_KIND = 25_000
SNIPPETS = [b"NaN", b"-Infinity", b"null", b"\\ud800", b"\\u0000", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"']
SNIPPETS += [b"{", b"}", b"[" * 40, b"\\", b"\n", b"\r", b"\0", b"9" * 5000, b"1e999", b",", b":", b" ", b"x" * 70_000]
SNIPPETS += [b'"sentence_good":"The cat sleep.",', b'"UID":[],', b"\xf0\x9f\x98\x80", b"\xe2\x80\xa8", b"[" * 30_000]
VALUES = [None, True, 0, -1.5e300, "", " \t", "\u3000", "a", "The cat sleep.", [], {}, ["a"], {"a": "b"}, float("nan")]
# NUL, a control character, spaces of several widths, a combining accent, joiners, directions, ends of line, private
# use, no characters at all, halves of a pair, and what has another length in another case or form
POINTS = "\0\x07\x1b\x7f\x85\xa0\u2003\u3000\u0301\u200b\u200d\u202e\u2066\u2028\u2029\ue000\ufeff\ufffd\ufffe"
POINTS += "\ud800\udc00\udfff\u00df\u0130\u0149\ufb03\u1e9e\uac01\U0001f600\U0001f1e9\U000e0041\U0010ffff"


def _bytes_changed(draw: random.Random) -> bytes:
    data = bytearray(json.dumps(ROW).encode())
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.randint(0, 12))
        kind = draw.randrange(5)
        if kind == 0:
            del data[start:end]
        elif kind == 1:
            data[start:start] = draw.choice(SNIPPETS)
        elif kind == 2:
            data[start:start] = data[start:end]
        elif kind == 3 and start < len(data):
            data[start] = draw.randrange(256)
        else:
            data[start:end] = draw.choice(SNIPPETS[:12])
    return bytes(data)


def _structure_changed(draw: random.Random) -> bytes:
    row = dict(ROW)
    for _ in range(draw.randint(1, 3)):
        key, kind = draw.choice(list(ROW)), draw.randrange(5)
        if kind == 0:
            row.pop(key, None)
        elif kind == 1:
            row[key] = draw.choice(VALUES)
        elif kind == 2:
            row[draw.choice([*ROW, "", "Sentence_good"])] = row.pop(key, "another")
        elif kind == 3:
            row[draw.choice(SENTENCES)] = row.get(draw.choice(SENTENCES))
        else:
            row["deep"] = json.loads("[" * (depth := draw.randrange(12)) + "]" * depth or "0")
    text = json.dumps(row, separators=draw.choice(((",", ":"), (", ", ": "), (" ,\t", " : "))))
    wrapped = (f"[{text}]", json.dumps(text), f"{text}{text}", f"{text[:-1]},{text[1:]}", json.dumps(row, indent=1))
    return (draw.choice(wrapped) if draw.random() < 0.2 else text).encode()


def _characters_changed(draw: random.Random) -> bytes:
    row = dict(ROW)
    for key in draw.sample(SENTENCES, draw.randint(1, 2)):
        text, start = row[key], draw.randrange(len(row[key]) + 1)
        found = "".join(draw.choices(POINTS, k=draw.randint(0, 2)))
        changed = text[:start] + found + text[start + draw.randrange(3) :]
        row[key] = draw.choice((str.upper, str.title, str.casefold, str.strip))(changed)
        row[key] = unicodedata.normalize(draw.choice(("NFC", "NFD", "NFKC", "NFKD")), row[key])
    return json.dumps(row, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _lengths_changed(draw: random.Random) -> bytes:
    row = dict(ROW)
    for key in draw.sample([*SENTENCES, "field"], draw.randint(1, 2)):
        length = int(80_000 ** draw.random()) - 1  # as many below 300 as above
        piece = draw.choice((" ", "x", "The cat sleeps. ", "\u3000", "\U0001f600"))
        row[key] = (piece * (length // len(piece) + 1))[:length]
    return json.dumps(row, ensure_ascii=False).encode()


MUTATIONS: dict[str, Callable[[random.Random], bytes]] = {
    "bytes": _bytes_changed,
    "structure": _structure_changed,
    "characters": _characters_changed,
    "lengths": _lengths_changed,
}


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_lines_are_refused_or_read(kind: str) -> None:
    draw, read = random.Random(11), 0
    for _ in range(LINES_OF_A_KIND):
        try:
            for pair in pairs_in(io.BytesIO(MUTATIONS[kind](draw)), Path("folder/mutated.jsonl")):
                assert pair.good.strip() and pair.bad.strip() and pair.good != pair.bad
                (pair.good + pair.bad + pair.uid).encode()
            read += 1
        except InputRefused as refusal:
            assert ONE_LINE_OF_REFUSAL.fullmatch(str(refusal)), str(refusal)
    assert 0.05 * LINES_OF_A_KIND < read < 0.95 * LINES_OF_A_KIND, read


LONGEST = 300  # tokens


@pytest.mark.parametrize("kind", MUTATIONS)
def test_what_is_read_of_mutated_lines_is_scored(kind: str, tmp_path: Path) -> None:
    """Over-long ones are refused by their line; of the others, every score is what it must be, alone and together."""
    scorer, draw = _scorer(Candidate("sums", "causal", _remainders), max_tokens=LONGEST, lower=True), random.Random(5)
    path, alone, lines, too_long = tmp_path / "mutated.jsonl", [], [], 0
    while len(lines) < 150:
        path.write_bytes(line := MUTATIONS[kind](draw))
        with contextlib.suppress(InputRefused):
            read_pairs(path, allow_equal=True)
            try:
                (result,) = score_choices(scorer, blimp_tasks(tmp_path, None, seed=1)).tasks
            except InputRefused as refusal:
                assert re.match(rf"{path}:\d+: \d{{3,}} tokens; expected at most {LONGEST} ", str(refusal))
                too_long += 1
            else:
                alone.append(result)
                lines.append(line + b"\n")
    path.write_bytes(b"".join(lines))
    (together,) = score_choices(scorer, blimp_tasks(tmp_path, None, seed=1)).tasks
    assert np.array_equal(together.scores, np.concatenate([result.scores for result in alone]))
    expected = [[_sum(scorer, option.text) for option in item.options] for item in together.task.items]
    assert np.array_equal(together.scores, expected)
    good, bad = together.scores.T
    assert np.array_equal(together.wins, good > bad) and together.ties == (good == bad).sum()
    assert (together.ties > 0, too_long > 0) == (kind != "bytes", kind in ("bytes", "lengths"))


def _remainders(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
    """Of every token at every output -((7 id + output) mod 13)."""
    outputs_T1 = torch.arange(input_ids_BT.shape[1])[:, None]
    log_probs_TV = -((7 * torch.arange(VOCAB) + outputs_T1) % 13).float()
    return log_probs_TV.expand(len(input_ids_BT), -1, -1)[wanted_BT]


def _sum(scorer: Scorer, text: str) -> float:
    (encoding,) = scorer.tokenizer.encode([text])
    return -sum((7 * token + output) % 13 for output, token in enumerate(encoding.ids))


def _blimp_folder(folder: Path) -> Path:
    folder.mkdir()
    for uid in ("b", "a"):
        lines = [LINE | {"sentence_good": f"{uid} {n}", "UID": uid, "linguistics_term": "t"} for n in range(40)]
        _write(folder / f"{uid}.jsonl", *lines)
    return folder


def test_the_draw_is_addressed(tmp_path: Path) -> None:
    root = _blimp_folder(tmp_path / "blimp")
    ten = blimp_tasks(root, 10, seed=1)
    assert [(task.uid, task.field, task.term, len(task.items)) for task in ten] == [
        ("a", "syntax", "t", 10),
        ("b", "syntax", "t", 10),
    ]
    assert ten == blimp_tasks(root, 10, seed=1) and ten != blimp_tasks(root, 10, seed=2)
    numbers = [pair.number for pair in ten[1].items]
    assert numbers == sorted(numbers) and numbers != [pair.number for pair in ten[0].items]
    assert set(ten[0].items) < set(blimp_tasks(root, 20, seed=1)[0].items)
    assert len(blimp_tasks(root, None, seed=1)[0].items) == len(blimp_tasks(root, 99, seed=1)[0].items) == 40
    (root / "a.jsonl").unlink()
    assert blimp_tasks(root, 10, seed=1) == ten[1:]


def test_equal_sentences_of_a_folder_are_ties(tmp_path: Path) -> None:
    """The published BLiMP has seven such pairs; it must be readable, and nobody wins them."""
    _write(tmp_path / "t.jsonl", {"sentence_good": "same", "sentence_bad": "same"}, LINE)
    results = _score(_candidate("c", 0.1), blimp_tasks(tmp_path, None, seed=1))
    assert results.ties == 2 and not results.tasks[0].wins[0]  # of LINE's pair, both second letters are h


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="is not a folder; expected"):
        blimp_tasks(tmp_path / "missing", 10, seed=1)
    with pytest.raises(InputRefused, match="holds no .jsonl file; expected"):
        blimp_tasks(tmp_path, 10, seed=1)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputRefused, match="empty.jsonl: empty; expected"):
        blimp_tasks(tmp_path, 10, seed=1)
    (tmp_path / "empty.jsonl").unlink()
    for name in ("one", "two"):
        _write(tmp_path / f"{name}.jsonl", LINE | {"UID": "same"})
    with pytest.raises(InputRefused, match="UID same is also in .*one.jsonl; expected"):
        blimp_tasks(tmp_path, 10, seed=1)


def test_rows_of_the_embedded_corpus_are_checked_alike() -> None:
    (task,) = tasks_from_rows({"agreement": [LINE | {"linguistics_term": "t"}]})
    assert (task.uid, task.field, task.term) == ("agreement", "syntax", "t")
    with pytest.raises(InputRefused, match="agreement:1: sentence_good and sentence_bad are equal"):
        tasks_from_rows({"agreement": [{"sentence_good": "a", "sentence_bad": "a"}]})
    with pytest.raises(InputRefused, match="agreement: no pair"):
        tasks_from_rows({"agreement": []})


def test_scores_stay_with_their_pairs() -> None:
    results = _score(_candidate("c", -0.1), _tasks())
    for task in results.tasks:
        letters = np.array([[ord(option.text[1]) for option in item.options] for item in task.task.items])
        differences = task.scores[:, 0] - task.scores[:, 1]
        np.testing.assert_allclose(differences, -0.1 * (letters[:, 0] - letters[:, 1]), atol=1e-4)
