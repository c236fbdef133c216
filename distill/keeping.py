"""What a run keeps on its way: weights after some steps and some words, and the best ones on the tune stream."""

from __future__ import annotations

from typing import Any

from corpora.storage import read_manifest, remove_folder
from distill.distributed import Processes
from distill.learner import Learner
from distill.look import Look
from distill.run import (
    Run,
    average_fingerprint,
    average_folder,
    best_folder,
    save_run,
    snapshot_fingerprint,
    snapshot_folder,
    word_snapshot_folder,
)
from students.run_folder import load_model


class Keeper:
    """Saves weights of a run; all processes call it together, the first one writes."""

    def __init__(self, run: Run, learner: Learner, processes: Processes, state: dict[str, Any]) -> None:
        """`state` is what `state` said when the checkpoint was written that the run goes on from."""
        self._run, self._learner, self._processes = run, learner, processes
        self._best: tuple[int, float] | None = tuple(state["best"]) if state.get("best") else None  # step, nats
        self._looks_since: int = state.get("looks_since_best", 0)

    @property
    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"best": self._best, "looks_since_best": self._looks_since}

    @property
    def out_of_patience(self) -> bool:
        """Whether the tune stream's cross-entropy has not fallen for as many looks as the recipe waits."""
        patience = self._run.train.patience
        return patience is not None and self._looks_since >= patience

    def after(self, step: int, *, before: int, words: int) -> None:
        """Keep the weights after a step (counted from 1) that the recipe asks for; it took the words from `before`."""
        config = self._run.train
        if step in config.snapshots:
            self._save(snapshot_folder(self._run.folder, step), step=step, words=words)
        for asked in config.word_snapshots:
            if before < asked <= words:
                self._save(word_snapshot_folder(self._run.folder, asked), step=step, words=words)

    def looked(self, look: Look, step: int, *, words: int) -> None:
        """Compare a look at the tune stream with the best one so far, and keep the weights if they are better."""
        if self._best is not None and look.value >= self._best[1]:
            self._looks_since += 1
            return
        before, self._best, self._looks_since = self._best, (step, look.value), 0
        if self._run.train.keep == "best":
            self._save(best_folder(self._run.folder, step), step=step, words=words)
            if before is not None and self._processes.is_first:  # not before the better ones are safe
                remove_folder(best_folder(self._run.folder, before[0]))

    def finish(self, step: int, *, words: int) -> None:
        """Commit the run folder: the average first, then the weights that the run leaves, so that it is whole."""
        run, average = self._run, self._learner.average
        if average is not None and (mean := self._learner.whole(average.model)) and self._processes.is_first:
            facts = {"steps": step, "words": words, "precision": self._learner.precision}
            save_run(run, average_folder(run.folder), mean, fingerprint=average_fingerprint(run), **facts)
        model = self._learner.whole(self._learner.model)
        if self._processes.is_first:
            if run.train.keep == "best" and self._best is not None:
                kept = read_manifest(best_folder(run.folder, self._best[0]))
                assert kept is not None, "the best weights were saved when they were found"
                model, step, words = load_model(kept.folder), kept.facts["steps"], kept.facts["words"]
            assert model is not None
            facts = {"steps": step, "words": words, "precision": self._learner.precision}
            save_run(run, run.folder, model, fingerprint=run.fingerprint, with_log=True, **facts)  # type: ignore[arg-type]

    def _save(self, folder, *, step: int, words: int) -> None:
        model = self._learner.whole(self._learner.model)
        if self._processes.is_first and read_manifest(folder) is None:
            assert model is not None
            fingerprint = snapshot_fingerprint(self._run, step)
            facts = {"steps": step, "words": words, "precision": self._learner.precision}
            save_run(self._run, folder, model, fingerprint=fingerprint, **facts)
