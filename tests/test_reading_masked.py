"""Reading of masked models is the challenge's of 2025: a plain reference in transformers, one word at a time.

Three masks stand behind what is read. The reference knows neither requests nor rows: it writes texts and reads them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from test_protocols import TOLERANCE, Plain, our_scores
from test_scoring import BEGIN, MASK, candidate, ids, scorer_of, word_pieces
from tiny import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForMaskedLM, AutoTokenizer

from benchmarks.choices import Choice, ChoiceTask, asked_order
from benchmarks.peers import Peer
from benchmarks.protocol import PROTOCOLS
from benchmarks.reading import MASKS, ReadingItem, reading_requests
from benchmarks.request import Request
from benchmarks.score_store import ScoreStore, key_of
from benchmarks.scored_rows import rows_of_requests
from benchmarks.speed_models import RandomModel, save_random_model
from benchmarks.strangers.sandboxed import SandboxedScorer
from corpora.errors import InputRefused

SIZES = RandomModel(num_layers=2, hidden_size=32, num_heads=2, vocab_size=512, types=60, spread=0.3)
SENTENCES = [
    "Arthur placed the silverware on the table.",
    "She had been waiting for a café, its doors were closed!",
    "Nobody's unhappiness lasted for very long",
]
WORDS = [
    (" ".join(words[:number]), words[number])
    for words in (sentence.split(" ") for sentence in SENTENCES)
    for number in range(1, len(words))
]
REQUESTS = [Request(context, word, apart=True, masks=MASKS) for context, word in WORDS]


@pytest.fixture(scope="module", params=["word pieces", "bytes"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """A BERT between [CLS] and [SEP], and one whose tokenizer is byte-level and puts nothing around a text."""
    folder = save_random_model(tmp_path_factory.mktemp("reader"), "masked", SIZES, [*SENTENCES, "the and with nothing"])
    if request.param == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<mask>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator(SENTENCES, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return Plain(folder, AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))


def reference(plain: Plain, context: str, word: str, shift: int, masks: int = 3) -> float:
    """Log-likelihood of a word: each of its tokens is asked for where the first mask stands, and then written."""
    tokenizer = plain.tokenizer
    written, found = context, 0.0
    for number, token in enumerate(plain.ids(word)):
        text = tokenizer.decode(token)
        asked = plain.ids(word if number == 0 else text)[0]
        read = tokenizer(written + masks * tokenizer.mask_token)["input_ids"]
        behind = 0 if read[-1] == tokenizer.mask_token_id else 1
        found += plain.log_probs(read)[len(read) - behind - masks - shift, asked].item()
        written += text
    return found


@pytest.mark.parametrize("shift", [0, 1], ids=["masked", "mntp"])
def test_words_and_their_pieces_score_as_in_the_challenge(plain: Plain, shift: Literal[0, 1]) -> None:
    expected = [reference(plain, context, word, shift) for context, word in WORDS]
    found = our_scores(plain, REQUESTS, "babylm2025", "masked", shift=shift)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    pieces = [len(plain.ids(word)) for _, word in WORDS]
    assert max(pieces) > 3 and pieces.count(1) > 0, "words of one token and of several"


def test_the_reference_is_neither_of_the_other_ways(plain: Plain) -> None:
    """Otherwise any of them could stand for the challenge's."""
    ways = [
        our_scores(plain, REQUESTS, "babylm2025", "masked"),
        our_scores(plain, REQUESTS, "babylm2025", "masked", shift=1),
        our_scores(plain, [replace(request, masks=1) for request in REQUESTS], "babylm2025", "masked"),
        our_scores(plain, [replace(request, masks=0) for request in REQUESTS], "babylm2025", "masked"),
    ]
    for number, one in enumerate(ways):
        for other in ways[:number]:
            # one mask and none differ for words of several tokens alone
            assert (np.abs(one - other) > 0.01).mean() > 0.5
    # tokens joined as they are, not written out and read anew
    several = [index for index, (_, word) in enumerate(WORDS) if len(plain.ids(word)) > 1]
    joined = [_joined(plain, *WORDS[index]) for index in several]
    assert (np.abs(ways[0][several] - joined) > 0.01).any()


def _joined(plain: Plain, context: str, word: str) -> float:
    ids, found = plain.tokenizer(context)["input_ids"], 0.0
    mask = plain.tokenizer.mask_token_id
    trailing = [ids.pop()] if ids[-1] == plain.tokenizer.sep_token_id else []
    for token in plain.ids(word):
        found += plain.log_probs([*ids, mask, mask, mask, *trailing])[len(ids), token].item()
        ids.append(token)
    return found


def test_rows_by_hand() -> None:
    tokenizer = byte_tokenizer()
    mask, letter = tokenizer.mask_id, {name: ord(name) + 4 for name in "abcd"}
    (rows,) = rows_of_requests([Request("ab", "cd", masks=3)], tokenizer, PROTOCOLS["babylm2025"], masked=True)
    a, b, c, d = letter.values()
    assert [row.ids for row in rows] == [(a, b, c, mask, mask), (a, b, c, d, mask, mask)]
    assert [row.hidden for row in rows] == [((2,),), ((3,),)] and [row.targets for row in rows] == [(2,), (3,)]
    (rows,) = rows_of_requests(
        [Request("a big", "cat", masks=2)], word_pieces(framed=True), PROTOCOLS["cuvee"], masked=True
    )
    assert [row.ids for row in rows] == [ids("[CLS]", "a", "big", "cat", "[MASK]", "[SEP]")]


def test_who_sees_no_more_anyway_is_asked_as_ever() -> None:
    requests = [Request("a big", "cats", apart=True), Request("a", "big cat", apart=True)]
    masks = [replace(request, masks=3) for request in requests]
    for protocol in PROTOCOLS.values():
        causal = scorer_of(candidate("causal"), protocol=protocol)
        assert np.array_equal(causal.scores(masks), causal.scores(requests))
    hybrid, masked = scorer_of(candidate("causal"), candidate(shift=1)), scorer_of(candidate(shift=1))
    together = scorer_of(candidate("causal")).scores(requests) + masked.scores(masks)
    np.testing.assert_allclose(hybrid.scores(masks), together)
    assert not np.allclose(masked.scores(masks), masked.scores(requests))


def test_one_token_by_hand() -> None:
    """Read where the first of two masks stands, which is the place of the word."""
    part = candidate()
    (found,) = scorer_of(part).scores([Request("a big", "cat", masks=2)])
    row = torch.tensor([[BEGIN, *ids("a", "big"), MASK, MASK]])
    wanted = torch.arange(5)[None] == 3
    assert found == pytest.approx(part.log_probs(row, torch.zeros_like(row), wanted)[0, ids("cat")[0]].item())


def test_a_text_without_a_token_and_a_tokenizer_without_masks_are_refused() -> None:
    with pytest.raises(InputRefused, match="word 3: no token to score under the protocol cuvee"):
        scorer_of(candidate()).scores([Request("a big", " ", masks=3)], places=["word 3"])
    nameless = replace(scorer_of(candidate()), tokenizer=word_pieces(names={"bos_token": "<s>"}))
    with pytest.raises(InputRefused, match="the tokenizer has no mask token"):
        nameless.scores([Request("a big", "cat", masks=3)])


def test_reading_asks_with_masks_and_the_protocol_says_so() -> None:
    item = ReadingItem(context="Arthur", word="placed", previous=None, numbers={}, place="")
    assert reading_requests([item]) == [Request("Arthur", "placed", apart=True, masks=3)]
    for protocol in PROTOCOLS.values():
        assert any("three mask tokens stand behind the context" in line for line in protocol.lines(masked=True))
        assert not any("mask token" in line for line in protocol.lines(masked=False))


# a request with masks is another one than without


def test_keys_of_stored_scores_know_masks_and_are_else_what_they_were(tmp_path: Path) -> None:
    keys = {
        Request("a", "b"): "22b696186df04e7d0b296131d2809c03",
        Request("a", "b", apart=True): "5e19f8a435dc833cd0bf704d8eb6a2d4",
        Request("a", "b", mean=True): "b99a474df684e98081463d8dc7337d55",
        Request("a", "b", apart=True, mean=True): "955a2c88c068fa77bb088c55a7103650",
    }
    assert {request: key_of(request).hex() for request in keys} == keys
    every = [replace(request, masks=masks) for request in keys for masks in range(4)]
    assert len({key_of(request) for request in every}) == 16
    store = ScoreStore(tmp_path, {"weights": "w"})
    store.add({every[1]: -1.0})
    assert store.find(every) == {every[1]: -1.0}


def test_options_with_and_without_masks_are_asked_in_one_order() -> None:
    options = [Request("a", "b", masks=masks) for masks in (0, 3)]
    items = [Choice(options=tuple(order)) for order in (options, options[::-1])]
    orders = [asked_order([ChoiceTask("uid", "", "", (item,))]) for item in items]
    assert orders[0] == orders[1] == options


def test_a_sandbox_is_asked_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [*REQUESTS[:2], Request("a", "b", mean=True), Request("", "c")]
    asked: list[Any] = []

    def answer(command: list[str], **limits: Any) -> dict[str, Any]:
        asked.extend(json.loads(Path(command[-1]).read_text())["requests"])
        return {"scores": [-1.0] * len(asked)}

    monkeypatch.setattr("benchmarks.strangers.sandboxed.run_sandboxed_json", answer)
    scorer = SandboxedScorer("guest", tmp_path, "masked", PROTOCOLS["babylm2025"], 99, 1.0, 1)
    assert scorer.scores(requests).tolist() == [-1.0] * 4
    assert [Request(*request) for request in asked] == requests


def test_a_peer_is_not_asked_what_it_cannot_say() -> None:
    peer = Peer.__new__(Peer)
    for request in (REQUESTS[0], Request("a", "b", mean=True)):
        with pytest.raises(AssertionError, match="as peers read"):
            peer.scores([request])
