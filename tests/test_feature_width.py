"""Features of another width than the layers, as LV-BERT's are: in caches, ensembles, losses and classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from test_cache import CPU, batches, log_prob_table, log_probs, stored_log_probs

from benchmarks.finetune.classifier import Classifier
from benchmarks.finetune.config import PRESETS
from corpora.prepare import Corpus
from corpora.windows import plan_windows
from distill.config import TermConfig
from distill.distributed import Processes
from distill.learner import Learner
from distill.phases import plan_run
from distill.step_data import Term
from students.buildable import Buildable
from teachers.cache import CachedTeacher
from teachers.ensemble import Ensemble

TEACHER, STUDENT, LAYERS = 12, 10, 16  # widths of features, and of the layers of both


@pytest.fixture(scope="module")
def teacher(corpus: Corpus) -> Buildable:
    model = tiny.model("lv_bert", corpus, embedding_size=TEACHER)
    assert (model.config.feature_size, model.config.hidden_size) == (TEACHER, LAYERS)
    return model


@pytest.fixture(scope="module")
def caches(teacher: Buildable, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CachedTeacher]:
    """Of the narrow teacher, and of one whose features are as wide as its layers."""
    folder, key = tmp_path_factory.mktemp("caches"), tiny.cache_key(corpus, objective="masked")
    models = {"lv_bert": teacher, "elc_bert": tiny.model("elc_bert", corpus)}
    return {name: tiny.cached(model, key, folder / name, name) for name, model in models.items()}


def test_a_cache_holds_the_features_that_meet_the_head(
    teacher: Buildable, caches: dict[str, CachedTeacher], corpus: Corpus
) -> None:
    stored, key = caches["lv_bert"], tiny.cache_key(corpus, objective="masked")
    assert stored.hidden_size == TEACHER and stored.codec.record.itemsize == 4 * TEACHER  # fp32
    live = log_prob_table(teacher, key, rows=16)[stored.covered_positions()]
    assert (stored_log_probs(stored) - live).abs().max() < 1e-5


@pytest.mark.parametrize("pool", ["mixture", "product"])
def test_members_of_different_widths_are_pooled(pool: str, caches: dict[str, CachedTeacher], corpus: Corpus) -> None:
    """A product has the heads of its members side by side."""
    stream, key = corpus.streams["train"], tiny.cache_key(corpus, objective="masked")
    batch = next(iter(batches(key, plan_windows(stream, key.config.window, objective="masked"), key.view)))
    signal = Ensemble.of(dict(caches), {"lv_bert": 1.0, "elc_bert": 3.0}, pool).signal(batch, CPU)
    said_MNV = torch.stack([log_probs(member, batch) for member in caches.values()])
    weights_M11 = torch.tensor([0.25, 0.75])[:, None, None]
    mixed_NV, multiplied_NV = (
        (said_MNV.exp() * weights_M11).sum(0).log(),
        (said_MNV * weights_M11).sum(0).log_softmax(-1),
    )
    expected_NV = mixed_NV if pool == "mixture" else multiplied_NV
    assert (signal.pooled_log_probs(slice(None)) - expected_NV).abs().max() < 1e-5
    assert (signal.joined is not None) == (pool == "product")


@pytest.mark.parametrize("loss", ["feature_mse", "feature_cosine"])
def test_a_student_compares_its_features_with_wider_ones(
    loss: str, caches: dict[str, CachedTeacher], corpus: Corpus, processes: Processes, tmp_path: Path
) -> None:
    config = TermConfig(loss=loss, members=dict.fromkeys(caches, 1.0))  # type: ignore[arg-type]
    term = Term(config, Ensemble.of(dict(caches), {"lv_bert": 1.0, "elc_bert": 1.0}, "mixture"), number=1)
    model = tiny.model_config("lv_bert", embedding_size=STUDENT)
    run = tiny.run(corpus, tmp_path / "run", tiny.CROSS_ENTROPY, term, model=model, view="masked")
    learner, plan = Learner(run, processes), plan_run(run.train, corpus.streams["train"], seed=3)
    shapes = {name: tuple(layer.weight.shape) for name, layer in learner.objective.projections.items()}  # type: ignore[union-attr]
    assert shapes == {"term1_member0": (TEACHER, STUDENT), "term1_member1": (LAYERS, STUDENT)}
    means = []
    for step in range(4):
        means.append(learner.gradients(step, plan))
        learner.update(step, means[-1], rate=0.01)
    assert means[-1][f"masked/{loss}"] < means[0][f"masked/{loss}"]


@pytest.mark.parametrize("head", ["huggingface", "gelu"])
def test_a_classifier_reads_narrow_features(head: str, teacher: Buildable) -> None:
    classifier = Classifier(teacher, "masked", replace(PRESETS["cuvee"], head=head), num_labels=3, seed=1)  # type: ignore[arg-type]
    rows_BT = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    assert classifier(rows_BT, torch.zeros_like(rows_BT)).shape == (2, 3)
