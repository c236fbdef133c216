"""Phases of a run: lengths, batches, shares and sources that change on the way, and runs measured in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from corpora.config import CorpusConfig, SplitConfig, TokenizerConfig
from corpora.errors import InputRefused, RecipeError
from corpora.loader import plan_rows
from corpora.prepare import Corpus, prepare_corpus
from distill.config import PhaseConfig, TrainConfig
from distill.distributed import Processes
from distill.learner import Learner
from distill.phases import plan_run
from distill.plan_cache import target_shares
from distill.shares import read_views
from distill.step_data import require_rows, step_data
from distill.train import train

LONGER = [PhaseConfig(share=3, seq_len=16, batch_size=8), PhaseConfig(share=1, seq_len=32, batch_size=4)]


def config_of(**fields: object) -> TrainConfig:
    return TrainConfig(**({"view": "causal", "seq_len": 32, "batch_size": 8} | fields))  # type: ignore[arg-type]


def test_without_phases_rows_are_those_of_the_plan_of_rows(corpus: Corpus) -> None:
    stream = corpus.streams["train"]
    plan = plan_run(config_of(epochs=2.5), stream, seed=7)
    rows = plan_rows(stream, seq_len=32, batch_size=8, seed=7, random_offsets=True)
    assert plan.steps == rows.steps(2.5)
    assert [plan.rows(step) for step in range(plan.steps)] == [rows.rows(step) for step in range(plan.steps)]


def test_a_longer_row_and_fewer_of_them_after_three_quarters(corpus: Corpus) -> None:
    plan = plan_run(config_of(steps=40, phases=LONGER), corpus.streams["train"], seed=7)
    spans = [plan.spans(step) for step in range(40)]
    assert [(len(rows), rows[0][1] - rows[0][0]) for rows in spans] == [(8, 16)] * 30 + [(4, 32)] * 10
    assert plan.tokens == 40 * 128 and plan.steps == 40
    # the second phase begins epochs of its own: other folds and draws
    first, second = ({row.epoch for step in steps for row in plan.rows(step)} for steps in (range(30), range(30, 40)))
    assert max(first) + 1 == min(second)
    # an epoch of either phase reads no token twice
    for phase, steps in zip(plan.phases, (range(30), range(30, 40)), strict=True):
        seen = Counter(row.span for step in steps for row in plan.rows(step) if row.epoch == phase.first_epoch)
        assert max(seen.values()) == 1


def test_a_batch_grows_in_a_straight_line_and_no_row_is_skipped(corpus: Corpus) -> None:
    growing = [PhaseConfig(share=1, batch_size=2, end_batch_size=10)]
    plan = plan_run(config_of(steps=9, phases=growing), corpus.streams["train"], seed=7)
    assert [len(plan.rows(step)) for step in range(9)] == list(range(2, 11))
    in_a_row = [row for step in range(9) for row in plan.rows(step)]
    assert in_a_row == plan.phases[0].plan.numbered(0, sum(range(2, 11)))


@pytest.mark.parametrize("phases", [[], LONGER], ids=["one", "two"])
def test_words_are_the_most_that_do_not_go_beyond(corpus: Corpus, phases: list[PhaseConfig]) -> None:
    stream = corpus.streams["train"]
    for words in (400, 5_000):
        plan = plan_run(config_of(words=words, phases=phases), stream, seed=7)
        counted = [sum(stream.words(*span) for span in plan.spans(step)) for step in range(plan.steps)]
        assert plan.words(stream) == sum(counted) <= words
        more = plan_run(config_of(steps=plan.steps + 1, phases=phases), stream, seed=7)
        assert more.words(stream) > words
    with pytest.raises(InputRefused, match="one step reads"):
        plan_run(config_of(words=3, phases=phases), stream, seed=7)


def test_epochs_of_phases_read_as_many_tokens(corpus: Corpus) -> None:
    stream = corpus.streams["train"]
    plan = plan_run(config_of(epochs=3.0, phases=LONGER), stream, seed=7)
    assert plan.tokens == pytest.approx(3 * len(stream), rel=0.02)


def test_shares_of_views_change_with_the_phase(corpus: Corpus, processes: Processes) -> None:
    phases = [PhaseConfig(share=1, views={"masked": 1}), PhaseConfig(share=1, views={"masked": 1, "causal": 3})]
    config = config_of(view=None, views={"causal": 1}, steps=4, phases=phases)
    assert read_views(config) == ["causal", "masked"]
    plan = plan_run(config, corpus.streams["train"], seed=7)
    found = []
    for step in range(4):
        data = step_data(
            step,
            plan,
            corpus=corpus,
            config=config,
            cache=tiny.CACHE,
            terms=[tiny.CROSS_ENTROPY],
            processes=processes,
        )
        found.append(
            Counter(p.batch.view.objective for parts in data.micro_batches for p in parts for _ in p.batch.input_ids_BT)
        )
    assert found == [{"masked": 8}] * 2 + [{"causal": 6, "masked": 2}] * 2


def test_the_share_of_masks_changes_with_the_phase(corpus: Corpus, processes: Processes) -> None:
    """GPT-BERT's schedule, in steps: one token of two is hidden at first, then one of six, then as the cache has it."""
    phases = [PhaseConfig(share=1, num_folds=2), PhaseConfig(share=1, num_folds=6), PhaseConfig(share=1)]
    config = config_of(view="masked", dynamic_masks=True, steps=3, batch_size=32, phases=phases)
    plan = plan_run(config, corpus.streams["train"], seed=7)
    assert target_shares(config, 4) == {"masked": (1.0, pytest.approx((1 / 2 + 1 / 6 + 1 / 4) / 3))}
    seeds: list[set[int]] = []
    for step, folds in enumerate((2, 6, 4)):
        data = step_data(
            step,
            plan,
            corpus=corpus,
            config=config,
            cache=replace(tiny.CACHE, num_folds=4),
            terms=[tiny.CROSS_ENTROPY],
            processes=processes,
        )
        batches = [part.batch for parts in data.micro_batches for part in parts]
        assert {batch.view.num_folds for batch in batches} == {folds}
        ordinary = sum(int((batch.input_ids_BT != corpus.token_ids.begin).sum()) for batch in batches)
        hidden = sum(int(batch.has_target_BT.sum()) for batch in batches)
        assert hidden / ordinary == pytest.approx(1 / folds, abs=0.08)
        seeds.append({batch.view.mask_seed for batch in batches})
        assert {batch.view.fold for batch in batches} == {0} or folds == 4
    assert not seeds[0] & seeds[1] and not seeds[1] & seeds[2]


def test_rows_too_few_for_a_phase_are_refused_with_its_place() -> None:
    config = config_of(steps=4, phases=[PhaseConfig(share=1), PhaseConfig(share=1, batch_size=2, end_batch_size=1)])
    with pytest.raises(RecipeError, match=r"train\.phases\.1\.batch_size: 1 rows for 2 processes"):
        require_rows(config, 2)


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "text").mkdir()
    for source, word in (("easy", "cat"), ("hard", "synecdoche")):
        lines = [
            f'{{"id": "{source}-{n}", "text": "the {word} sees number {n} and the {word} goes home again"}}\n'
            for n in range(40)
        ]
        (folder / "text" / f"{source}.jsonl").write_text("".join(lines))
    config = CorpusConfig(source="folder", root=str(folder / "text"), words=None, split=SplitConfig(tune=0.1, test=0.1))
    return prepare_corpus(config, TokenizerConfig(vocab_size=300), seed=1, folder=folder / "prepared")


def test_a_curriculum_reads_the_sources_of_its_phase(two_sources: Corpus) -> None:
    stream = two_sources.streams["train"]
    phases = [PhaseConfig(share=1, sources=["easy"]), PhaseConfig(share=1, sources=["hard"]), PhaseConfig(share=1)]
    plan = plan_run(config_of(steps=30, seq_len=16, phases=phases), stream, seed=7)

    def sources(steps: range) -> set[str]:
        positions = np.concatenate([np.arange(*span) for step in steps for span in plan.spans(step)])
        return {stream.sources[number] for number in stream.document_sources[stream.document_of(positions)]}

    assert [sources(range(first, first + 10)) for first in (0, 10, 20)] == [{"easy"}, {"hard"}, {"easy", "hard"}]
    easy = plan.phases[0].plan
    read = [row.span for row in easy.numbered(0, easy.rows_per_epoch)]
    tokens = sum(stop - start for start, stop in read)
    number = stream.sources.index("easy")
    lengths = np.diff(stream.document_offsets)
    # every token of its documents once, but last pieces of one token, which predict nothing
    assert tokens >= lengths[stream.document_sources == number].sum() - len(read)
    assert easy.words(stream, 0, 3 * len(read)) == 3 * sum(stream.words(*span) for span in read)
    with pytest.raises(InputRefused, match="no document of 'train' is from poems, there are: easy, hard"):
        plan_run(config_of(steps=3, phases=[PhaseConfig(share=1, sources=["poems"])]), stream, seed=7)


def test_a_run_of_phases_goes_on_exactly(
    corpus: Corpus, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"steps": 12, "phases": LONGER, "checkpoint_every": 5}
    whole = tiny.run(corpus, tmp_path / "whole", tiny.CROSS_ENTROPY, **fields)
    train(whole, processes)
    update = Learner.update

    def stopping(stop: int) -> Callable[..., float]:
        def stopped(self: Learner, step: int, *more: Any) -> float:
            if step == stop:
                raise KeyboardInterrupt
            return update(self, step, *more)

        return stopped

    for stop in (7, 10):  # inside either phase
        again = replace(whole, folder=tmp_path / f"stopped-{stop}")
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(Learner, "update", stopping(stop))
            train(again, processes)
        train(again, processes)
        for name in ("model.safetensors", "metrics.jsonl"):
            assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
