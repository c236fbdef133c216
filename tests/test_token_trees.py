"""What scoring saves is saved exactly: trees of rows, last blocks of wanted positions, copies that are alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
from students.narrowed import Narrowed
from students.pretrained import Pretrained

VOCABULARY = 60
LONGEST = 20  # row that a network reads; trees have more nodes
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = st.lists(st.lists(st.integers(0, 3), max_size=9).map(tuple), max_size=12, unique=True)


@given(ROWS, st.integers(9, 30))
def test_a_tree_holds_its_rows_and_nothing_twice(rows: list[tuple[int, ...]], most: int) -> None:
    trees = token_trees(rows, most=most)
    held = {number: [tree.ids[node] for node in path] for tree in trees for number, path in tree.rows.items()}
    assert held == {number: list(row) for number, row in enumerate(rows) if row}
    for tree in trees:
        assert len(tree.ids) <= most
        assert {node for path in tree.rows.values() for node in path} == set(range(len(tree.ids)))
        _, depths_BT, sees_BTT = tree_tensors([tree])
        for path in tree.rows.values():
            assert depths_BT[0, path].tolist() == list(range(len(path)))
            for depth, node in enumerate(path):
                assert sees_BTT[0, node].nonzero()[:, 0].tolist() == path[: depth + 1]


@pytest.mark.parametrize(
    ("length", "shared", "trees"),
    [(10, 2, 1), (10, 1, 2), (240, 84, 1), (240, 53, 2), (900, 450, 2), (900, 600, 1)],
    ids=str,
)
def test_long_rows_must_share_more_to_meet(length: int, shared: int, trees: int) -> None:
    rows = [(*range(shared), *range(first, first + length - shared)) for first in (1000, 3000)]
    assert len(token_trees(rows, most=4096)) == trees


def test_a_node_sees_its_ancestors_and_itself() -> None:
    (tree,) = token_trees([(5, 6, 7), (5, 6, 8, 9)], most=20)
    other = token_trees([(1,)], most=20)
    assert tree.ids == [5, 6, 7, 8, 9]
    ids_BT, depths_BT, sees_BTT = tree_tensors([tree, *other])
    assert ids_BT.tolist() == [[5, 6, 7, 8, 9], [1, 0, 0, 0, 0]] and depths_BT[0].tolist() == [0, 1, 2, 2, 3]
    seen = [set(row.nonzero()[:, 0].tolist()) for row in sees_BTT[0]]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 3, 4}]
    assert torch.equal(sees_BTT[1], torch.eye(5, dtype=torch.bool))  # padding sees itself: no softmax is empty


def causal_network(kind: str, **settings: Any) -> LanguageModel:
    """A network of transformers; `settings` of its configuration, or how it works attention out."""
    sizes: dict[str, Any] = SIZES | {"max_position_embeddings": LONGEST, "bos_token_id": 1}
    sizes |= {"rotary_dim": 4} if kind == "gptj" else {} if kind == "gpt2" else {"intermediate_size": 64}
    attention = settings.pop("attn_implementation", None)
    config = transformers.AutoConfig.for_model(kind, **(sizes | settings))
    torch.manual_seed(3)
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return Pretrained(sharp(network), "causal", kind)


def masked_network(kind: str, **settings: Any) -> LanguageModel:
    """A BERT of its kind; as a decoder, a causal model."""
    sizes = SIZES | {"intermediate_size": 64, "max_position_embeddings": 64, "embedding_size": 32}
    config = transformers.AutoConfig.for_model(kind, **(sizes | settings))
    made = transformers.AutoModelForCausalLM if config.is_decoder else transformers.AutoModelForMaskedLM
    torch.manual_seed(3)
    return Pretrained(sharp(made.from_config(config)), "causal" if config.is_decoder else "masked", kind)


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


def rotary(kind: str, **settings: Any) -> dict[str, Any]:
    """Rotary angles that a Llama stretches."""
    named = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 8}
    return {"rope_parameters": named | settings}


# every setting of the listed networks that changes what attention sees, adds or turns
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in TREE_READERS),
    ("gpt2", {"attn_implementation": "eager"}),
    ("gpt2", {"attn_implementation": "eager", "reorder_and_upcast_attn": True}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "add_cross_attention": True}),
    ("gpt_neox", {"attn_implementation": "eager", "use_parallel_residual": False, "attention_bias": False}),
    ("gpt_neox", {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    ("gptj", {"rotary_dim": 8}),
    ("llama", {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True}),
    ("llama", {"num_key_value_heads": 1, "attn_implementation": "eager"}),
    *(("llama", rotary(kind)) for kind in ("linear", "dynamic", "yarn")),
    ("llama", rotary("llama3", low_freq_factor=1.0, high_freq_factor=4.0)),
]


def counted(candidate: Candidate, read: list[int]) -> Candidate:
    """The same, which notes how many nodes the widest tree of each pass has."""
    in_trees = candidate.tree_log_probs
    assert in_trees is not None

    def noting(ids_BT: Tensor, *others: Tensor) -> Tensor:
        read.append(ids_BT.shape[1])
        return in_trees(ids_BT, *others)

    return replace(candidate, tree_log_probs=noting)


def scores_alone(candidate: Candidate, rows: list[ScoredRow]) -> np.ndarray:
    """Of every row by itself, read as a row."""
    alone = replace(candidate, tree_log_probs=None)
    return np.concatenate([token_scores(alone, [row], mask_id=None, max_tokens=256)[0] for row in rows])


@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=str)
def test_scores_in_trees_are_those_of_rows_alone(kind: str, settings: dict[str, Any]) -> None:
    rows, widths = some_rows(), []
    candidate = candidate_from_model(kind, causal_network(kind, **settings), "causal")
    found = token_scores(counted(candidate, widths), rows, mask_id=None, max_tokens=256)
    expected = scores_alone(candidate, rows)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=2e-5)
    assert expected.std() > 0.3 and max(widths) > LONGEST


@pytest.mark.parametrize("kind", TREE_READERS)
def test_trees_in_bf16_are_as_near_to_fp32_as_rows(kind: str) -> None:
    model, rows = causal_network(kind), some_rows()
    exact, rounded = (candidate_from_model(kind, model, "causal", precision=each) for each in ("fp32", "bf16"))  # type: ignore[arg-type]
    expected = scores_alone(exact, rows)
    in_trees = np.concatenate(token_scores(counted(rounded, []), rows, mask_id=None, max_tokens=256))
    assert 0 < np.abs(in_trees - expected).mean() < 1.3 * np.abs(scores_alone(rounded, rows) - expected).mean() < 0.1


@pytest.mark.parametrize("kind", TREE_READERS)
def test_a_tree_of_one_row_is_read_as_a_row(kind: str) -> None:
    model, row, met = causal_network(kind), (0, 6, 7, 8, 9), []
    body: Any = model.network.base_model
    body.register_forward_pre_hook(lambda module, given, named: met.append(named["attention_mask"]), with_kwargs=True)
    tensors = tree_tensors(token_trees([row], most=20))
    with torch.no_grad():
        found_BTD = tree_features(model, *tensors)
        expected_BTD = model.features(torch.tensor([row]), torch.zeros(1, 5, dtype=torch.int64), True)
    torch.testing.assert_close(found_BTD, expected_BTD, atol=2e-5, rtol=0)
    assert all(mask.shape == (1, 5) for mask in met) and len(met) == 2


def test_what_a_tree_would_change_is_read_in_rows() -> None:
    model = causal_network("llama", **rotary("longrope", short_factor=[1.0] * 4, long_factor=[3.0] * 4))
    assert not reads_trees(model) and candidate_from_model("llama", model, "causal").tree_log_probs is None
    model = causal_network("gpt2")
    assert reads_trees(model)
    model.network.config._attn_implementation = "flash_attention_2"  # which takes no mask
    assert not reads_trees(model)
    assert not reads_trees(masked_network("bert", is_decoder=True))


def test_a_narrowed_model_reads_trees() -> None:
    rows, widths = some_rows(), []
    model, narrowed = causal_network("llama"), Narrowed(causal_network("llama"), VOCABULARY - 1)
    rows = [row for row in rows if VOCABULARY - 1 not in row.ids]
    candidate = candidate_from_model("narrowed", narrowed, "causal")
    found = np.concatenate(token_scores(counted(candidate, widths), rows, mask_id=None, max_tokens=256))
    np.testing.assert_allclose(found, scores_alone(candidate, rows), atol=2e-5)
    assert widths and (found > scores_alone(candidate_from_model("whole", model, "causal"), rows)).all()


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("llama", {}), ("llama", {"num_kv_heads": 1}), ("gptj", {}), ("gptj", {"rotary_dim": 2}), ("elc_bert", {})],
    ids=str,
)
def test_our_own_architectures_read_trees_or_do_not(architecture: str, changes: dict[str, Any], corpus: Corpus) -> None:
    model = tiny.model(architecture, corpus, **changes)
    assert reads_trees(model) == (architecture != "elc_bert")
    for rows in ([(5, 6, 7, 8), (5, 6, 9)], [(7, 5, 6)]) if reads_trees(model) else ():
        (tree,) = token_trees(rows, most=20)
        with torch.no_grad():
            found_TD = tree_features(model, *tree_tensors([tree]))[0]
            for number, row in enumerate(rows):
                ids_BT = torch.tensor([row])
                alone_TD = model.features(ids_BT, torch.zeros_like(ids_BT), True)[0]
                torch.testing.assert_close(found_TD[tree.rows[number]], alone_TD, atol=2e-5, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"is_decoder": True, "add_cross_attention": True}], ids=str)
@pytest.mark.parametrize("kind", LIKE_BERT)
def test_the_last_block_is_right_where_it_is_wanted(kind: str, settings: dict[str, Any]) -> None:
    model = masked_network(kind, **settings)
    causal = bool(settings)
    ids_BT, segments_BT = torch.randint(5, VOCABULARY, (4, 9)), torch.zeros(4, 9, dtype=torch.int64)
    segments_BT[2, 6:] = -1
    wanted_BT = torch.zeros(4, 9, dtype=torch.bool)
    wanted_BT[[0, 1, 1, 2, 3], [4, 0, 8, 5, 3]] = True
    met: list[tuple[int, ...]] = []
    block = model.network.base_model.encoder.layer[-1]
    hook = block.intermediate.register_forward_hook(lambda module, given, made: met.append(tuple(made.shape)))
    with torch.no_grad():
        whole_BTD = model.features(ids_BT, segments_BT, causal)
        with only_wanted(model, wanted_BT):
            found_BTD = model.features(ids_BT, segments_BT, causal)
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
