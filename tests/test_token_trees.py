"""What scoring saves is saved exactly: trees of rows, last blocks of wanted positions, copies that are alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.agreement import verdict_agreement
from benchmarks.choices import Choice, ChoiceTask
from benchmarks.likelihood import token_scores
from benchmarks.networks import LIKE_BERT, TREE_READERS, only_wanted, reads_trees, tree_features
from benchmarks.request import Request
from benchmarks.scored_rows import ScoredRow
from benchmarks.scorer import Candidate, candidate_from_model
from benchmarks.token_trees import token_trees, tree_tensors
from corpora.prepare import Corpus
from students.language_model import LanguageModel
from students.pretrained import Pretrained

VOCABULARY = 60
ROWS = st.lists(st.lists(st.integers(0, 3), max_size=9).map(tuple), max_size=12, unique=True)


@given(ROWS, st.integers(9, 30))
def test_a_tree_holds_its_rows_and_nothing_twice(rows: list[tuple[int, ...]], most: int) -> None:
    trees = token_trees(rows, most=most)
    held = {number: [tree.ids[node] for node in path] for tree in trees for number, path in tree.rows.items()}
    assert held == {number: list(row) for number, row in enumerate(rows) if row}
    for tree in trees:
        assert len(tree.ids) <= most
        assert {node for path in tree.rows.values() for node in path} == set(range(len(tree.ids)))
        for path in tree.rows.values():
            assert [tree.depths[node] for node in path] == list(range(len(path)))
            assert [tree.parents[node] for node in path] == [-1, *path[:-1]]


def test_a_node_sees_its_ancestors_and_itself() -> None:
    (tree,) = token_trees([(5, 6, 7), (5, 6, 8, 9)], most=20)
    other = token_trees([(1,)], most=20)
    assert tree.ids == [5, 6, 7, 8, 9]
    ids_BT, depths_BT, sees_BTT = tree_tensors([tree, *other])
    assert ids_BT.tolist() == [[5, 6, 7, 8, 9], [1, 0, 0, 0, 0]] and depths_BT[0].tolist() == [0, 1, 2, 2, 3]
    seen = [set(row.nonzero()[:, 0].tolist()) for row in sees_BTT[0]]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 3, 4}]
    assert torch.equal(sees_BTT[1], torch.eye(5, dtype=torch.bool))  # padding sees itself: no softmax is empty


def causal_network(kind: str) -> LanguageModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(kind, **sizes, max_position_embeddings=64, bos_token_id=1)
    if kind != "gpt2" and kind != "gptj":
        config.intermediate_size = 64
    if kind == "gptj":
        config.rotary_dim = 4
    torch.manual_seed(3)
    return Pretrained(sharp(transformers.AutoModelForCausalLM.from_config(config)), "causal", kind)


def masked_network(kind: str) -> LanguageModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(
        kind, **sizes, intermediate_size=64, max_position_embeddings=64, embedding_size=32
    )
    torch.manual_seed(3)
    return Pretrained(sharp(transformers.AutoModelForMaskedLM.from_config(config)), "masked", kind)


def sharp(network: torch.nn.Module) -> torch.nn.Module:
    """With weights that make every output depend on what it sees."""
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def some_rows(number: int = 14, *, seed: int = 0) -> list[ScoredRow]:
    """Rows of which several begin alike; targets are those behind the third token, or all."""
    draw = np.random.default_rng(seed)
    begins = [draw.integers(1, VOCABULARY, size).tolist() for size in (1, 6, 12)]
    rows = []
    for index in range(number):
        ids = tuple(begins[index % 3] + draw.integers(1, VOCABULARY, int(draw.integers(2, 9))).tolist())
        targets = tuple(range(1 if index % 2 else 3 if len(ids) > 3 else 1, len(ids)))
        rows.append(ScoredRow(ids, targets, tuple((target,) for target in targets)))
    return rows


@pytest.mark.parametrize("kind", TREE_READERS)
def test_scores_in_trees_are_those_of_rows_alone(kind: str) -> None:
    candidate = candidate_from_model(kind, causal_network(kind), "causal")
    alone = replace(candidate, tree_log_probs=None)
    rows = some_rows()
    expected = [token_scores(alone, [row], mask_id=None, max_tokens=256)[0] for row in rows]
    read = []
    assert candidate.tree_log_probs is not None

    def noting(ids_BT: Tensor, *others: Tensor) -> Tensor:
        read.append(ids_BT.numel())
        assert candidate.tree_log_probs is not None
        return candidate.tree_log_probs(ids_BT, *others)

    found = token_scores(replace(candidate, tree_log_probs=noting), rows, mask_id=None, max_tokens=256)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert sum(read) < 0.95 * sum(len(row.ids) - 1 for row in rows)
    assert np.concatenate(expected).std() > 0.3


@pytest.mark.parametrize("architecture", ["llama", "gptj", "elc_bert"])
def test_our_own_architectures_read_trees_or_do_not(architecture: str, corpus: Corpus) -> None:
    model = tiny.model(architecture, corpus)
    assert reads_trees(model) == (architecture != "elc_bert")
    rows = [(5, 6, 7, 8), (5, 6, 9)]
    if reads_trees(model):
        (tree,) = token_trees(rows, most=20)
        with torch.no_grad():
            found_TD = tree_features(model, *tree_tensors([tree]))[0]
            for number, row in enumerate(rows):
                ids_BT = torch.tensor([row])
                alone_TD = model.features(ids_BT, torch.zeros_like(ids_BT), True)[0]
                torch.testing.assert_close(found_TD[tree.rows[number]], alone_TD, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", LIKE_BERT)
def test_the_last_block_is_right_where_it_is_wanted(kind: str) -> None:
    model = masked_network(kind)
    ids_BT, segments_BT = torch.randint(5, VOCABULARY, (4, 9)), torch.zeros(4, 9, dtype=torch.int64)
    segments_BT[2, 6:] = -1
    wanted_BT = torch.zeros(4, 9, dtype=torch.bool)
    wanted_BT[[0, 1, 1, 2, 3], [4, 0, 8, 5, 3]] = True
    met: list[tuple[int, ...]] = []
    block = model.network.base_model.encoder.layer[-1]
    hook = block.intermediate.register_forward_hook(lambda module, given, made: met.append(tuple(made.shape)))
    with torch.no_grad():
        whole_BTD = model.features(ids_BT, segments_BT, False)
        with only_wanted(model, wanted_BT):
            found_BTD = model.features(ids_BT, segments_BT, False)
    hook.remove()
    torch.testing.assert_close(found_BTD[wanted_BT], whole_BTD[wanted_BT], atol=2e-5, rtol=0)
    assert met == [(4, 9, 64), (1, 5, 64)]
    assert not block._forward_hooks and not block.attention.output._forward_pre_hooks  # nothing is left behind


def test_copies_that_hide_what_differs_are_one() -> None:
    asked: list[int] = []

    def log_probs(ids_BT: Tensor, segments_BT: Tensor, wanted_BT: Tensor) -> Tensor:
        asked.append(len(ids_BT))
        return torch.sin(ids_BT.sum(1, keepdim=True) * torch.arange(1.0, 20)).log_softmax(-1)

    rows = [ScoredRow((4, 5, 6), (0, 1, 2), ((0,), (1,), (2,))), ScoredRow((4, 7, 6), (0, 1, 2), ((0,), (1,), (2,)))]
    one, other = token_scores(Candidate("toy", "masked", log_probs), rows, mask_id=3, max_tokens=64)
    assert asked == [5]
    alone = [token_scores(Candidate("toy", "masked", log_probs), [row], mask_id=3, max_tokens=64)[0] for row in rows]
    assert np.array_equal(one, alone[0]) and np.array_equal(other, alone[1]) and one[1] != other[1]


# bf16


@pytest.mark.parametrize("architecture", ["llama", "gptj", "elc_bert"])
def test_bf16_is_a_copy_near_fp32(architecture: str, corpus: Corpus) -> None:
    model, objective = tiny.model(architecture, corpus), "masked" if architecture == "elc_bert" else "causal"
    ids_BT = torch.arange(5, 25).view(2, 10)
    read = ids_BT, torch.zeros_like(ids_BT), torch.ones_like(ids_BT, dtype=torch.bool)
    exact, rounded = (
        candidate_from_model("model", model, objective, precision=precision).log_probs(*read)  # type: ignore[arg-type]
        for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.05 * exact.std()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert rounded.exp().sum(-1).sub(1).abs().max() < 1e-4


def test_agreement_counts_verdicts() -> None:
    class Fixed:
        objective = "causal"

        def __init__(self, name: str, scores: dict[str, float]) -> None:
            self.name, self._scores = name, scores

        def scores(self, requests: list[Request], *, places: object = None) -> np.ndarray:
            return np.array([self._scores[request.text] for request in requests])

    items = tuple(Choice(options=(Request("", good), Request("", bad))) for good, bad in ("ab", "cd", "ef"))
    task = ChoiceTask("uid", "", "", items)
    one = Fixed("one", {"a": 1, "b": 0, "c": 1, "d": 0, "e": 0, "f": 1})
    other = Fixed("other", {"a": 2, "b": 0, "c": 0, "d": 0.5, "e": 0, "f": 1})
    found = verdict_agreement(one, other, [task], items=5)  # type: ignore[arg-type]
    assert (found.items, found.agreeing, found.largest) == (3, 2, 1.0) and found.share == pytest.approx(2 / 3)
    assert str(found) == "2 of 3 verdicts agree (66.67 %); scores differ by at most 1 nats"
    assert verdict_agreement(one, other, [task], items=1).share == 1  # type: ignore[arg-type]
