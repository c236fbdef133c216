"""Masked next-token prediction: the output before a hidden token predicts it, in training, caches, costs and scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch
from test_end_to_end import SMOKE, cuvee
from torch import Tensor, nn

from corpora.batch import NO_TARGET
from corpora.prepare import Corpus
from corpora.storage import read_json
from corpora.token_ids import TokenIds
from distill.config import TermConfig
from distill.distributed import Processes
from distill.evaluate import model_nats
from distill.phases import plan_run
from distill.step_data import Term, step_data
from students.config import ModelConfig
from students.head import Head
from students.language_model import LanguageModel
from students.registry import build_model
from students.run_folder import load_model, stored_masked_shift
from teachers.cache import cached_view
from teachers.config import CacheConfig

CACHE = CacheConfig(window=24, num_folds=3)
SIZES = "num_layers: 1, hidden_size: 32, num_heads: 2, max_positions: 64"
GPT_BERT = f"{{architecture: gpt_bert, {SIZES}}}"
TRAIN = "{view: masked, steps: 6, batch_size: 8, seq_len: 48, precision: fp32, lr: 1e-2}"


def test_the_shift_is_the_architectures_own_unless_it_is_said() -> None:
    sizes: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
    for architecture, said, expected in (
        ("gpt_bert", None, 1),
        ("gpt_bert", 0, 0),
        ("elc_bert", None, 0),
        ("elc_bert", 1, 1),
        ("llama", None, 0),
    ):
        config = ModelConfig(architecture=architecture, masked_shift=said, **sizes)  # type: ignore[arg-type]
        model = build_model(config, vocab_size=20, token_ids=TokenIds(), seed=0)
        assert model.masked_shift == expected
        assert getattr(model.network.config, "masked_shift", 0) == expected


@pytest.mark.parametrize("shift", [0, 1])
def test_rows_of_training_have_their_targets_there(corpus: Corpus, shift: int) -> None:
    """Every hidden token is the target of the output so many positions before it, and nothing else is one."""
    config = tiny.train_config(view="masked", steps=2, batch_size=6, seq_len=32)
    plan = plan_run(config, corpus.streams["train"], seed=1)
    data = step_data(
        0,
        plan,
        corpus=corpus,
        config=config,
        cache=CACHE,
        terms=[Term(TermConfig(loss="cross_entropy"), None)],
        processes=Processes(),
        masked_shift=shift,
    )
    for [part] in data.micro_batches:
        batch = part.batch
        hidden_BT = batch.input_ids_BT == corpus.token_ids.mask
        told_BT = batch.targets_BT != NO_TARGET
        length = hidden_BT.shape[1]
        # a row's last output may predict the token behind it
        assert torch.equal(told_BT[:, : length - shift], hidden_BT[:, shift:])
        text = torch.from_numpy(corpus.streams["train"].tokens(0, len(corpus.streams["train"])))
        assert torch.equal(text[batch.target_positions_N], batch.targets_BT[told_BT])


class Knowing(LanguageModel):
    """Gives the token that stands `knows` positions after each output nearly all of the probability."""

    def __init__(self, corpus: Corpus, knows: int, shift: Literal[0, 1]) -> None:
        super().__init__()
        self.weight = nn.Parameter(20 * torch.eye(corpus.vocab_size))
        self._knows, self._shift = knows, shift
        self._tokens = torch.from_numpy(corpus.streams["test"].tokens(0, len(corpus.streams["test"])))
        self._places: Tensor | None = None

    @property
    def masked_shift(self) -> Literal[0, 1]:
        return self._shift

    def head(self) -> Head:
        return Head(self.weight)

    def features(self, input_ids_BT: Tensor, segments_BT: Tensor, causal: bool) -> Tensor:
        raise AssertionError("asked for targets alone")

    def target_features(self, batch: Any) -> Tensor:
        stand_N = batch.target_positions_N - batch.view.shift + self._knows
        return nn.functional.one_hot(self._tokens[stand_N % len(self._tokens)], len(self.weight)).float()


def test_costs_of_a_stream_are_read_where_the_model_predicts(corpus: Corpus) -> None:
    """A model that knows the next token pays nothing as one of masked next-token prediction, and else everything."""
    positions_N, right_N = model_nats(Knowing(corpus, 1, 1), corpus, "test", "masked", CACHE)
    _, wrong_N = model_nats(Knowing(corpus, 1, 0), corpus, "test", "masked", CACHE)
    assert right_N.max() < 1e-4 and wrong_N.mean() > 5
    begins = corpus.streams["test"].tokens(0, len(corpus.streams["test"])) == corpus.token_ids.begin
    assert sorted(positions_N) == [place for place, begin in enumerate(begins) if not begin]


def test_caches_say_it_and_students_of_either_shift_meet_them(tmp_path: Path) -> None:
    """A GPT-BERT and an ELC-BERT teach one student of each kind, pooled by the position of the hidden token."""
    teachers = [f"teachers.gpt={{model: {GPT_BERT}, train: {TRAIN}}}", "teachers.llama=null", "teachers.gptj=null"]
    terms = "[{loss: cross_entropy}, {loss: forward_kl, members: {gpt: 1, elc: 1}}]"
    students = [
        f"students={{next: {{model: {GPT_BERT}, train: {TRAIN}, terms: {terms}}}}}",
        f"students.own={{model: {{architecture: elc_bert, {SIZES}}}, train: {TRAIN}, terms: {terms}}}",
    ]
    run = tmp_path / "run"
    code, told = cuvee("run", SMOKE, f"run_dir={run}", *teachers[:1], *students)
    assert code == 0, told
    shifts = {
        name: read_json(run / "caches" / name / "train" / "manifest.json")["fingerprint"]["view"]["shift"]
        for name in ("gpt", "elc")
    }
    assert shifts == {"gpt": 1, "elc": 0}
    [folder] = (run / "students").glob("next-*")
    assert stored_masked_shift(folder) == load_model(folder).masked_shift == 1
    assert json.loads((folder / "config.json").read_text())["masked_shift"] == 1
    assert stored_masked_shift(run / "teachers" / "elc") == 0
    report = (run / "report.md").read_text()
    assert "next" in report and "own" in report

    code, told = cuvee("score", str(folder), "--out", str(tmp_path / "scores"), "--items", "2")
    assert code == 0, told
    assert any(path.name.endswith("-mntp-cuvee") for path in (tmp_path / "scores").iterdir())


def test_a_view_names_its_shift() -> None:
    assert cached_view(CACHE, "masked", shift=1) == replace(cached_view(CACHE, "masked"), shift=1)
