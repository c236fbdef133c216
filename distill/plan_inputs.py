"""What a plan is worked out from: how much text there is, and the sizes of the teachers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from corpora.errors import RecipeError
from corpora.storage import Manifest, read_json, read_manifest
from distill.config import Recipe
from distill.members import model_of, teacher_view
from distill.plan_cache import Member, Text
from students.config import ModelConfig

TOKENS_PER_WORD = 1.3  # byte-level BPE of some thousand types on English


def read_text(recipe: Recipe) -> Text:
    """Tokens of each stream: counted where a corpus is prepared, else assumed from the words.

    Raises RecipeError when nothing says how much text there is.
    """
    corpus, vocab_size = recipe.corpus, recipe.tokenizer.vocab_size
    if manifest := read_manifest(Path(recipe.run_dir) / "corpus"):
        return Text(
            stream_tokens={name: int(stream["tokens"]) for name, stream in manifest.facts["streams"].items()},
            vocab_size=manifest.facts["vocab_size"],
            words=int(manifest.facts["streams"]["train"]["words"]),
            overlap={
                objective: _overlap(manifest, recipe.cache.window, objective) for objective in ("causal", "masked")
            },
            note=f"tokens: counted in the prepared corpus {manifest.folder}, and so are the windows of capture",
        )
    if corpus.words is None:
        raise RecipeError(
            "corpus.words: null, and no corpus is prepared, so the amount of text is unknown; "
            "run `cuvee prepare` first, or plan with corpus.words=NUMBER"
        )
    tokens = corpus.words * TOKENS_PER_WORD
    counts = {"tune": round(tokens * corpus.split.tune), "test": round(tokens * corpus.split.test)}
    return Text(
        stream_tokens={"train": round(tokens) - sum(counts.values()), **counts},
        vocab_size=vocab_size,
        words=round(corpus.words * (1 - corpus.split.tune - corpus.split.test)),
        overlap={"causal": 1.0, "masked": 1.0},
        note=f"tokens: no corpus is prepared, so {TOKENS_PER_WORD} are assumed for each of {corpus.words:,} words; "
        "capture: a document longer than cache.window is read in overlapping windows, up to twice; not counted",
    )


def read_members(recipe: Recipe) -> dict[str, Member]:
    """The teachers whose sizes are known: trained here, or finished runs of this toolkit."""
    members = {}
    for name, teacher in recipe.teachers.items():
        model, objective = model_of(recipe, name), teacher_view(teacher)
        manifest = read_manifest(Path(teacher.path)) if teacher.path else None
        if manifest and manifest.kind == "run":
            model = ModelConfig(**read_json(manifest.verified("cuvee.json"))["model"])
            objective = teacher.view or manifest.facts["views"][0]
        if model and objective:
            members[name] = Member(model=model, objective=objective)
    return members


def _overlap(manifest: Manifest, window: int, objective: str) -> float:
    """Tokens that capture reads in windows of a corpus, for each token of its streams."""
    from corpora.stream import Stream  # torch, which a misspelt key need not wait for
    from corpora.windows import document_windows

    streams = [Stream(manifest, name) for name in manifest.facts["streams"]]
    read = sum(
        found.stop - found.start
        for stream in streams
        for start, stop in pairwise(stream.document_offsets.tolist())
        for found in document_windows(start, stop, window, objective=objective)
    )
    return read / max(sum(len(stream) for stream in streams), 1)
