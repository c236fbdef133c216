"""Scores equal a plain sentence-by-sentence reference, and do not depend on how sentences are batched."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.likelihood import length_batches, token_scores
from benchmarks.scored_rows import ScoredRow
from benchmarks.scorer import Candidate, candidate_from_model
from corpora.batch import PADDING_SEGMENT
from corpora.errors import Diverged, InputRefused
from students.head import Head
from students.language_model import LanguageModel

BEGIN, MASK, FIRST_TYPE, VOCAB = 1, 3, 4, 60


class _Wrapped(LanguageModel):
    """A network of transformers with its body and its head given as functions."""

    def __init__(self, network: PreTrainedModel, body: nn.Module, transform: nn.Module, head: Head) -> None:
        super().__init__()
        self.network, self._body, self._transform, self._head = network, body, transform, head
        self.config = SimpleNamespace(max_positions=64)

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        real_BT = (segments_BT != PADDING_SEGMENT).long()
        return self._transform(self._body(input_ids=input_ids_BT, attention_mask=real_BT).last_hidden_state)

    def head(self) -> Head:
        return self._head


def _tiny_llama() -> tuple[LlamaForCausalLM, _Wrapped]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, initializer_range=0.3, **sizes)).eval()
    return network, _Wrapped(network, network.model, nn.Identity(), Head(network.lm_head.weight))


def _tiny_bert() -> tuple[BertForMaskedLM, _Wrapped]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = BertForMaskedLM(BertConfig(vocab_size=VOCAB, initializer_range=0.3, **sizes)).eval()
    predictions = network.cls.predictions
    head = Head(predictions.decoder.weight, predictions.decoder.bias)
    return network, _Wrapped(network, network.bert, predictions.transform, head)


def sentence_scores(
    candidate: Candidate, rows: list[list[int]], *, mask_id: int | None = MASK, max_tokens: int
) -> list[float]:
    """Sums over all tokens after the begin token."""
    scored = [ScoredRow(tuple(row), tuple(range(1, len(row))), tuple((t,) for t in range(1, len(row)))) for row in rows]
    return [scores.sum() for scores in token_scores(candidate, scored, mask_id=mask_id, max_tokens=max_tokens)]


def _random_rows(number: int, longest: int = 20) -> list[list[int]]:
    draw = random.Random(5)
    return [[BEGIN, *draw.choices(range(FIRST_TYPE, VOCAB), k=draw.randint(1, longest))] for _ in range(number)]


def _hash_candidate(objective: str, largest: list[int] | None = None) -> Candidate:
    """A candidate whose answer depends on every token that it may read, and on nothing in the padding."""

    def log_probs(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        assert int(wanted_BT.sum()) and not (wanted_BT & (segments_BT == PADDING_SEGMENT)).any()
        if largest is not None:
            largest.append(input_ids_BT.numel())
        positions_T = torch.arange(input_ids_BT.shape[1]) + 1
        read_BT = input_ids_BT * positions_T**2 * (segments_BT != PADDING_SEGMENT)
        state_BT = read_BT.cumsum(1) if objective == "causal" else read_BT.sum(1, keepdim=True) * positions_T
        return torch.sin(state_BT[wanted_BT][:, None].double() * torch.arange(1, VOCAB + 1)).float().log_softmax(-1)

    return Candidate("hash", objective, log_probs)


def test_causal_scores_equal_the_plain_sum() -> None:
    network, model = _tiny_llama()
    rows = _random_rows(40)
    with torch.no_grad():
        expected = []
        for row in rows:
            log_probs_TV = network(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            expected.append(sum(log_probs_TV[t - 1, row[t]].item() for t in range(1, len(row))))
    scores = sentence_scores(candidate_from_model("llama", model, "causal"), rows, mask_id=MASK, max_tokens=128)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_masked_scores_equal_plain_pseudo_log_likelihood() -> None:
    network, model = _tiny_bert()
    rows = _random_rows(25)
    with torch.no_grad():
        expected = []
        for row in rows:
            score = 0.0
            for t in range(1, len(row)):
                masked = torch.tensor([row[:t] + [MASK] + row[t + 1 :]])
                score += network(input_ids=masked).logits[0, t].log_softmax(-1)[row[t]].item()
            expected.append(score)
    scores = sentence_scores(candidate_from_model("bert", model, "masked"), rows, mask_id=MASK, max_tokens=128)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_batching_of_a_real_model_moves_scores_by_less_than_1e_5(objective: str) -> None:
    model = (_tiny_llama if objective == "causal" else _tiny_bert)()[1].eval()
    candidate = candidate_from_model("model", model, objective)
    rows = _random_rows(30, longest=9)
    alone = [sentence_scores(candidate, [row], mask_id=MASK, max_tokens=10)[0] for row in rows]
    for max_tokens in (10, 33, 4096):
        together = sentence_scores(candidate, rows, mask_id=MASK, max_tokens=max_tokens)
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_known_conditional_probabilities() -> None:
    """Two tokens with a joint distribution that fits on a line: both scores are computed by hand."""
    joint = torch.tensor([[0.4, 0.1], [0.2, 0.3]])  # p(first, second); the types are FIRST_TYPE and FIRST_TYPE + 1

    def answer(rows: list[list[float]]) -> Tensor:
        probs_NV = torch.zeros(len(rows), VOCAB)
        probs_NV[:, FIRST_TYPE : FIRST_TYPE + 2] = torch.tensor(rows)
        return (probs_NV / probs_NV.sum(1, keepdim=True)).log()

    def causal(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        return answer(
            [
                joint.sum(1).tolist() if t == 0 else joint[ids[1] - FIRST_TYPE].tolist()
                for ids, wanted in zip(input_ids_BT.tolist(), wanted_BT.tolist(), strict=True)
                for t in range(len(ids))
                if wanted[t]
            ]
        )

    def masked(input_ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        return answer(
            [
                joint[:, second - FIRST_TYPE].tolist() if first == MASK else joint[first - FIRST_TYPE].tolist()
                for _, first, second in input_ids_BT.tolist()
            ]
        )

    rows = [[BEGIN, FIRST_TYPE, FIRST_TYPE], [BEGIN, FIRST_TYPE + 1, FIRST_TYPE]]
    scores = sentence_scores(Candidate("toy", "causal", causal), rows, mask_id=MASK, max_tokens=6)
    np.testing.assert_allclose(scores, [math.log(0.4), math.log(0.2)], atol=1e-6)
    scores = sentence_scores(Candidate("toy", "masked", masked), rows, mask_id=MASK, max_tokens=6)
    by_hand = [math.log(0.4 / 0.6) + math.log(0.4 / 0.5), math.log(0.2 / 0.6) + math.log(0.2 / 0.5)]
    np.testing.assert_allclose(scores, by_hand, atol=1e-6)


_rows = st.lists(st.lists(st.integers(FIRST_TYPE, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=12)


@pytest.mark.parametrize("objective", ["causal", "masked"])
@settings(max_examples=40, deadline=None)
@given(rows=_rows, max_tokens=st.integers(13, 80), seed=st.integers(0, 99))
def test_order_duplicates_and_batches_do_not_matter(
    objective: str, rows: list[list[int]], max_tokens: int, seed: int
) -> None:
    rows = [[BEGIN, *row] for row in rows]
    order = random.Random(seed).choices(range(len(rows)), k=2 * len(rows))
    largest: list[int] = []
    candidate = _hash_candidate(objective, largest)
    scores = sentence_scores(candidate, [rows[index] for index in order], mask_id=MASK, max_tokens=max_tokens)
    alone = {index: sentence_scores(candidate, [rows[index]], mask_id=MASK, max_tokens=13)[0] for index in order}
    np.testing.assert_allclose(scores, [alone[index] for index in order], atol=1e-5)
    assert max(largest) <= max_tokens


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=300), st.integers(300, 2000))
def test_length_batches_hold_each_row_once_and_little_padding(lengths: list[int], max_tokens: int) -> None:
    lengths = sorted(lengths, reverse=True)
    batches = list(length_batches(lengths, max_tokens))
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    for batch in batches:
        batch_lengths = [lengths[index] for index in batch]
        assert len(batch) * batch_lengths[0] <= max_tokens
        assert min(batch_lengths) >= 0.75 * max(batch_lengths)


def test_a_sentence_as_long_as_the_limit_is_streamed() -> None:
    largest: list[int] = []
    row = [BEGIN, *([FIRST_TYPE, FIRST_TYPE + 1] * 250)]
    sentence_scores(_hash_candidate("masked", largest), [row], mask_id=MASK, max_tokens=1024)
    assert max(largest) <= 1024 and len(largest) == 250  # 500 copies of 501 tokens, two at a time


def test_only_wanted_rows_meet_the_head() -> None:
    _, model = _tiny_bert()
    projected = []

    class Spy(Head):
        def logits(self, features_ND: Tensor) -> Tensor:
            projected.append(len(features_ND))
            return super().logits(features_ND)

    model._head = Spy(*model._head)
    sentence_scores(candidate_from_model("bert", model, "masked"), _random_rows(5), mask_id=MASK, max_tokens=4096)
    assert sum(projected) == sum(len(row) - 1 for row in _random_rows(5))


def test_scoring_leaves_training_mode_as_it_was() -> None:
    model = _tiny_llama()[1].train()
    sentence_scores(candidate_from_model("llama", model, "causal"), [[BEGIN, 5]], mask_id=MASK, max_tokens=8)
    assert model.training


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputRefused, match="41 tokens; expected at most 40"):
        sentence_scores(_hash_candidate("causal"), [[BEGIN, 5], [BEGIN] + [5] * 40], mask_id=MASK, max_tokens=40)
    short = replace(_hash_candidate("causal"), max_positions=4)
    with pytest.raises(InputRefused, match="hash reads 4"):
        sentence_scores(short, [[BEGIN, 5, 5, 5, 5]], mask_id=MASK, max_tokens=40)


def test_a_masked_model_needs_a_mask_token() -> None:
    with pytest.raises(InputRefused, match="hash: its tokenizer has no mask token; expected one"):
        sentence_scores(_hash_candidate("masked"), [[BEGIN, 5]], mask_id=None, max_tokens=8)


def test_logits_are_not_taken_for_log_probabilities() -> None:
    logits = Candidate("raw", "causal", lambda ids, segments, wanted: torch.full((int(wanted.sum()), VOCAB), 2.0))
    with pytest.raises(Diverged, match="raw: log-probability 2"):
        sentence_scores(logits, [[BEGIN, 5]], mask_id=MASK, max_tokens=8)
