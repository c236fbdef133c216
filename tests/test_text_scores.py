"""A text costs what its tokens do: each counted once, by the best of its windows, whatever the windows are."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from torch import Tensor

from benchmarks import text_scores
from benchmarks.config import EvaluationConfig
from benchmarks.ngram import count_ngrams
from benchmarks.ngram_baseline import ngram_candidate, ngram_stream_result
from benchmarks.protocol import PROTOCOLS, Protocol
from benchmarks.request import Request
from benchmarks.score_store import ScoreStore
from benchmarks.scored_rows import ScoredRow, scored_rows
from benchmarks.scorer import Candidate, candidate_from_model
from benchmarks.scoring import Alone, Scorer, Team
from benchmarks.scoring_tokenizer import ScoringTokenizer, own_tokenizer
from benchmarks.stream import stream_result
from benchmarks.text_costs import TextCosts, cost_scores, stream_costs
from benchmarks.text_scores import text_costs, text_documents, windows
from corpora.errors import Diverged, InputRefused
from corpora.prepare import Corpus
from distill.evaluate import model_nats

VOCAB = 260  # special tokens and bytes
A, B = 4 + ord("a"), 4 + ord("b")
BITS = {(1, A): 1, (A, B): 2, (B, A): 3}  # -log2 p(second | first); 1 is the begin token


def bits_after() -> Tensor:
    """Log-probabilities after each token, [V, V]: as BITS says, and what is left to all others alike."""
    probs_VV = torch.full((VOCAB, VOCAB), 1 / VOCAB)
    for first, second in BITS:
        probs_VV[first] = (1 - 0.5 ** BITS[first, second]) / (VOCAB - 1)
        probs_VV[first, second] = 0.5 ** BITS[first, second]
    return probs_VV.log()


def causal(read: list[Tensor] | None = None) -> Candidate:
    """Says of a token what BITS does of it after the one before."""

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        if read is not None:
            read.append(input_ids_BT)
        return bits_after()[input_ids_BT[wanted_BT]]

    return Candidate("toy", "causal", log_probs)


def masked(shift: Literal[0, 1] = 0) -> Candidate:
    """The same of a hidden token."""

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        before_BT = input_ids_BT if shift else input_ids_BT.roll(1, dims=1)
        return bits_after()[before_BT[wanted_BT]]

    return Candidate("toy", "masked", log_probs, shift=shift)


def scorer(
    candidate: Candidate,
    tokenizer: ScoringTokenizer | None = None,
    protocol: Protocol = PROTOCOLS["cuvee"],
    team: Team | None = None,
    max_tokens: int = 4096,
) -> Scorer:
    return Scorer("toy", (candidate,), tokenizer or tiny.byte_tokenizer(), protocol, max_tokens, team=team or Alone())


def jsonl(folder: Path, *texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def values(costs: TextCosts) -> dict[str, float | None]:
    return {score.metric: score.value for score in cost_scores(costs, EvaluationConfig(resamples=50))}


# ---- by hand ------------------------------------------------------------------------------------------------------


def test_bits_per_byte_by_hand(tmp_path: Path) -> None:
    """aba costs 1 + 2 + 3 bits in 3 bytes, ab costs 1 + 2 in 2."""
    costs = text_costs(scorer(causal()), jsonl(tmp_path, "aba", "ab"))
    assert values(costs) == {
        "bits per byte": pytest.approx(9 / 5, rel=1e-6),
        "nats per token": pytest.approx(9 / 5 * math.log(2), rel=1e-6),
    }
    np.testing.assert_allclose(costs.nats_D, [6 * math.log(2), 3 * math.log(2)], rtol=1e-6)
    score = cost_scores(costs, EvaluationConfig())[0]
    assert score.interval is not None and score.items == 2 and score.reason == ""
    assert score.interval == (pytest.approx(1.5), pytest.approx(2.0))  # either document twice


def test_bytes_are_those_of_utf8_and_one_document_has_no_interval(tmp_path: Path) -> None:
    costs = text_costs(scorer(causal()), jsonl(tmp_path, "aé\U0001f600 b\n"))
    assert (costs.bytes_D.tolist(), costs.tokens_D.tolist(), costs.words_D.tolist()) == ([10], [10], [2])
    bits = cost_scores(costs, EvaluationConfig())[0]
    assert bits.value is not None and bits.interval is None and "needs two" in bits.reason


@pytest.mark.parametrize("shift", [0, 1])
def test_a_masked_candidate_has_nats_alone(tmp_path: Path, shift: Literal[0, 1]) -> None:
    path = jsonl(tmp_path, "ab" * 40, "ab")
    candidate = replace(masked(shift), max_positions=9)
    costs = text_costs(scorer(candidate), path)
    bits = 1 + 2 * 40 + 3 * 39 + (1 + 2)
    assert values(costs) == {"PLL nats per token": pytest.approx(bits / 82 * math.log(2), rel=1e-5)}
    assert costs.tokens_D.tolist() == [80, 2]
    whole = replace(PROTOCOLS["cuvee"], pll="within_word_l2r")
    # all of a word that follows is hidden too, which the token before does not feel
    assert values(text_costs(scorer(candidate, protocol=whole), path)) == values(costs)


# ---- windows ------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2), st.integers(1, 70), st.integers(0, 1), st.integers(8, 21), st.sampled_from(["causal", "masked"])
)
def test_every_token_is_scored_once_where_it_sees_most(
    leading: int, tokens: int, trailing: int, size: int, objective: str
) -> None:
    length = leading + tokens + trailing
    targets = tuple(range(leading, leading + tokens))
    # hidden with its next two tokens, as in a word
    hidden = tuple(tuple(range(position, min(position + 3, length))) for position in targets)
    parts = list(windows(ScoredRow(tuple(range(length)), targets, hidden), size, objective=objective))
    found = [part.ids[position] for part in parts for position in part.targets]
    assert found == list(targets)
    for part in parts:
        first, stop = part.ids[0], part.ids[-1] + 1
        assert part.ids == tuple(range(first, stop)) and len(part.ids) <= size
        assert part.targets == tuple(each[0] for each in part.hidden)
        for position, each in zip(part.targets, part.hidden, strict=True):
            place = part.ids[position]
            assert [part.ids[other] for other in each] == list(range(place, min(place + 3, length, stop)))
            others = [other for other in parts if other.ids[0] <= place <= other.ids[-1]]
            assert seen(part, place, length, objective) == max(
                seen(other, place, length, objective) for other in others
            )


def seen(part: ScoredRow, place: int, length: int, objective: str) -> float:
    """Tokens before a target, or between it and the nearest edge that cuts the document."""
    before, after = place - part.ids[0], part.ids[-1] - place
    if objective == "causal":
        return before
    return min(before if part.ids[0] else math.inf, after if part.ids[-1] < length - 1 else math.inf)


def test_windows_and_batches_change_nothing_where_context_is_short(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = count_ngrams(corpus.streams["train"], 4, vocab_size=corpus.vocab_size)
    tokenizer, candidate = own_tokenizer(corpus.tokenizer.to_json()), ngram_candidate(model, "n-gram")
    path = jsonl(tmp_path, "the cat sees a warm bed. " * 60, "two apples.", "the old man finds a song. " * 7)
    whole = text_costs(scorer(candidate, tokenizer), path)
    for longest, most in ((8, 8), (9, 64), (33, 4096), (None, 50)):
        monkeypatch.setattr(text_scores, "CHARACTERS_AT_ONCE", longest or 1)
        cut = text_costs(scorer(replace(candidate, max_positions=longest), tokenizer, max_tokens=most), path)
        np.testing.assert_allclose(cut.nats_D, whole.nats_D, rtol=1e-6)
    # what makes whole distributions says the same
    slow = text_costs(scorer(replace(candidate, token_log_probs=None), tokenizer), path)
    np.testing.assert_allclose(slow.nats_D, whole.nats_D, rtol=1e-5)


def test_no_row_is_longer_than_the_candidate_reads(tmp_path: Path) -> None:
    read: list[Tensor] = []
    text_costs(scorer(replace(causal(read), max_positions=16), max_tokens=64), jsonl(tmp_path, "ab" * 100))
    assert max(ids_BT.shape[1] for ids_BT in read) <= 16 and max(ids_BT.numel() for ids_BT in read) <= 64
    with pytest.raises(InputRefused, match="toy: reads 7 tokens; expected at least 8 to read a text"):
        text_costs(scorer(replace(causal(), max_positions=7)), jsonl(tmp_path, "ab"))


def test_a_text_costs_what_the_same_stream_does(corpus: Corpus, tmp_path: Path) -> None:
    """Windows of streams do not count the token that is only predicted, rows do."""
    stream, tokenizer = corpus.streams["test"], own_tokenizer(corpus.tokenizer.to_json())
    offsets = stream.document_offsets
    texts = [
        corpus.tokenizer.decode(stream.tokens(first + 1, stop).tolist())
        for first, stop in zip(offsets, offsets[1:], strict=False)
    ]
    path = jsonl(tmp_path, *texts)
    model = tiny.model("llama", corpus)
    positions_N, nats_N = model_nats(model, corpus, "test", "causal", tiny.CACHE)
    result = stream_result("causal", positions_N, nats_N, offsets_D1=offsets, bytes_D=stream.document_bytes)
    candidate = replace(candidate_from_model("llama", model, "causal"), max_positions=tiny.WINDOW + 1)
    costs = text_costs(scorer(candidate, tokenizer), path)
    np.testing.assert_allclose(costs.nats_D, result.sums_D, rtol=1e-5)
    assert costs.tokens_D.tolist() == result.counts_D.tolist()
    assert values(stream_costs(stream, result, read="whole"))["bits per byte"] == pytest.approx(result.bits_per_byte)
    # and documents that are read whole, what sentences are scored
    whole = scorer(candidate_from_model("llama", model, "causal"), tokenizer)
    short = [text for text, number in zip(texts, np.diff(offsets), strict=True) if number <= 64]
    scores = whole.scores([Request("", text) for text in short])
    np.testing.assert_allclose(text_costs(whole, jsonl(tmp_path / "short", *short)).nats_D, -scores, rtol=1e-5)
    model_of_counts = count_ngrams(corpus.streams["train"], 3, vocab_size=corpus.vocab_size)
    counted = text_costs(scorer(ngram_candidate(model_of_counts, "n-gram"), tokenizer), path)
    np.testing.assert_allclose(counted.nats_D, ngram_stream_result(model_of_counts, stream).sums_D, rtol=1e-5)


# ---- what is read and what is kept --------------------------------------------------------------------------------


def test_every_kind_of_file_is_read_as_a_corpus_reads_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfab\r\nab\n")
    (tmp_path / "deep" / "b.train").write_text("ab\n" * 2500)
    (tmp_path / "deep" / "ignored.md").write_text("ab")
    jsonl(tmp_path / "deep", "ab", " \n")
    found = [(Path(document.id).name, len(document.text.split())) for document in text_documents(tmp_path)]
    assert found == [("a.txt:1", 2), ("b.train:1", 2000), ("b.train:2", 500), ("text.jsonl:1", 1)]
    assert text_costs(scorer(causal()), tmp_path).bytes_D.tolist() == [6, 5999, 1499, 2]


def test_the_pieces_of_a_long_document_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_scores, "MOST_WORDS", 3)
    monkeypatch.setattr(text_scores, "CHARACTERS_AT_ONCE", 4)  # pieces of one document in several blocks
    path = jsonl(tmp_path, "ab ab\nab\nab ab ab\nab", "ab", "ab ab\nab ab")
    costs = text_costs(scorer(causal()), path)
    assert costs.words_D.tolist() == [7, 1, 4]
    assert costs.bytes_D.tolist() == [18, 2, 10], "line ends between pieces are gone"


def test_sums_are_kept_and_found_again(tmp_path: Path) -> None:
    read: list[Tensor] = []
    path = jsonl(tmp_path / "text", "aba", "ab", "aba")
    identity = {"weights": "w", "text_window": 1024}
    first = text_costs(scorer(causal(read)), path, ScoreStore(tmp_path / "answers", identity))
    assert [ids_BT.tolist() for ids_BT in read] == [[[1, A, B]], [[1, A]]], "equal documents once"
    assert first.nats_D[0] == first.nats_D[2]
    again = text_costs(scorer(causal(read)), path, ScoreStore(tmp_path / "answers", identity))
    assert len(read) == 2 and str(again) == str(first) and again.nats_D.tolist() == first.nats_D.tolist()
    jsonl(tmp_path / "text", "aba", "ab", "aba", "abab")
    more = text_costs(scorer(causal(read)), path, ScoreStore(tmp_path / "answers", identity))
    assert len(read) == 3 and read[2].tolist() == [[1, A, B, A]] and more.nats_D[:3].tolist() == first.nats_D.tolist()


def test_several_processes_share_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_scores, "CHARACTERS_AT_ONCE", 1)
    path = jsonl(tmp_path / "text", *("ab" * number for number in range(1, 12)))
    meeting, found, read = threading.Barrier(2), {}, {0: [], 1: []}

    class Two:
        world_size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def barrier(self) -> None:
            meeting.wait(timeout=20)

    def work(rank: int) -> None:
        store = ScoreStore(tmp_path / "answers", {"weights": "w"})
        found[rank] = text_costs(scorer(causal(read[rank]), team=Two(rank)), path, store)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = text_costs(scorer(causal()), path)
    assert (len(read[0]), len(read[1])) == (6, 5)
    for costs in found.values():
        assert costs.nats_D.tolist() == alone.nats_D.tolist()


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: holds no text; expected at least one word"),
        ("a.jsonl", b'{"text": " "}\n', "a.jsonl: holds no text"),
        ("a.txt", b"ab\n\xff\n", "a.txt:2: byte 1 of the line (0xff) is not UTF-8"),
        ("a.txt", b"ab\n\0\n", "a.txt:2: byte 1 of the line is NUL"),
        ("a.jsonl", b'{"text": "ab"}\n{"txt": "ab"}\n', "a.jsonl:2: no text: found the keys ['txt']"),
        ("a.jsonl.zst", b"ab", "not a readable Zstandard file"),
        ("a.md", b"ab", "a.md: no such file, or not one that ends in .jsonl.zst, .jsonl, .txt, .train"),
    ],
)
def test_what_is_no_text_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputRefused) as refused:
        text_costs(scorer(causal()), tmp_path / name)
    assert message in str(refused.value)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dir.txt").mkdir()
    with pytest.raises(InputRefused, match="holds no file that ends in"):
        text_costs(scorer(causal()), tmp_path)
    with pytest.raises(InputRefused, match="no such file"):
        text_costs(scorer(causal()), tmp_path / "nowhere.txt")


def test_every_token_needs_a_score(tmp_path: Path) -> None:
    bare = PROTOCOLS["babylm2025"]
    for candidate in (causal(), masked(1)):
        with pytest.raises(InputRefused, match="text.jsonl:1: under the protocol babylm2025 nothing stands before"):
            text_costs(scorer(candidate, protocol=bare), jsonl(tmp_path, "ab"))
    # a masked one sees what follows
    assert text_costs(scorer(masked(0), protocol=bare), jsonl(tmp_path, "ab")).tokens_D.tolist() == [2]


def test_a_document_without_a_token_is_refused(tmp_path: Path) -> None:
    letters = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "ab": 2}, unk_token="<unk>"))
    letters.normalizer = normalizers.Replace("x", "")
    tokenizer = ScoringTokenizer(letters, {"bos_token": "<s>"})
    with pytest.raises(InputRefused, match="text.jsonl:2: the tokenizer makes no token of it"):
        text_costs(scorer(causal(), tokenizer), jsonl(tmp_path, "ab", "xxx"))


@pytest.mark.parametrize("answer", [math.nan, -math.inf])
def test_a_score_that_is_not_finite_is_told_with_its_document(answer: float, tmp_path: Path) -> None:
    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        found_NV = bits_after()[input_ids_BT[wanted_BT]]
        found_NV[input_ids_BT[wanted_BT] == B] = answer
        return found_NV

    store = ScoreStore(tmp_path / "answers", {})
    with pytest.raises(
        Diverged, match=r"toy on .*text.jsonl:2: log-likelihood (nan|-inf); .*; the candidate is invalid"
    ):
        text_costs(scorer(Candidate("toy", "causal", log_probs)), jsonl(tmp_path, "ab", "aba"), store)
    assert not store.folder.exists()


def test_a_long_text_is_prepared_in_a_moment() -> None:
    """Hiding the rest of a word looks at that word alone, not at all that follows."""
    protocol = replace(PROTOCOLS["cuvee"], pll="within_word_l2r")
    started = time.monotonic()
    (row,) = scored_rows([Request("", "ab " * 15_000)], tiny.byte_tokenizer(), protocol, masked=True)
    assert time.monotonic() - started < 15  # seconds; every pair of tokens would take minutes
    assert row.hidden[:4] == ((1, 2), (2,), (3, 4, 5), (4, 5)) and len(row.hidden) == 45_000
