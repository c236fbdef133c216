"""The loss of a step against the same loss written out in plain PyTorch, and against itself divided up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional

from corpora.batch import Batch
from corpora.errors import RecipeError
from corpora.prepare import Corpus
from corpora.rows import make_batch
from distill import fused
from distill.config import ScheduleConfig, TrainConfig
from distill.distributed import Processes
from distill.objective import Objective, Part, feature_projections
from distill.phases import plan_run
from distill.shares import view_shares
from distill.step_data import StepData, Term, require_rows, step_data, step_view, terms_of
from students.buildable import Buildable
from teachers.cache import CachedTeacher

STEP, STEPS = 3, 9
MIXED = {"causal": 1.0, "masked": 3.0}


@pytest.fixture(scope="module")
def teachers(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CachedTeacher]:
    """Caches of one teacher of each architecture."""
    folder = tmp_path_factory.mktemp("teachers")
    objectives = {"llama": "causal", "gptj": "causal", "elc_bert": "masked"}
    return {
        name: tiny.cached(
            tiny.model(name, corpus, seed=9), tiny.cache_key(corpus, objective=objective), folder / name, name
        )
        for name, objective in objectives.items()
    }


def data_of(corpus: Corpus, config: TrainConfig, terms: Sequence[Term], processes: Processes) -> StepData:
    """The rows of one step, with their signals and weights."""
    plan = plan_run(replace(config, steps=STEPS), corpus.streams["train"], seed=5)
    numbered = [replace(term, number=number) for number, term in enumerate(terms)]
    return step_data(
        STEP,
        plan,
        corpus=corpus,
        config=config,
        cache=tiny.CACHE,
        terms=numbered,
        processes=processes,
    )


def value_and_gradients(model: Buildable, data: StepData) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """The loss, each term's sum and the gradients, as training accumulates them."""
    model.zero_grad()
    total, sums = 0.0, dict.fromkeys(data.counts, 0.0)
    for parts in data.micro_batches:
        loss, part_sums = Objective(model)(parts)
        loss.backward()
        total += loss.item()
        for name, value in part_sums.items():
            sums[name] += value.item()
    return total, sums, gradients(model)


def gradients(model: Buildable) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values()), "a parameter is outside the graph"
    return {name: gradient.clone() for name, gradient in found.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < tolerance * max(scale, 1), name


# plain PyTorch


def plain_teacher_probs(term: Term, batch: Batch) -> Tensor:
    """Softmax at the term's temperature of each member, pooled; float64, [N, V]."""
    config, ensemble = term.config, term.ensemble
    pooled = None
    for member, weight in zip(ensemble.members, ensemble.weights, strict=True):
        features = member.signal(batch.target_positions_BT[batch.targets_BT != -100]).features_ND.double()
        logits = features @ member.head.weight_VD.double().T
        logits = logits if member.head.bias_V is None else logits + member.head.bias_V.double()
        probs = torch.softmax(logits / config.temperature, dim=-1)
        share = probs * weight if config.pool == "mixture" else probs**weight
        pooled = share if pooled is None else (pooled + share if config.pool == "mixture" else pooled * share)
    return pooled / pooled.sum(-1, keepdim=True)


def plain_loss(model: Buildable, batches: dict[str, Batch], terms: Sequence[Term], shares: dict[str, float]) -> Tensor:
    """Every view alone: all logits of all positions, each term's mean over the targets, then the shares."""
    total = torch.zeros((), dtype=torch.float64)
    for view, batch in batches.items():
        features = model.features(batch.input_ids_BT, batch.segments_BT, causal=view == "causal")
        weight, bias, *_ = model.head()
        logits = torch.einsum("btd,vd->btv", features, weight).double()
        logits = logits if bias is None else logits + bias.double()
        for term in terms:
            if term.config.view not in (None, view):
                continue
            if term.ensemble is None:
                value = functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=-100)
            else:
                temperature = term.config.temperature
                student = functional.log_softmax(logits[batch.targets_BT != -100] / temperature, dim=-1)
                teacher = plain_teacher_probs(term, batch)
                value = functional.kl_div(student, teacher, reduction="batchmean") * temperature**2
            total = total + shares[view] * term.config.weight * value
    return total


def cases(teachers: dict[str, CachedTeacher]) -> dict[str, tuple[str, dict, list[Term]]]:
    """Student, fields of its TrainConfig, and terms."""
    plain = replace(tiny.CROSS_ENTROPY, config=replace(tiny.CROSS_ENTROPY.config, weight=0.5))
    llama, gptj, elc = teachers["llama"], teachers["gptj"], teachers["elc_bert"]
    return {
        "cross-entropy": ("llama", {"view": "causal"}, [tiny.CROSS_ENTROPY]),
        "masked cross-entropy": ("elc_bert", {"view": "masked"}, [tiny.CROSS_ENTROPY]),
        "one teacher": ("gptj", {"view": "causal"}, [plain, tiny.distillation(llama, weight=0.5)]),
        "mixture, T 2": ("llama", {"view": "causal"}, [plain, tiny.distillation(llama, gptj, temperature=2.0)]),
        "product, T 2": (
            "llama",
            {"view": "causal"},
            [plain, tiny.distillation(llama, gptj, pool="product", temperature=2.0, weight=0.3)],
        ),
        "both kinds of teacher": (
            "elc_bert",
            {"view": "masked"},
            [plain, tiny.distillation(elc, weight=0.3), tiny.distillation(llama, gptj, pool="product", weight=0.2)],
        ),
        "mixed views": (
            "elc_bert",
            {"views": MIXED},
            [
                plain,
                tiny.distillation(elc, weight=0.3, view="masked"),
                tiny.distillation(llama, gptj, weight=0.2, temperature=2.0),
            ],
        ),
    }


CASES = (
    "cross-entropy",
    "masked cross-entropy",
    "one teacher",
    "mixture, T 2",
    "product, T 2",
    "both kinds of teacher",
    "mixed views",
)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, teachers: dict[str, CachedTeacher]) -> tuple[str, dict, list[Term]]:
    return cases(teachers)[request.param]


def test_the_loss_and_its_gradient_are_those_of_plain_pytorch(
    corpus: Corpus, processes: Processes, case: tuple[str, dict, list[Term]]
) -> None:
    architecture, fields, terms = case
    model, config = tiny.model(architecture, corpus), tiny.train_config(**fields)
    data = data_of(corpus, config, terms, processes)
    loss, sums, found = value_and_gradients(model, data)

    batches = {part.batch.view.objective: part.batch for part in data.micro_batches[0]}
    expected = plain_loss(model, batches, terms, view_shares(config))
    model.zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert_same(found, gradients(model))
    assert set(sums) == {name for view in batches for name in terms_of(view, terms)}


def test_chunks_of_rows_change_nothing(
    corpus: Corpus,
    processes: Processes,
    case: tuple[str, dict, list[Term]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    architecture, fields, terms = case
    model = tiny.model(architecture, corpus)
    data = data_of(corpus, tiny.train_config(**fields), terms, processes)
    whole = value_and_gradients(model, data)
    monkeypatch.setattr(fused, "CHUNK_BYTES", {"cpu": 7 * 4 * corpus.vocab_size})
    monkeypatch.setattr(fused, "LEAST_ROWS", 1)
    chunked = value_and_gradients(model, data)
    assert chunked[0] == pytest.approx(whole[0], rel=1e-6)
    assert chunked[1] == pytest.approx(whole[1], rel=1e-6)
    assert_same(chunked[2], whole[2])


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_micro_batches_change_nothing(
    corpus: Corpus, processes: Processes, case: tuple[str, dict, list[Term]], rows: int
) -> None:
    architecture, fields, terms = case
    model = tiny.model(architecture, corpus)
    whole = value_and_gradients(model, data_of(corpus, tiny.train_config(**fields), terms, processes))
    data = data_of(corpus, tiny.train_config(micro_batch_size=rows, **fields), terms, processes)
    sizes = [sum(len(part.batch) for part in parts) for parts in data.micro_batches]
    assert sum(sizes) == 8 and max(sizes) <= rows
    divided = value_and_gradients(model, data)
    assert divided[0] == pytest.approx(whole[0], rel=1e-6)
    assert divided[1] == pytest.approx(whole[1], rel=1e-6)
    assert_same(divided[2], whole[2])


# weights


def test_row_weights_of_a_step_add_up_to_share_times_weight(
    corpus: Corpus, processes: Processes, teachers: dict[str, CachedTeacher]
) -> None:
    architecture, fields, terms = cases(teachers)["mixed views"]
    config = tiny.train_config(micro_batch_size=3, **fields)
    shares, totals = view_shares(config), {}
    for parts in data_of(corpus, config, terms, processes).micro_batches:
        for part in parts:
            for term in part.terms:
                weight = term.row_weight * len(part.batch.target_positions_N)
                totals[term.name] = totals.get(term.name, 0.0) + weight
    expected = {
        name: shares[view] * term.config.weight for view in shares for name, term in terms_of(view, terms).items()
    }
    assert shares == {"causal": 0.25, "masked": 0.75}
    assert totals == pytest.approx(expected)


def test_schedules_and_legacy_batchmean_change_the_weight_of_a_row(
    corpus: Corpus, processes: Processes, teachers: dict[str, CachedTeacher]
) -> None:
    config = tiny.train_config(view="causal")

    def row_weight(**fields: object) -> tuple[float, int]:
        [[part]] = data_of(corpus, config, [tiny.distillation(teachers["llama"], **fields)], processes).micro_batches
        return part.terms[0].row_weight, len(part.batch.target_positions_N)

    plain, targets = row_weight()
    assert plain == pytest.approx(1 / targets)
    assert row_weight(legacy_batchmean=True)[0] == pytest.approx(1 / config.batch_size)
    falling = ScheduleConfig(shape="linear", start=1.0, end=0.0)
    assert row_weight(schedule=falling)[0] == pytest.approx(plain * (1 - STEP / (STEPS - 1)))


def test_targets_that_a_teacher_leaves_out_are_not_counted(
    corpus: Corpus, processes: Processes, teachers: dict[str, CachedTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A masked teacher has nothing to say about a token that noise let it see: the term is a mean over the others."""
    even = lambda self, batch, *, draw: batch.target_positions_N % 2 == 0  # noqa: E731
    monkeypatch.setattr(CachedTeacher, "heard", even)
    terms = [tiny.CROSS_ENTROPY, tiny.distillation(teachers["llama"], temperature=2.0)]
    model, config = tiny.model("llama", corpus), tiny.train_config(view="causal", micro_batch_size=3)
    data = data_of(corpus, config, terms, processes)
    batches = [part.batch for parts in data.micro_batches for part in parts]
    positions = torch.cat([batch.target_positions_N for batch in batches])
    assert data.counts == {
        "causal/cross_entropy": len(positions),
        "causal/forward_kl": int((positions % 2 == 0).sum()),
    }
    _, sums, _ = value_and_gradients(model, data)
    expected = 0.0
    for batch in batches:
        logits = model.head().logits(model.target_features(batch)).detach()[batch.target_positions_N % 2 == 0]
        taught = plain_teacher_probs(terms[1], batch)[batch.target_positions_N % 2 == 0]
        expected += 4 * float(functional.kl_div((logits / 2).log_softmax(-1), taught, reduction="sum"))
    assert sums["causal/forward_kl"] == pytest.approx(expected, rel=1e-5)


def test_a_term_for_one_view_is_silent_in_the_other(teachers: dict[str, CachedTeacher]) -> None:
    _, _, terms = cases(teachers)["mixed views"]
    assert list(terms_of("causal", terms)) == ["causal/cross_entropy", "causal/forward_kl"]
    assert list(terms_of("masked", terms)) == ["masked/cross_entropy", "masked/forward_kl", "masked/forward_kl.2"]


def test_rows_without_targets_change_nothing_and_keep_all_parameters(corpus: Corpus, processes: Processes) -> None:
    for architecture in ("llama", "gptj", "elc_bert"):
        model = tiny.model(architecture, corpus)
        [parts] = data_of(corpus, tiny.train_config(), [tiny.CROSS_ENTROPY], processes).micro_batches
        silent = [Part(without_targets(corpus, parts[0].batch), parts[0].terms)]
        alone = value_and_gradients(model, StepData([parts], {"causal/cross_entropy": 1}))
        beside = value_and_gradients(model, StepData([parts, silent], {"causal/cross_entropy": 1}))
        assert alone[:2] == beside[:2]
        assert_same(beside[2], alone[2])
        zero = value_and_gradients(model, StepData([silent], {"causal/cross_entropy": 1}))
        assert zero[0] == 0 and not any(gradient.any() for gradient in zero[2].values())


def test_a_view_may_compare_features_alone(
    corpus: Corpus, processes: Processes, teachers: dict[str, CachedTeacher]
) -> None:
    model = tiny.model("gptj", corpus)
    heard = tiny.distillation(teachers["llama"])
    term = replace(heard, config=replace(heard.config, loss="feature_mse"))
    [parts] = data_of(corpus, tiny.train_config(), [term], processes).micro_batches
    projections = feature_projections(model.config.hidden_size, {0: term.ensemble}, 1)
    objective = Objective(model, projections)
    loss, sums = objective(parts)
    loss.backward()
    assert list(sums) == ["causal/feature_mse"] and loss.item() > 0
    found = gradients(model)  # all of them, for which DDP waits
    heads = [gradient for name, gradient in found.items() if "lm_head" in name]
    assert heads and not any(gradient.any() for gradient in heads)
    assert any(gradient.any() for gradient in found.values())


def test_a_step_that_meets_two_epochs_hears_the_draws_of_each(
    corpus: Corpus, processes: Processes, teachers: dict[str, CachedTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[int, int]] = []
    answer = CachedTeacher.answer

    def listening(self: CachedTeacher, batch: Batch, *args: object, draw: int, **more: object) -> object:
        heard.append((draw, len(batch)))
        return answer(self, batch, *args, draw=draw, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(CachedTeacher, "answer", listening)
    config = tiny.train_config(batch_size=8)
    plan = plan_run(config, corpus.streams["train"], seed=5)
    assert plan.phases[0].plan.rows_per_epoch % 8, "an epoch ends in the middle of a step"
    step, first = divmod(plan.phases[0].plan.rows_per_epoch, 8)
    step_data(
        step,
        plan,
        corpus=corpus,
        config=config,
        cache=tiny.CACHE,
        terms=[tiny.distillation(teachers["llama"])],
        processes=processes,
    )
    assert heard == [(0, first), (1, 8 - first)]


def without_targets(corpus: Corpus, batch: Batch) -> Batch:
    spans = [(0, 1), (0, 1)]
    first = make_batch(
        corpus.streams["train"], spans, batch.view, token_ids=corpus.token_ids, vocab_size=corpus.vocab_size
    )
    return replace(
        first,
        targets_BT=torch.full_like(first.targets_BT, -100),
        target_positions_BT=torch.full_like(first.target_positions_BT, -1),
    )


# rows and views of a step


@pytest.mark.parametrize("views", [{"view": "causal"}, {"views": MIXED}])
def test_processes_share_the_rows_of_a_step_and_none_is_idle(
    corpus: Corpus, processes: Processes, views: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def targets(world_size: int, batch_size: int) -> list[list[tuple[str, int]]]:
        monkeypatch.setattr(processes, "world_size", world_size)
        monkeypatch.setattr(processes, "sum", lambda values: values)
        config, found = tiny.train_config(batch_size=batch_size, **views), []
        for rank in range(world_size):
            monkeypatch.setattr(processes, "rank", rank)
            [parts] = data_of(corpus, config, [tiny.CROSS_ENTROPY], processes).micro_batches
            found.append(
                [(part.batch.view.objective, int(at)) for part in parts for at in part.batch.target_positions_N]
            )
        return found

    for batch_size, world_sizes in ((4, (2, 3, 4)), (7, (2, 3, 4)), (19, (2, 3, 4, 8))):
        [whole] = targets(1, batch_size)
        for world_size in world_sizes:
            divided = targets(world_size, batch_size)
            assert all(divided)
            assert sorted(sum(divided, [])) == sorted(whole)


def test_the_order_in_which_views_are_written_means_nothing() -> None:
    for views in ({"masked": 3.0, "causal": 1.0}, {"causal": 0.25, "masked": 0.75}):
        assert list(view_shares(tiny.train_config(views=views)).items()) == [("causal", 0.25), ("masked", 0.75)]


def test_a_step_too_small_for_its_views_or_processes_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"train.batch_size: 4 rows leave none for causal .* raise it to 16"
    ) as refused:
        require_rows(tiny.train_config(batch_size=4, views={"causal": 1, "masked": 15}), 1)
    assert refused.value.exit_code == 2
    with pytest.raises(RecipeError, match="train.batch_size: 4 rows for 8 processes"):
        require_rows(tiny.train_config(batch_size=4), 8)
    require_rows(tiny.train_config(batch_size=16, views={"causal": 1, "masked": 15}), 16)


def test_a_round_of_folds_hides_every_position_once_and_later_rounds_differ_if_asked() -> None:
    static, dynamic = tiny.train_config(view="masked"), tiny.train_config(view="masked", dynamic_masks=True)
    views = [step_view("masked", epoch, static, tiny.CACHE) for epoch in range(6)]
    assert [view.fold for view in views] == [0, 1, 2, 0, 1, 2]
    assert len({view.mask_seed for view in views}) == 1
    seeds = [step_view("masked", epoch, dynamic, tiny.CACHE).mask_seed for epoch in range(6)]
    assert seeds[0] == seeds[2] == views[0].mask_seed != seeds[3] == seeds[5]


# optimiser
