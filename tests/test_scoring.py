"""Protocols say which tokens count; scorers add, store, share and refuse; nothing is scored twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from benchmarks.protocol import PROTOCOLS, Protocol
from benchmarks.request import Request
from benchmarks.score_store import ScoreStore
from benchmarks.scored_rows import ScoredRow, scored_rows
from benchmarks.scorer import Candidate, _in_bf16
from benchmarks.scoring import Scorer, _blocks, scoring_identity
from benchmarks.scoring_tokenizer import ScoringTokenizer, read_scoring_tokenizer
from corpora.errors import Damaged, InputRefused
from corpora.token_ids import TokenIds
from students.registry import build_model

PAD, BEGIN, END, MASK, CLS, SEP = range(6)
WORDS = ["[PAD]", "<s>", "</s>", "[MASK]", "[CLS]", "[SEP]", "a", "big", "cat", "s", "sleep"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "[MASK]"}
CUVEE = PROTOCOLS["cuvee"]


def word_pieces(*, framed: bool = False, names: dict[str, str] | None = None) -> ScoringTokenizer:
    """Words and pieces: `cats` is `cat` and `s`. With `framed`, [CLS] and [SEP] stand around a text."""
    vocabulary = {word: number for number, word in enumerate(WORDS)} | {"##s": len(WORDS), "[UNK]": len(WORDS) + 1}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return ScoringTokenizer(tokenizer, NAMES if names is None else names)


def row_of(request: Request, protocol: Protocol, *, masked: bool = False, framed: bool = False) -> ScoredRow:
    (row,) = scored_rows([request], word_pieces(framed=framed), protocol, masked=masked)
    return row


def ids(*words: str) -> tuple[int, ...]:
    return tuple((WORDS + ["##s"]).index(word) for word in words)


TEXT, AFTER = Request("", "a cats sleep"), Request("a big", " cats sleep")
BARE = ids("a", "cat", "##s", "sleep")


@pytest.mark.parametrize(
    ("name", "masked", "framed", "expected", "targets"),
    [
        ("cuvee", False, False, (BEGIN, *BARE), (1, 2, 3, 4)),
        ("cuvee", True, False, (BEGIN, *BARE), (1, 2, 3, 4)),
        ("cuvee", True, True, (CLS, *BARE, SEP), (1, 2, 3, 4)),
        ("cuvee", False, True, (CLS, *BARE), (1, 2, 3, 4)),
        ("babylm2025", False, False, BARE, (0, 1, 2, 3)),
        ("babylm2025", True, True, (CLS, *BARE, SEP), (1, 2, 3, 4)),
        ("babylm2024", True, True, (CLS, END, *BARE, SEP), (2, 3, 4, 5)),
        ("babylm2023", False, True, (BEGIN, *BARE), (1, 2, 3, 4)),
        ("lm-eval", False, True, (BEGIN, *BARE), (1, 2, 3, 4)),
        ("minicons", False, False, BARE, (0, 1, 2, 3)),
    ],
)
def test_what_stands_around_a_text(
    name: str, masked: bool, framed: bool, expected: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    row = row_of(TEXT, PROTOCOLS[name], masked=masked, framed=framed)
    assert row.ids == expected and row.targets == targets
    assert row.hidden == tuple((position,) for position in targets)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_context_is_read_and_not_scored(name: str) -> None:
    row = row_of(AFTER, PROTOCOLS[name])
    assert [row.ids[position] for position in row.targets] == list(ids("cat", "##s", "sleep"))
    assert row.ids[-5:] == ids("a", "big", "cat", "##s", "sleep")


def test_a_token_across_the_border_counts_by_its_last_character() -> None:
    """`cats` after the context `a cat`: its pieces are cat and s where the string is cut inside the word."""
    request = Request("a cat", "s sleep")
    for name in ("cuvee", "lm-eval"):
        row = row_of(request, PROTOCOLS[name])
        assert [row.ids[position] for position in row.targets] == list(ids("##s", "sleep"))
    apart = row_of(replace(request, apart=True), CUVEE)
    assert apart.ids == (BEGIN, *ids("a", "cat", "s", "sleep")) and apart.targets == (3, 4)


def test_a_space_stands_before_a_text_where_the_protocol_says_so() -> None:
    tokenizer = tiny.byte_tokenizer()
    for name, first in (("cuvee", "x"), ("lm-eval", " "), ("minicons", "x")):
        (row,) = scored_rows([Request("", "x")], tokenizer, PROTOCOLS[name], masked=False)
        assert row.ids[row.targets[0]] == ord(first) + 4
    (row,) = scored_rows([Request("y ", "x")], tokenizer, PROTOCOLS["lm-eval"], masked=False)
    assert [row.ids[position] - 4 for position in row.targets] == [ord(" "), ord("x")]


def test_what_follows_of_a_word_is_hidden_with_it() -> None:
    protocol = replace(CUVEE, pll="within_word_l2r")
    assert row_of(TEXT, protocol, masked=True).hidden == ((1,), (2, 3), (3,), (4,))
    apart = row_of(Request("a cat", "cats", apart=True), protocol, masked=True)
    assert apart.hidden == ((3, 4), (4,))


def test_a_protocol_says_all_it_does() -> None:
    for protocol in PROTOCOLS.values():
        for masked in (False, True):
            said = " ".join(protocol.lines(masked))
            reduction = protocol.masked_reduction if masked else protocol.causal_reduction
            assert f"the {reduction} over" in said and ("hidden" in said) == masked
            assert ("A space is put" in said) == (protocol.space and not masked)
    with pytest.raises(InputRefused, match="the tokenizer has no begin token, expected one"):
        scored_rows([TEXT], word_pieces(names={}), CUVEE, masked=False)


def by_position(ids_BT: Tensor, wanted_BT: Tensor) -> Tensor:
    """Log-probabilities that depend on the position of the output and on every token of the row."""
    number_B1 = (ids_BT * (torch.arange(ids_BT.shape[1]) + 1) ** 2).sum(1, keepdim=True)
    state_BT = number_B1 + 31 * torch.arange(ids_BT.shape[1])
    return torch.sin(state_BT[wanted_BT][:, None].double() * torch.arange(1, 20)).float().log_softmax(-1)


def candidate(objective: str = "masked", shift: int = 0, asked: list[int] | None = None) -> Candidate:
    """Answers by `by_position`; a causal one from what stands up to each position alone."""

    def log_probs(ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        if asked is not None:
            asked.append(len(ids_BT))
        if objective == "masked":
            return by_position(ids_BT, wanted_BT)
        seen_BT = torch.cumsum(ids_BT * (torch.arange(ids_BT.shape[1]) + 1) ** 2, dim=1)
        return torch.sin(seen_BT[wanted_BT][:, None].double() * torch.arange(1, 20)).float().log_softmax(-1)

    return Candidate("toy", objective, log_probs, shift=shift)  # type: ignore[arg-type]


def scorer_of(*parts: Candidate, protocol: Protocol = CUVEE, store: ScoreStore | None = None) -> Scorer:
    return Scorer("toy", parts, word_pieces(), protocol, 512, store)


def test_masked_next_token_prediction_reads_the_output_before() -> None:
    """On a candidate whose answer depends on the position of its output, by hand."""
    row = torch.tensor([BEGIN, *BARE])
    for shift in (0, 1):
        expected = 0.0
        for position in range(1, len(row)):
            hidden = row.clone()[None]
            hidden[0, position] = MASK
            wanted = torch.arange(len(row))[None] == position - shift
            expected += by_position(hidden, wanted)[0, row[position]].item()
        found = scorer_of(candidate(shift=shift)).scores([TEXT])
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_first_token_has_no_score_where_nothing_stands_before_it() -> None:
    bare = PROTOCOLS["babylm2025"]
    for part in (candidate("causal"), candidate(shift=1)):
        with pytest.raises(InputRefused, match="item 7: no token to score under the protocol babylm2025; expected"):
            scorer_of(part, protocol=bare).scores([Request("", "cat")], places=["item 7"])
    assert np.isfinite(scorer_of(candidate(), protocol=bare).scores([Request("", "cat")])).all()


def test_a_hybrids_two_modes_are_added() -> None:
    requests = [TEXT, AFTER, Request("", "big cat")]
    causal, masked = (scorer_of(part).scores(requests) for part in (candidate("causal"), candidate(shift=1)))
    both = scorer_of(candidate("causal"), candidate(shift=1)).scores(requests)
    np.testing.assert_allclose(both, causal + masked)


def test_the_mean_is_over_scored_tokens() -> None:
    total, mean = (
        scorer_of(candidate("causal"), protocol=replace(CUVEE, causal_reduction=reduction)).scores([TEXT, AFTER])
        for reduction in ("sum", "mean")
    )
    np.testing.assert_allclose(mean, total / [4, 3])


# stored scores


def stored(folder: Path, **changes: str) -> ScoreStore:
    identity = {"weights": "w", "backend": "masked", "precision": "fp32"} | changes
    weights = identity.pop("weights")
    return ScoreStore(folder, scoring_identity(weights, word_pieces(), CUVEE, **identity))


def test_what_is_stored_is_not_scored_again(tmp_path: Path) -> None:
    requests = [TEXT, AFTER, Request("", "big cat"), TEXT]
    first, again = [], []
    plain = scorer_of(candidate()).scores(requests)
    assert np.array_equal(scorer_of(candidate(asked=first), store=stored(tmp_path)).scores(requests[:2]), plain[:2])
    rest = scorer_of(candidate(asked=again), store=stored(tmp_path)).scores(requests)
    assert np.array_equal(rest, plain) and sum(first) == 4 + 3 and sum(again) == 2
    nothing: list[int] = []
    found = scorer_of(candidate(asked=nothing), store=stored(tmp_path)).scores(requests[::-1])
    assert np.array_equal(found, plain[::-1]) and not nothing
    for changes in ({"weights": "other"}, {"backend": "mntp"}, {"precision": "bf16"}):
        assert not stored(tmp_path, **changes).find(requests)


def test_an_interrupted_block_is_made_again_and_a_damaged_one_too(tmp_path: Path) -> None:
    scorer_of(candidate(), store=stored(tmp_path)).scores([TEXT])
    (part,) = stored(tmp_path).folder.iterdir()
    scores = part / "scores.npy"
    scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    asked: list[int] = []
    found = scorer_of(candidate(asked=asked), store=stored(tmp_path)).scores([TEXT])
    assert np.array_equal(found, scorer_of(candidate()).scores([TEXT])) and asked
    (part / "manifest.json").unlink()  # as a process leaves it that is killed before its last write
    assert not stored(tmp_path).find([TEXT])


class Rank:
    """One of two processes; `meanwhile` is what the other does when this one waits for the first time."""

    world_size = 2

    def __init__(self, rank: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.rank, self._meanwhile = rank, [meanwhile]

    def barrier(self) -> None:
        if self._meanwhile:
            self._meanwhile.pop()()


def test_two_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scoring.TOKENS_AT_ONCE", 6)
    requests = [TEXT, AFTER, Request("", "big cat"), Request("", "a cat sleep"), Request("", "cats")]
    first, second = [], []

    def other() -> None:
        alone = replace(scorer_of(candidate(asked=second), store=stored(tmp_path)), team=Rank(1))
        with pytest.raises(KeyError):  # it does not wait for the first one here
            alone.scores(requests)

    one = replace(scorer_of(candidate(asked=first), store=stored(tmp_path)), team=Rank(0, other))
    assert np.array_equal(one.scores(requests), scorer_of(candidate()).scores(requests))
    copies = 4 + 3 + 2 + 3 + 2
    assert first and second and sum(first) + sum(second) == copies


# tokenizers


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="tokenizer.json is missing, so the tokenizer cannot say which characters"):
        read_scoring_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Damaged, match="not a tokenizer"):
        read_scoring_tokenizer(tmp_path)


def test_special_tokens_are_read_as_either_file_says(tmp_path: Path) -> None:
    tokenizer = word_pieces(framed=True)._tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"cls_token": {"content": "[CLS]"}, "mask_token": "[MASK]"}')
    (tmp_path / "special_tokens_map.json").write_text('{"sep_token": "[SEP]"}')
    read = read_scoring_tokenizer(tmp_path)
    assert (read.begin_id, read.end_id, read.mask_id) == (CLS, SEP, MASK)
    assert (read.leading, read.trailing) == ((CLS,), (SEP,))
    (tmp_path / "special_tokens_map.json").write_text("[1]")
    with pytest.raises(InputRefused, match="special_tokens_map.json: a JSON list, expected an object"):
        read_scoring_tokenizer(tmp_path)


def test_special_tokens_in_a_text_are_text() -> None:
    (row,) = scored_rows([Request("", "<s>")], tiny.byte_tokenizer(), PROTOCOLS["babylm2025"], masked=False)
    assert [identity - 4 for identity in row.ids] == list(b"<s>")


def _rows(*ids: tuple[int, ...]) -> list[list[ScoredRow]]:
    return [[ScoredRow(row, (len(row) - 1,), ((len(row) - 1,),))] for row in ids]


def test_equal_rows_are_never_in_two_blocks_and_answers_to_one_question_are_in_one() -> None:
    long, short = (5, 6, 7, 8, 9), (5, 6)
    rows = _rows(long, (1, 2, 3), long, (1, 2), (1, 2, 3, 4, 4), long, short)
    found = {}
    for alike in (False, True):
        blocks = list(_blocks(rows, alike_together=alike, most_tokens=6))
        assert sorted(number for block in blocks for number in block) == list(range(len(rows)))
        assert sum({0, 2, 5} <= set(block) for block in blocks) == 1
        found[alike] = [set(block) for block in blocks]
    assert found[True] == [{3, 1, 4}, {0, 2, 5, 6}]
    assert found[False] == [{4, 0, 2, 5}, {1, 3, 6}]


def test_rotary_angles_stay_as_they_are_in_bf16() -> None:
    model = build_model(tiny.model_config("llama"), vocab_size=64, token_ids=TokenIds(), seed=0)
    rounded = _in_bf16(model)
    angles = {name: buffer for name, buffer in rounded.named_buffers() if name.endswith("inv_freq")}
    assert angles and all(buffer.dtype == torch.float32 for buffer in angles.values())
    assert all(torch.equal(buffer, model.get_buffer(name)) for name, buffer in angles.items())
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
