"""How true a codec is to its teacher: what it says about a position, c, against the exact distribution p.

    KL               mean of KL(p, c), nats; draws give no chance to most tokens, so it is not defined for them
    total variation  mean of half the sum of |p - c|
    gradient error   norm of the difference of the two gradients of forward KL in a student's logits, over all
                     positions, as a share of the exact one's norm

What `topk` keeps outside its tokens is one number, their mass: the loss leaves its shape to the student, so c spreads
it as the student's distribution q does. Draws are those of one visit. Axes: N positions, K kept tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config import TermConfig
from distill.losses import bucketed, forward_kl
from teachers.codecs.codec import Codec
from teachers.codecs.said import Said
from teachers.signal import Expanded, Signal, row_chunks

CHUNK_BYTES = 8 << 20  # of fp32 logits at once


@dataclass(frozen=True)
class Answers:
    """What a teacher and a student say about some positions."""

    teacher: Said
    student_logits_NV: Tensor


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How far a codec is from a teacher at one temperature."""

    kl: float | None  # nats; None: not defined
    total_variation: float
    gradient_error: float  # share of the exact gradient's norm


def fidelities(codec: Codec, answers: Answers, temperatures: Sequence[float]) -> dict[float, Fidelity]:
    """How far a codec is from the teacher, at each temperature."""
    records_N = codec.encode(answers.teacher, seed=1)
    cpu = torch.device("cpu")
    member = codec.decode(records_N, answers.teacher.head, answers.teacher.positions_N, device=cpu, draw=0)
    signal = Signal((member,), (1.0,))
    return {temperature: _fidelity(signal, answers, temperature) for temperature in temperatures}


def _fidelity(signal: Signal, answers: Answers, temperature: float) -> Fidelity:
    """Sums over chunks of positions, in fp64: some codecs differ from the teacher by less than fp32 can say."""
    kl, variation, difference, norm = 0.0, 0.0, 0.0, 0.0
    num_positions, vocab_size = answers.student_logits_NV.shape
    for rows in row_chunks(num_positions, vocab_size, CHUNK_BYTES):
        logits_NV = answers.teacher.head.logits(answers.teacher.features_ND[rows]).double()
        exact_NV = (logits_NV / temperature).log_softmax(-1)
        exact = Expanded("dense", exact_NV.exp(), exact_NV, entropy_N=-(exact_NV.exp() * exact_NV).sum(-1))
        coded = signal.expand(rows, temperature)
        student_NV = answers.student_logits_NV[rows].double()
        if coded.kind == "sampled":
            coded_NV = densified(coded, vocab_size)
        else:
            coded_log_NV = completed(coded, (student_NV / temperature).log_softmax(-1))
            coded_NV = coded_log_NV.exp()
            kl += float((exact_NV.exp() * (exact_NV - coded_log_NV)).sum())
        variation += 0.5 * float((exact_NV.exp() - coded_NV).abs().sum())
        exact_gradient_NV = forward_kl_gradient(student_NV, exact, temperature)
        difference += float((forward_kl_gradient(student_NV, coded, temperature) - exact_gradient_NV).square().sum())
        norm += float(exact_gradient_NV.square().sum())
    return Fidelity(
        kl=None if signal.kind == "sampled" else kl / num_positions,
        total_variation=variation / num_positions,
        gradient_error=(difference / norm) ** 0.5,
    )


def densified(teacher: Expanded, vocab_size: int) -> Tensor:
    """The weights of draws at their tokens and 0 elsewhere, fp64 [N, V]."""
    assert teacher.ids_NK is not None
    empty_NV = torch.zeros(len(teacher.weights_NK), vocab_size, dtype=torch.float64)
    return empty_NV.scatter_add_(1, teacher.ids_NK, teacher.weights_NK.double())


def completed(teacher: Expanded, student_log_probs_NV: Tensor) -> Tensor:
    """Log-probabilities of every token, [N, V]; what a truncated teacher leaves out is shared out as the student's."""
    assert teacher.log_weights_NK is not None
    log_weights_NK = teacher.log_weights_NK.to(student_log_probs_NV.dtype)
    if teacher.ids_NK is None:
        return log_weights_NK
    others_NV = torch.zeros_like(student_log_probs_NV)  # where every token is kept, all of them are replaced
    if teacher.log_outside_N is not None:
        others_NV = student_log_probs_NV.scatter(1, teacher.ids_NK, -torch.inf).log_softmax(-1)
        others_NV = others_NV + teacher.log_outside_N[:, None]
    return others_NV.scatter(1, teacher.ids_NK, log_weights_NK)


def forward_kl_gradient(student_logits_NV: Tensor, teacher: Expanded, temperature: float) -> Tensor:
    """Gradient of each position's forward KL as training has it for this kind of signal, without the factor T^2."""
    logits_NV = student_logits_NV.detach().requires_grad_()
    log_probs_NV = (logits_NV / temperature).log_softmax(-1)
    term = TermConfig(loss="forward_kl", temperature=temperature)
    if teacher.ids_NK is None:
        losses_N = forward_kl(log_probs_NV, teacher, term)
    elif teacher.kind == "truncated":
        losses_N = forward_kl(*bucketed(log_probs_NV, teacher), term)
    else:
        losses_N = forward_kl(log_probs_NV.gather(1, teacher.ids_NK), teacher, term)
    [gradient_NV] = torch.autograd.grad(losses_N.sum(), [logits_NV])
    return gradient_NV
