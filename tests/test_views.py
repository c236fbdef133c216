"""Views are pure functions of position: folds, rows, windows and plans, whoever asks, in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MemoryStream
from hypothesis import given
from hypothesis import strategies as st

from corpora import masking
from corpora.batch import NO_POSITION, NO_TARGET, PADDING_SEGMENT, Batch, View, causal_view, masked_view
from corpora.loader import RowPlan
from corpora.rows import make_batch
from corpora.token_ids import TokenIds
from corpora.windows import document_windows, plan_windows, window_batches

IDS = TokenIds()
VOCAB = 50
CAUSAL = causal_view()
MASKED = masked_view(mask_seed=3, fold=0, num_folds=4, mean_span=2.5)
NEXT_MASKED = replace(MASKED, shift=1)  # masked next-token prediction
OBJECTIVES = {"causal": CAUSAL, "masked": MASKED}

views = st.builds(
    masked_view,
    mask_seed=st.integers(0, 2**63 - 1),
    fold=st.just(0),
    num_folds=st.integers(1, 8),
    mean_span=st.floats(1, 10),
)


def stream_of(*lengths: int, seed: int = 0) -> MemoryStream:
    """Documents of random ordinary tokens, of so many tokens each besides the begin token."""
    rng = np.random.default_rng(seed)
    return MemoryStream([rng.integers(len(IDS.special), VOCAB, length).tolist() for length in lengths])


def batch_of(stream: MemoryStream, view: View, *spans: tuple[int, int]) -> Batch:
    return make_batch(stream, spans or [(0, len(stream))], view, token_ids=IDS, vocab_size=VOCAB)


def every_fold(view: View) -> list[View]:
    return [replace(view, fold=fold) for fold in range(view.num_folds)]


def targets_by_position(batches: Sequence[Batch]) -> dict[int, int]:
    """Target of each position that has one; no position may have two."""
    pairs = [
        pair
        for batch in batches
        for pair in zip(batch.target_positions_N.tolist(), batch.targets_BT[batch.has_target_BT].tolist(), strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def ordinary_positions(stream: MemoryStream) -> dict[int, int]:
    """Token at every position but those of begin tokens."""
    return {position: token for position, token in enumerate(stream.all_tokens.tolist()) if token != IDS.begin}


# ---- masks --------------------------------------------------------------------------------------------------------


@given(views, st.lists(st.integers(0, 90), min_size=1, max_size=5))
def test_a_round_of_folds_hides_every_ordinary_position_once(view: View, lengths: list[int]) -> None:
    stream = stream_of(*lengths)
    hidden = [batch_of(stream, fold).target_positions_N.tolist() for fold in every_fold(view)]
    assert sorted(sum(hidden, [])) == list(ordinary_positions(stream))


@given(views, st.integers(0, 500), st.integers(0, 300), st.integers(0, 300))
def test_masks_of_a_part_are_the_masks_of_the_whole(view: View, start: int, length: int, more: int) -> None:
    view = replace(view, keep_share=0.2, random_share=0.2)
    stop = start + length
    for draw in (masking.span_starts, masking.folds, masking.corruption):
        assert np.array_equal(draw(start, stop, view), draw(0, stop + more, view)[start:stop])
    drawn = masking.random_tokens(0, stop + more, view, len(IDS.special), VOCAB)
    assert np.array_equal(masking.random_tokens(start, stop, view, len(IDS.special), VOCAB), drawn[start:stop])


@given(views, st.integers(0, 500))
def test_spans_tile_the_stream_and_share_a_fold(view: View, start: int) -> None:
    positions = np.arange(start, start + 300)
    spans = masking.span_starts(start, start + 300, view)
    assert (spans <= positions).all() and (positions - spans < masking.BLOCK).all()
    assert (np.diff(spans) >= 0).all()
    folds = masking.folds(start, start + 300, view)
    assert all(len(set(folds[spans == span])) == 1 for span in np.unique(spans))


@pytest.mark.parametrize("num_folds", [3, 7])
def test_each_fold_hides_its_share(num_folds: int) -> None:
    view = masked_view(mask_seed=1, fold=0, num_folds=num_folds, mean_span=1.0)
    shares = np.bincount(masking.folds(0, 200_000, view), minlength=num_folds) / 200_000
    # five standard deviations of a binomial share
    assert np.abs(shares - 1 / num_folds).max() < 5 * np.sqrt((1 / num_folds) * (1 - 1 / num_folds) / 200_000)


@pytest.mark.parametrize("mean_span", [1.0, 2.0, 3.5])
def test_spans_have_the_mean_length_asked_for(mean_span: float) -> None:
    view = masked_view(mask_seed=1, fold=0, num_folds=3, mean_span=mean_span)
    spans = len(np.unique(masking.span_starts(0, 128_000, view)))
    # a block's first position always begins a span
    expected = 128_000 / masking.BLOCK * (1 + (masking.BLOCK - 1) / mean_span)
    assert spans == pytest.approx(expected, rel=0.02)
    assert 128_000 / spans == pytest.approx(mean_span, rel=0.05)


def test_other_seeds_make_other_rounds() -> None:
    rounds = [masking.folds(0, 5000, replace(MASKED, mask_seed=seed)) for seed in (3, 4)]
    assert 0.2 < (rounds[0] == rounds[1]).mean() < 0.3  # of four folds: as often as chance has it


@pytest.mark.parametrize("special", IDS.special)
def test_special_tokens_are_never_hidden(special: int) -> None:
    stream = MemoryStream([[special, 10, special, 11] * 20])
    for view in every_fold(MASKED):
        batch = batch_of(stream, view)
        assert special not in batch.targets_BT[batch.has_target_BT].tolist()
        assert (batch.input_ids_BT[0, stream.all_tokens == special] == special).all()


# ---- noise --------------------------------------------------------------------------------------------------------

NOISY = replace(MASKED, mean_span=1.0, keep_share=0.1, random_share=0.1)


def test_noise_keeps_and_replaces_its_shares() -> None:
    stream = stream_of(100_000)
    kept = replaced = masked = 0
    for view in every_fold(NOISY):
        batch = batch_of(stream, view)
        hidden = batch.has_target_BT
        inputs, targets = batch.input_ids_BT[hidden], batch.targets_BT[hidden]
        kept += int((inputs == targets).sum())
        masked += int((inputs == IDS.mask).sum())
        replaced += int(((inputs != targets) & (inputs != IDS.mask)).sum())
        assert torch.equal(batch.input_ids_BT[~hidden], torch.from_numpy(stream.all_tokens)[~hidden[0]])
    ordinary = VOCAB - len(IDS.special)
    assert masked / 100_000 == pytest.approx(0.8, abs=0.01)
    assert replaced / 100_000 == pytest.approx(0.1 * (1 - 1 / ordinary), abs=0.01)  # a draw may hit the token itself
    assert kept / 100_000 == pytest.approx(0.1 * (1 + 1 / ordinary), abs=0.01)


@given(st.integers(0, 150), st.integers(1, 100))
def test_noise_is_addressed(start: int, length: int) -> None:
    stream = stream_of(300)
    whole, part = batch_of(stream, NOISY), batch_of(stream, NOISY, (start, start + length))
    assert torch.equal(part.input_ids_BT[0], whole.input_ids_BT[0, start : start + length])
    assert masking.random_tokens(0, 5000, NOISY, len(IDS.special), VOCAB).min() == len(IDS.special)
    assert masking.random_tokens(0, 5000, NOISY, len(IDS.special), VOCAB).max() == VOCAB - 1


def test_without_noise_hidden_tokens_are_masks_and_the_others_themselves() -> None:
    stream = stream_of(40, 40)
    batch = batch_of(stream, MASKED)
    hidden = batch.has_target_BT
    assert hidden.any()
    assert (batch.input_ids_BT[hidden] == IDS.mask).all()
    assert torch.equal(batch.input_ids_BT[~hidden], torch.from_numpy(stream.all_tokens)[~hidden[0]])


# ---- rows ---------------------------------------------------------------------------------------------------------


def test_a_causal_row_written_out() -> None:
    stream = MemoryStream([[10, 11], [12, 13, 14]])  # positions 0 to 2 and 3 to 6
    batch = batch_of(stream, CAUSAL, (0, 5), (4, 7))
    none = NO_TARGET
    assert batch.input_ids_BT.tolist() == [[1, 10, 11, 1, 12], [12, 13, 14, 0, 0]]
    assert batch.targets_BT.tolist() == [[10, 11, none, 12, 13], [13, 14, none, none, none]]
    assert batch.target_positions_BT.tolist() == [[1, 2, -1, 4, 5], [5, 6, -1, -1, -1]]
    assert batch.segments_BT.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, -1, -1]]
    assert (batch.view, batch.stream, len(batch)) == (CAUSAL, "train", 2)


def test_next_masked_targets_are_read_from_the_output_before() -> None:
    stream = stream_of(30, 30)
    here, before = batch_of(stream, MASKED), batch_of(stream, NEXT_MASKED)
    assert torch.equal(here.input_ids_BT, before.input_ids_BT)
    assert torch.equal(here.targets_BT[:, 1:], before.targets_BT[:, :-1])
    assert torch.equal(here.target_positions_BT[:, 1:], before.target_positions_BT[:, :-1])
    assert (before.targets_BT[:, -1] == NO_TARGET).all()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.data())
def test_a_target_is_the_token_of_its_position_in_every_view(lengths: list[int], data: st.DataObject) -> None:
    stream = stream_of(*lengths)
    start = data.draw(st.integers(0, len(stream) - 1))
    stop = data.draw(st.integers(start + 1, len(stream)))
    documents = stream.document_of(np.arange(len(stream)))
    for view in (CAUSAL, MASKED, NEXT_MASKED):
        batch = batch_of(stream, view, (start, stop), (0, len(stream)))
        assert torch.equal(batch.targets_BT == NO_TARGET, batch.target_positions_BT == NO_POSITION)
        for row, first in enumerate((start, 0)):
            for index in torch.nonzero(batch.has_target_BT[row]).flatten().tolist():
                position = int(batch.target_positions_BT[row, index])
                assert position == first + index + view.shift
                assert int(batch.targets_BT[row, index]) == stream.all_tokens[position] != IDS.begin
                assert documents[position] == documents[first + index]


def test_a_row_may_predict_the_token_just_after_it() -> None:
    stream = stream_of(30)
    assert batch_of(stream, CAUSAL, (0, 10)).target_positions_BT[0, -1] == 10
    assert batch_of(stream, CAUSAL, (21, 31)).target_positions_BT[0, -1] == NO_POSITION  # the stream ends there


@pytest.mark.parametrize("view", [CAUSAL, MASKED, NEXT_MASKED], ids=["causal", "masked", "next_masked"])
def test_padding_is_a_segment_of_its_own_and_has_no_targets(view: View) -> None:
    stream = stream_of(20, 20)
    padded, alone = batch_of(stream, view, (2, 9), (0, 42)), batch_of(stream, view, (2, 9))
    assert torch.equal(padded.input_ids_BT[0, :7], alone.input_ids_BT[0])
    assert torch.equal(padded.targets_BT[0, :7], alone.targets_BT[0])
    assert (padded.input_ids_BT[0, 7:] == IDS.pad).all()
    assert (padded.segments_BT[0, 7:] == PADDING_SEGMENT).all() and (padded.segments_BT[0, :7] == 0).all()
    assert (padded.targets_BT[0, 7:] == NO_TARGET).all()


def test_a_view_that_is_not_isolated_has_one_segment_and_the_same_targets() -> None:
    stream = stream_of(5, 6, 7)
    isolated, crossed = batch_of(stream, CAUSAL), batch_of(stream, replace(CAUSAL, isolated=False))
    assert isolated.segments_BT[0].tolist() == [0] * 6 + [1] * 7 + [2] * 8
    assert crossed.segments_BT[0].tolist() == [0] * 21
    assert torch.equal(isolated.targets_BT, crossed.targets_BT)


def test_the_scheme_of_a_view_leaves_out_the_fold_alone() -> None:
    assert MASKED.scheme() == replace(MASKED, fold=2).scheme()
    assert MASKED.scheme() != replace(MASKED, mask_seed=4).scheme()
    assert "fold" not in MASKED.scheme()


# ---- windows ------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(2, 17),
    st.sampled_from(["causal", "masked"]),
    st.integers(1, 5),
)
def test_windows_give_every_target_exactly_once(lengths: list[int], size: int, objective: str, rows: int) -> None:
    stream = stream_of(*lengths)
    windows = plan_windows(stream, size, objective=objective)
    assert all(window.stop - window.start <= size for window in windows)
    kept = Counter(position for window in windows for position in range(window.keep_start, window.keep_stop))
    assert kept == Counter(range(len(stream)))
    view = OBJECTIVES[objective]
    batches = [
        batch
        for fold in every_fold(view)
        for batch in window_batches(stream, windows, fold, rows=rows, token_ids=IDS, vocab_size=VOCAB)
    ]
    assert all(len(batch) <= rows for batch in batches)
    assert targets_by_position(batches) == ordinary_positions(stream)


@given(st.integers(1, 120), st.integers(2, 16))
def test_a_document_that_fits_is_read_once(length: int, size: int) -> None:
    for objective in OBJECTIVES:
        windows = list(document_windows(0, length, size, objective=objective))
        # the last causal output predicts the token after its window, so one token more fits
        assert (len(windows) == 1) == (length <= size + (objective == "causal"))


@given(st.integers(1, 120), st.integers(1, 12))
def test_causal_targets_have_at_least_half_a_window_of_context(length: int, half: int) -> None:
    for window in document_windows(0, length, 2 * half, objective="causal"):
        assert window.start == 0 or window.keep_start - window.start >= half


@given(st.integers(1, 120), st.integers(2, 17))
def test_the_masked_record_that_is_kept_is_the_one_farthest_from_an_edge(length: int, size: int) -> None:
    windows = list(document_windows(0, length, size, objective="masked"))

    def distance(start: int, stop: int, position: int) -> int:
        # the document's own ends are no edges: there is nothing beyond them to miss
        left = position - start if start > 0 else length
        right = stop - 1 - position if stop < length else length
        return min(left, right)

    for window in windows:
        for position in range(window.keep_start, window.keep_stop):
            best = max(
                distance(other.start, other.stop, position) for other in windows if other.start <= position < other.stop
            )
            assert distance(window.start, window.stop, position) == best


# ---- plans --------------------------------------------------------------------------------------------------------

plans = st.builds(
    RowPlan,
    num_tokens=st.integers(9, 200),
    seq_len=st.integers(2, 8),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    random_offsets=st.booleans(),
)


def rows_of(plan: RowPlan, epoch: int) -> list[tuple[int, int]]:
    """The rows of an epoch, read off a plan of one row a step."""
    single = replace(plan, batch_size=1)
    first = epoch * plan.rows_per_epoch
    return [span for step in range(first, first + plan.rows_per_epoch) for span in single.spans(step)]


@given(plans, st.integers(0, 30))
def test_rows_are_whole_and_inside_the_stream(plan: RowPlan, step: int) -> None:
    spans = plan.spans(step)
    assert len(spans) == plan.batch_size
    assert all(stop - start == plan.seq_len and 0 <= start and stop <= plan.num_tokens for start, stop in spans)


@given(plans, st.integers(0, 5))
def test_an_epoch_reads_every_row_once(plan: RowPlan, epoch: int) -> None:
    starts = sorted(start for start, _ in rows_of(plan, epoch))
    assert np.diff(starts).tolist() == [plan.seq_len] * (plan.rows_per_epoch - 1)
    if not plan.random_offsets:
        assert starts[0] == 0 and plan.num_tokens - starts[-1] < 2 * plan.seq_len


@given(plans, st.integers(0, 40))
def test_a_step_is_a_pure_function_of_its_number(plan: RowPlan, step: int) -> None:
    running = [plan.spans(number) for number in range(step + 1)]
    assert replace(plan).spans(step) == running[-1]  # resuming there, another plan object has read nothing before
    in_a_row = replace(plan, batch_size=1)
    first = step * plan.batch_size
    assert running[-1] == [in_a_row.spans(row)[0] for row in range(first, first + plan.batch_size)]


@given(plans, st.integers(0, 20))
def test_the_rows_do_not_depend_on_how_many_processes_share_them(plan: RowPlan, step: int) -> None:
    plan = replace(plan, batch_size=4 * plan.batch_size)
    for processes in (1, 2, 4):
        shares = [plan.spans(step)[rank::processes] for rank in range(processes)]
        assert sorted(sum(shares, [])) == sorted(plan.spans(step))
        assert len({len(share) for share in shares}) == 1


def test_epochs_and_seeds_differ() -> None:
    plan = RowPlan(num_tokens=1000, seq_len=8, batch_size=4, seed=1)
    assert rows_of(plan, 0) != rows_of(plan, 1)
    assert rows_of(plan, 0) != rows_of(replace(plan, seed=2), 0)
    offsets = {min(rows_of(plan, epoch))[0] for epoch in range(60)}
    assert offsets == set(range(8))  # each amount of context comes up


def test_steps_and_epochs_are_counted_in_rows() -> None:
    plan = RowPlan(num_tokens=1000, seq_len=8, batch_size=31, seed=1, random_offsets=False)
    assert plan.rows_per_epoch == 125
    assert plan.steps(2.0) == 8
    assert plan.steps(0.001) == 1
    assert [plan.rows(step)[0].epoch for step in (0, 4, 5, 9)] == [0, 0, 1, 2]
    assert [row.epoch for row in plan.rows(4)] == [0] + [1] * 30  # a step may meet two epochs


@given(st.integers(2, 12), st.integers(1, 3), st.booleans(), st.integers(0, 20))
def test_tiny_streams_have_a_row(seq_len: int, more: int, random_offsets: bool, step: int) -> None:
    plan = RowPlan(num_tokens=seq_len + more, seq_len=seq_len, batch_size=2, seed=1, random_offsets=random_offsets)
    assert plan.rows_per_epoch >= 1
    stream = stream_of(plan.num_tokens - 1)
    batch = batch_of(stream, CAUSAL, *plan.spans(step))
    assert batch.input_ids_BT.shape == (2, seq_len)
    assert batch.has_target_BT.any()


def test_what_is_drawn_is_what_it_was() -> None:
    """Golden: caches and runs on disk rest on these draws. If you mean to change them, raise storage.FORMAT_VERSION."""
    view = masked_view(mask_seed=1, fold=0, num_folds=3, mean_span=3.0)
    assert masking.folds(1000, 1012, view).tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0]
    plan = RowPlan(num_tokens=200, seq_len=8, batch_size=6, seed=1)
    assert [start for start, _ in plan.spans(0)] == [22, 166, 142, 14, 150, 174]
