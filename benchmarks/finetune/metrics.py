"""Accuracy, F1 and Matthews' correlation of labels, from counts of what was said for what.

Axes: N rows; C labels, true ones first, said ones second; S seeds, K kinds of rows, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.finetune.config import Metric
from benchmarks.stats import Interval


@dataclass(frozen=True, kw_only=True)
class Sureness:
    """How intervals are made."""

    confidence: float = 0.95
    resamples: int = 1_000  # bootstrap draws
    seed: int = 1


def all_scores(labels_N: np.ndarray, predictions_N: np.ndarray, num_labels: int) -> dict[Metric, float]:
    """Every metric that the number of labels allows: F1 of label 1 is for two labels alone.

    Shares from 0 to 1, Matthews' correlation from -1 to 1. Labels are whole numbers below `num_labels`; raises
    ValueError when there is no row.
    """
    if len(labels_N) == 0 or len(labels_N) != len(predictions_N):
        raise ValueError(f"metrics: {len(labels_N)} labels and {len(predictions_N)} predictions, at least one of each")
    counts_CC = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(counts_CC, (labels_N, predictions_N), 1)
    return {name: metric(counts_CC) for name, metric in METRICS.items() if name != "f1" or num_labels == 2}


def median_interval(
    labels_N: np.ndarray, predictions_SN: np.ndarray, metric: Metric, *, num_labels: int, sure: Sureness
) -> Interval:
    """Bootstrap interval of a metric's median over seeds, on other rows of this kind: all seeds get the same ones.

    Other seeds are not in it. Rows with one label and the same predictions are one kind, and how many of each kind a
    resample holds is multinomial.
    """
    kinds_K, numbers_K = np.unique(np.vstack([labels_N, predictions_SN]), axis=1, return_counts=True)
    draw = np.random.default_rng(sure.seed)
    drawn_RK = draw.multinomial(len(labels_N), numbers_K / len(labels_N), size=sure.resamples)
    values_SR = []
    for said_K in kinds_K[1:]:
        counts_RCC = np.zeros((sure.resamples, num_labels, num_labels), np.int64)
        for kind, (label, said) in enumerate(zip(kinds_K[0], said_K, strict=True)):
            counts_RCC[:, label, said] += drawn_RK[:, kind]
        values_SR.append([METRICS[metric](counts_CC) for counts_CC in counts_RCC])
    tails = [(1 - sure.confidence) / 2, (1 + sure.confidence) / 2]
    low, high = np.quantile(np.median(values_SR, axis=0), tails)
    return Interval(float(low), float(high))


def accuracy(counts_CC: np.ndarray) -> float:
    """Share of rows whose label was said."""
    return float(np.trace(counts_CC) / counts_CC.sum())


def f1(counts_CC: np.ndarray) -> float:
    """F1 of label 1 of two: the pipelines' `binary` average."""
    return float(_f1_of_each(counts_CC)[1])


def f1_macro(counts_CC: np.ndarray) -> float:
    """The mean of every label's F1; labels that are neither true nor said anywhere do not count."""
    occurs_C = (counts_CC.sum(0) + counts_CC.sum(1)) > 0
    return float(_f1_of_each(counts_CC)[occurs_C].mean())


def mcc(counts_CC: np.ndarray) -> float:
    """Matthews' correlation, for more than two labels Gorodkin's R_K; 0 where one label is all that is true, or said.

    (c s - t p) / sqrt((s s - p p) (s s - t t)) with s rows, c right ones, and t and p how often each label is true and
    said (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006).
    """
    # Python's whole numbers: of 20,000 rows the products pass 2 ** 53
    rows, right = int(counts_CC.sum()), int(np.trace(counts_CC))
    true, said = counts_CC.sum(1).tolist(), counts_CC.sum(0).tolist()
    covariance = right * rows - sum(t * p for t, p in zip(true, said, strict=True))
    spread = (rows**2 - sum(p * p for p in said)) * (rows**2 - sum(t * t for t in true))
    return covariance / math.sqrt(spread) if spread else 0.0


METRICS: Mapping[Metric, Callable[[np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "mcc": mcc,
}


def _f1_of_each(counts_CC: np.ndarray) -> np.ndarray:
    """2 hits / (true + said) of each label; 0 where it is neither."""
    occurrences_C = counts_CC.sum(0) + counts_CC.sum(1)
    return 2 * np.diagonal(counts_CC) / np.maximum(occurrences_C, 1)
