"""The one loop: it trains every teacher and every student, from a recipe's words to a run folder.

rows -> gradients -> update -> keep, look, log, save -> run folder. A teacher is a run whose only term is cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from torch import nn

from corpora.errors import Preempted, RecipeError
from corpora.stream import Stream
from distill.checkpoint import Checkpoints, Progress
from distill.config import TrainConfig
from distill.distributed import Processes
from distill.divergence import Watchdog
from distill.keeping import Keeper
from distill.learner import Learner
from distill.learning_rate import learning_rate, never_trains
from distill.look import TuneStream
from distill.phases import RunPlan, plan_run
from distill.plan_cache import target_shares
from distill.preemption import stop_flag
from distill.probe import probe
from distill.run import Run, require_kept, rows_seed
from distill.step_data import require_rows
from distill.timing import steps_in_minutes
from distill.trackers import identity
from distill.tracking import Tracker, layer_weights
from students.registry import forward_flops_per_token


def train(run: Run, processes: Processes) -> None:
    """Train until the run folder is committed, resuming from the newest valid checkpoint.

    Raises Diverged when a loss or a gradient is not finite, and Preempted when a signal asks to stop; the same call
    then goes on.
    """
    config, stream = run.train, run.corpus.streams["train"]
    require_rows(config, processes.world_size)
    learner = Learner(run, processes)
    seed = rows_seed(run.seed)
    steps = steps_in_minutes(run, processes, learner, seed=seed) if config.minutes is not None else None
    plan = plan_run(config, stream, seed=seed, steps=steps)
    require_in_run(run.name, config, plan, stream)
    checkpoints = _checkpoints(run, learner, processes)
    announce: Callable[[str], None] = print if processes.is_first else lambda line: None
    start = checkpoints.restore(announce=announce)
    learner.restore(start.extra)
    require_kept(run, done=start.step, words=start.words)
    processes.barrier()  # all have read before the first writes
    keeper = Keeper(run, learner, processes, start.extra)
    tune, watchdog = TuneStream(run, processes), Watchdog(run.corpus.vocab_size, str(run.folder))
    tracker = _tracker(run, learner, processes, plan, start)

    if start.step == 0 and (weights := _ensemble_weights(run)):
        tracker.facts({"step": 0, "ensemble_weights": weights})
    words, done, logged_at = start.words, start.step, start.step
    with closing(tracker), stop_flag() as stop:
        for step in range(start.step, plan.steps):
            if keeper.out_of_patience:
                announce(
                    f"train: {run.name} ends after step {done} of {plan.steps}: {config.patience} looks without gain"
                )
                break
            done = step + 1
            logs = done % config.log_every == 0 or done == plan.steps
            processes.arrive(done, run.name)
            means = learner.gradients(step, plan, values=logs)
            rate = learning_rate(step, plan.steps, config)
            norm = learner.update(step, means, rate)
            watchdog.watch(done, means)

            before, words = words, words + sum(stream.words(first, last) for first, last in plan.spans(step))
            keeper.after(done, before=before, words=words)
            if logs:
                tokens = sum(len(plan.rows(each)) * plan.phase(each).seq_len for each in range(logged_at, done))
                counted = {"words": words} | learner.facts
                tracker.log({"step": done, "lr": rate, "grad_norm": norm, **counted, **means}, tokens=tokens)
                logged_at = done
            if config.evaluate_every is not None and (done % config.evaluate_every == 0 or done == plan.steps):
                with tracker.apart():
                    look = tune.look(learner.module, learner.precision, micro_batch=learner.micro_batch)
                    keeper.looked(look, done, words=words)
                    tracker.look({"step": done, **look.record(), **probe(run, learner.model, processes)})
                if weights := layer_weights(learner.model):
                    tracker.facts({"step": done, "layer_weights": weights})
            stopping = done < plan.steps and processes.any(stop.raised)
            due = stopping or (done % config.checkpoint_every == 0 and not watchdog.alarmed)
            if done < plan.steps and due:
                learner.require_finite_weights(done)
                checkpoints.save(Progress(done, tracker.synced_length(), words, learner.state | keeper.state))
                keeper.saved()
            if stopping:
                processes.barrier()
                raise Preempted(f"{run.folder}: stopped after step {done} and saved; the same command goes on")
        tracker.synced_length()
    keeper.finish(done, words=words)
    processes.barrier()


def _checkpoints(run: Run, learner: Learner, processes: Processes) -> Checkpoints:
    """Another arithmetic or world size would go on, but not to the same weights."""
    config = run.train
    arithmetic = {
        "precision": learner.precision,
        "processes": processes.world_size,
        "parallel": config.parallel,
        "micro_batch": config.micro_batch_size,
    }
    parts: dict[str, nn.Module] = {"objective": learner.objective}
    if learner.average is not None:
        parts["average"] = learner.average.model
    return Checkpoints(
        run.folder / "checkpoints",
        nn.ModuleDict(parts),
        learner.optimizer,
        run.fingerprint | {"arithmetic": arithmetic, "average": config.average},
        processes,
    )


def _tracker(run: Run, learner: Learner, processes: Processes, plan: RunPlan, start: Progress) -> Tracker:
    # the first phase stands for all: only attention depends on the length of a row
    forward = forward_flops_per_token(run.model, run.corpus.vocab_size, plan.phases[0].seq_len)
    targets = sum(share for _, share in target_shares(run.train, run.cache.num_folds).values())
    return Tracker(
        run.folder,
        name=run.name,
        steps=plan.steps,
        log_length=start.log_length,
        config=run.tracking,
        writes=processes.is_first,
        flops_per_token=3 * (forward.body + targets * forward.head),
        precision=learner.precision,
        device=processes.device,
        devices=processes.world_size,
        identity=identity(run),
    )


def _ensemble_weights(run: Run) -> dict[str, dict[str, float]]:
    """By term, what its members weigh when this run begins; they stay so."""
    return {
        f"{term.number}/{term.config.loss}": {
            member.name: weight for member, weight in zip(term.ensemble.members, term.ensemble.weights, strict=True)
        }
        for term in run.terms
        if term.ensemble is not None
    }


def require_in_run(name: str, config: TrainConfig, plan: RunPlan, stream: Stream) -> None:
    """What the recipe's check cannot know when it counts epochs, words or minutes."""
    if beyond := [step for step in config.snapshots if step > plan.steps]:
        raise RecipeError(
            f"{name}: the weights after step {max(beyond)} are asked for, but the run ends after {plan.steps}; "
            "ask for earlier ones"
        )
    # the challenge's lists go as far as the run does
    most = max(config.word_snapshots, default=0) if isinstance(config.word_snapshots, list) else 0
    # a run of so many words ends within a step of them
    last = sum(stream.words(first, end) for first, end in plan.spans(plan.steps - 1)) if most else 0
    if most and most >= (words := plan.words(stream)) + last:
        raise RecipeError(
            f"{name}: the weights after {most:,} words are asked for, but the run sees {words:,}; ask for fewer"
        )
    if (asked := len(config.phases)) > len(plan.phases):
        raise RecipeError(
            f"{name}: {asked - len(plan.phases)} of {asked} phases are shorter than one of the {plan.steps} steps; "
            "give them larger shares, or leave them out"
        )
    if why := never_trains(plan.steps, config):
        raise RecipeError(f"{name}: {why}")
