"""Every preset against a plain reference: one sentence at a time, as each pipeline describes what it does.

The reference knows no Protocol: it says each pipeline's way in words of its own, with transformers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from benchmarks.protocol import PROTOCOLS
from benchmarks.request import Request
from benchmarks.scorer import candidate_from_model
from benchmarks.scoring import Scorer
from benchmarks.scoring_tokenizer import read_scoring_tokenizer
from benchmarks.speed_models import RandomModel, generated_pairs, save_random_model
from corpora.batch import Objective
from students.run_folder import load_model

TOLERANCE = 1e-4  # nats
SIZES = RandomModel(num_layers=2, hidden_size=32, num_heads=2, vocab_size=512, types=400, spread=0.3)
ROWS = [row for rows in generated_pairs(2, 12).values() for row in rows]
SENTENCES = [row[key] for row in ROWS for key in ("sentence_good", "sentence_bad")]
# tokenizers are trained on these too
MORE = [row[key] for rows in generated_pairs(2, 300, seed=9).values() for row in rows for key in row]
BARE = [Request("", sentence) for sentence in SENTENCES]
# one context for each pair, in several writings of the border
BORDERS = (("", " "), (" ", ""), ("\n", ""))
AFTER = [
    Request(SENTENCES[-1 - number // 2] + BORDERS[number // 2 % 3][0], BORDERS[number // 2 % 3][1] + sentence)
    for number, sentence in enumerate(SENTENCES)
]


@dataclass(frozen=True)
class Plain:
    """A model as transformers gives it."""

    folder: Path
    network: Any
    tokenizer: Any

    def log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        """Of one row, [positions, types]."""
        with torch.no_grad():
            return self.network(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)

    def read(self, text: str, **options: Any) -> Any:
        """Its encoding with offsets."""
        return self.tokenizer(text, return_offsets_mapping=True, **options)

    def ids(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def begin_or_end(self) -> int:
        """What stands before a text where nothing else does."""
        begin = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if begin is None else begin

    def special(self) -> set[int]:
        """Ids that stand around texts."""
        return {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id}


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "begins"])
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    folder = save_random_model(
        tmp_path_factory.mktemp("causal"), "causal", SIZES, [*SENTENCES, *MORE], begins=request.param
    )
    return Plain(folder, AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    folder = save_random_model(tmp_path_factory.mktemp("masked"), "masked", SIZES, [*SENTENCES, *MORE])
    network = AutoModelForMaskedLM.from_pretrained(folder).eval()
    # 2024's way puts an end token, which BERT's own tokenizer has none of: its separator takes the part
    return Plain(folder, network, AutoTokenizer.from_pretrained(folder))


def after_other_tokens(plain: Plain, ids: Sequence[int], first: int) -> list[float]:
    """log p(token | tokens before) of those from `first` on; the first of a row has none."""
    log_probs = plain.log_probs(ids)
    return [log_probs[position - 1, ids[position]].item() for position in range(max(first, 1), len(ids))]


def babylm2025_causal(plain: Plain, context: str, text: str) -> float:
    encoding = plain.read(context + text)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    counts = [position for position, (_, end) in enumerate(offsets) if end > len(context)]
    return sum(after_other_tokens(plain, ids, counts[0]))


def cuvee_causal(plain: Plain, context: str, text: str) -> float:
    """As 2025's, but something always stands before the first token."""
    encoding = plain.read(context + text, add_special_tokens=False)
    counts = sum(end > len(context) for _, end in encoding["offset_mapping"])
    return sum(after_other_tokens(plain, [plain.begin_or_end(), *encoding["input_ids"]], 0)[-counts:])


def lm_eval_causal(plain: Plain, context: str, text: str) -> float:
    """Also that of 2023 and 2024: white space at the border goes on; without a context there is a begin token."""
    if not context:
        ids = [plain.begin_or_end(), *plain.ids(" " + text)]
        return sum(after_other_tokens(plain, ids, 1))
    stripped = context.rstrip()
    alone, whole = (plain.tokenizer(each)["input_ids"] for each in (stripped, context + text))
    return sum(after_other_tokens(plain, whole, len(alone)))


def minicons_causal(plain: Plain, context: str, text: str) -> float:
    whole = plain.tokenizer(context + text)["input_ids"]
    alone = plain.tokenizer(context.rstrip())["input_ids"]
    found = after_other_tokens(plain, whole, len(alone) if context else 0)
    return sum(found) / len(found)


CAUSAL: dict[str, Callable[[Plain, str, str], float]] = {
    "cuvee": cuvee_causal,
    "babylm2025": babylm2025_causal,
    "babylm2024": lm_eval_causal,
    "babylm2023": lm_eval_causal,
    "lm-eval": lm_eval_causal,
    "minicons": minicons_causal,
}


def hidden_scores(plain: Plain, encoding: Any, positions: Sequence[int], pll: str, shift: int) -> list[float]:
    """One masked copy for each position, read at the output that predicts it."""
    ids, words = list(encoding["input_ids"]), encoding.word_ids()
    found = []
    for position in positions:
        copy = list(ids)
        for later in range(position, len(ids)):
            same = words[later] == words[position]
            if later == position or (pll == "within_word_l2r" and same):
                copy[later] = plain.tokenizer.mask_token_id
        found.append(plain.log_probs(copy)[position - shift, ids[position]].item())
    return found


def by_offsets(plain: Plain, context: str, text: str, pll: str, shift: int) -> list[float]:
    encoding = plain.read(context + text)
    counts = [position for position, (_, end) in enumerate(encoding["offset_mapping"]) if end > len(context)]
    return hidden_scores(plain, encoding, counts, pll, shift)


def by_tokens(plain: Plain, context: str, text: str, pll: str, shift: int) -> list[float]:
    """Whatever follows as many tokens as the context has alone, special ones left out."""
    encoding = plain.read(context + text)
    before = sum(identity not in plain.special() for identity in plain.tokenizer(context.rstrip())["input_ids"])
    real = [number for number, identity in enumerate(encoding["input_ids"]) if identity not in plain.special()]
    return hidden_scores(plain, encoding, real[before:], pll, shift)


def after_end(plain: Plain, context: str, text: str, pll: str, shift: int) -> list[float]:
    """2024: a sentence without context is conditioned on the end token, which is written before it."""
    if context:
        return by_tokens(plain, context, text, pll, shift)
    encoding = plain.read(plain.tokenizer.sep_token + " " + text)
    real = [number for number, identity in enumerate(encoding["input_ids"]) if identity not in plain.special()]
    return hidden_scores(plain, encoding, real, pll, shift)


MASKED: dict[str, tuple[Callable[..., list[float]], Callable[[Any], Any]]] = {
    "cuvee": (by_offsets, np.sum),
    "babylm2025": (by_offsets, np.sum),
    "babylm2024": (after_end, np.mean),
    "babylm2023": (by_tokens, np.sum),
    "minicons": (by_tokens, np.mean),
}


def our_scores(
    plain: Plain, requests: Sequence[Request], name: str, objective: Objective, *, pll: str = "original", shift: int = 0
) -> np.ndarray:
    protocol = replace(PROTOCOLS[name], pll=pll)  # type: ignore[arg-type]
    candidate = candidate_from_model(name, load_model(plain.folder), objective, shift=shift)  # type: ignore[arg-type]
    return Scorer(name, (candidate,), read_scoring_tokenizer(plain.folder), protocol, 512).scores(requests)


def require_equal(ours: np.ndarray, expected: Sequence[float]) -> None:
    """The same scores, and the same verdict on every pair, among verdicts of both kinds."""
    theirs = np.array(expected)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    assert np.array_equal(ours[::2] > ours[1::2], theirs[::2] > theirs[1::2])
    assert 0 < (theirs[::2] > theirs[1::2]).mean() < 1


@pytest.mark.parametrize("requests", [BARE, AFTER], ids=["pairs", "contexts"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_scores_are_the_references(name: str, requests: list[Request], causal: Plain) -> None:
    expected = [CAUSAL[name](causal, request.context, request.text) for request in requests]
    require_equal(our_scores(causal, requests, name, "causal"), expected)


@pytest.mark.parametrize(
    ("pll", "shift"), [("original", 0), ("within_word_l2r", 0), ("original", 1)], ids=["original", "l2r", "mntp"]
)
@pytest.mark.parametrize("requests", [BARE, AFTER], ids=["pairs", "contexts"])
@pytest.mark.parametrize("name", MASKED)
def test_masked_scores_are_the_references(
    name: str, requests: list[Request], pll: str, shift: int, masked: Plain
) -> None:
    read, reduced = MASKED[name]
    asked = requests[:20] + requests[-20:]  # of both paradigms
    expected = [reduced(read(masked, request.context, request.text, pll, shift)) for request in asked]
    require_equal(our_scores(masked, asked, name, "masked", pll=pll, shift=shift), expected)


def test_every_preset_has_a_reference() -> None:
    assert set(CAUSAL) == set(PROTOCOLS)
    assert set(MASKED) == set(PROTOCOLS) - {"lm-eval"}  # which scores no masked models


def test_the_references_differ(causal: Plain, masked: Plain) -> None:
    """Otherwise any preset could stand for any other."""
    bare = {name: CAUSAL[name](causal, "", SENTENCES[0]) for name in ("cuvee", "lm-eval", "minicons")}
    assert len({round(score, 2) for score in bare.values()}) == 3
    ways = (("original", 0), ("within_word_l2r", 0), ("original", 1))
    hidden = {round(sum(by_offsets(masked, "", SENTENCES[0], pll, shift)), 2) for pll, shift in ways}
    assert len(hidden) == len(ways)
