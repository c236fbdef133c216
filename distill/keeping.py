"""What a run keeps on its way: weights after some steps and some words, and the best ones on the tune stream."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from corpora.errors import Diverged
from corpora.storage import read_manifest, remove_folder
from distill.checkpoint import KEPT
from distill.distributed import Processes
from distill.learner import Learner
from distill.look import Look
from distill.run import (
    Run,
    average_fingerprint,
    average_folder,
    best_folder,
    best_folders,
    save_run,
    snapshot_fingerprint,
    snapshot_folder,
    word_snapshot_folder,
)
from distill.shares import word_snapshots
from students.buildable import Buildable
from students.run_folder import load_model


class Keeper:
    """Saves weights of a run; all processes call it together, the first one writes."""

    def __init__(self, run: Run, learner: Learner, processes: Processes, state: dict[str, Any]) -> None:
        """`state` is what `state` said when the checkpoint was written that the run goes on from."""
        self._run, self._learner, self._processes = run, learner, processes
        self._best: tuple[int, float] | None = tuple(state["best"]) if state.get("best") else None  # step, nats
        self._looks_since: int = state.get("looks_since_best", 0)
        self._step_words = 0  # seen in the last step
        # steps of the best weights that checkpoints know, the newest last: a run may have to go back to any of them
        self._known: list[int] = list(state.get("known_bests", []))

    @property
    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        known = [*self._known, *([self._best[0]] if self._best else [])][-KEPT:]
        return {"best": self._best, "looks_since_best": self._looks_since, "known_bests": known}

    @property
    def out_of_patience(self) -> bool:
        """Whether the tune stream's cross-entropy has not fallen for as many looks as the recipe waits."""
        patience = self._run.train.patience
        return patience is not None and self._looks_since >= patience

    def after(self, step: int, *, before: int, words: int) -> None:
        """Keep the weights after a step (counted from 1) that the recipe asks for; it took the words from `before`."""
        config = self._run.train
        if step in config.snapshots:
            self._snapshot(snapshot_folder(self._run.folder, step), step=step, words=words)
        self._step_words = words - before
        for asked in word_snapshots(config):
            if before < asked <= words:
                self._snapshot(word_snapshot_folder(self._run.folder, asked), step=step, words=words)

    def looked(self, look: Look, step: int, *, words: int) -> None:
        """Compare a look at the tune stream with the best one so far, and keep the weights if they are better.

        Raises Diverged when the look is not finite.
        """
        if not math.isfinite(look.value):
            raise Diverged(
                f"{self._run.folder}: step {step}: cross-entropy {look.value} on the tune stream; expected a number; "
                "lower train.lr"
            )
        if self._best is not None and look.value >= self._best[1]:
            self._looks_since += 1
            return
        self._best, self._looks_since = (step, look.value), 0
        if self._run.train.keep == "best":
            self._snapshot(best_folder(self._run.folder, step), step=step, words=words)

    def saved(self) -> None:
        """A checkpoint was written, which knows the best weights so far: those that none needs any more are deleted."""
        self._known = self.state["known_bests"]
        self._delete_bests(set(self._known))

    def _delete_bests(self, needed: set[int]) -> None:
        if self._run.train.keep == "best" and self._processes.is_first:
            needed_folders = {best_folder(self._run.folder, step) for step in needed}
            for folder in best_folders(self._run.folder) - needed_folders:
                remove_folder(folder)

    def finish(self, step: int, *, words: int) -> None:
        """Commit the run folder: the average first, then the weights that the run leaves, so that it is whole."""
        run, average, reached = self._run, self._learner.average, (step, words)
        self._learner.require_finite_weights(step)
        for asked in word_snapshots(
            run.train
        ):  # a run of 100M words ends within a step of them: these are its chck_100M
            if words < asked < words + self._step_words:
                self._snapshot(word_snapshot_folder(run.folder, asked), step=step, words=words)
        if average is not None:
            self._save(average_folder(run.folder), average.model, average_fingerprint(run), step=step, words=words)
        model = self._learner.whole(self._learner.model)
        if self._processes.is_first:
            if run.train.keep == "best" and self._best is not None:
                kept = read_manifest(best_folder(run.folder, self._best[0]))
                assert kept is not None, "the best weights were saved when they were found"
                model, step, words = load_model(kept.folder), kept.facts["steps"], kept.facts["words"]
            assert isinstance(model, Buildable)
            facts = self._facts(step, words)
            save_run(run, run.folder, model, fingerprint=run.fingerprint, with_log=True, reached=reached, **facts)
            self._delete_bests({step})

    def _snapshot(self, folder: Path, *, step: int, words: int) -> None:
        self._learner.require_finite_weights(step)
        self._save(folder, self._learner.model, snapshot_fingerprint(self._run, step), step=step, words=words)

    def _save(self, folder: Path, model: Buildable, fingerprint: dict[str, Any], *, step: int, words: int) -> None:
        gathered = self._learner.whole(model)
        if self._processes.is_first:
            assert gathered is not None
            save_run(self._run, folder, gathered, fingerprint=fingerprint, **self._facts(step, words))

    def _facts(self, step: int, words: int) -> dict[str, Any]:
        return {"steps": step, "words": words, "precision": self._learner.precision, "more": self._learner.facts}
