"""The smallest things that are whole: a corpus of generated documents, models of a few thousand weights, runs of a
few steps. Tests build what they need from here and change one thing at a time."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from benchmarks.scoring_tokenizer import ScoringTokenizer
from corpora.config import CorpusConfig, SplitConfig, TokenizerConfig
from corpora.prepare import Corpus, prepare_corpus
from corpora.tokenizer import SPECIAL_TOKENS, _byte_characters
from distill.config import TermConfig, TrackingConfig, TrainConfig, as_plain
from distill.step_data import Term
from distill.train import Run
from students.buildable import Buildable
from students.config import ModelConfig
from students.language_model import LanguageModel
from students.registry import build_model
from teachers.cache import CachedTeacher, CacheKey, cached_view
from teachers.capture import capture
from teachers.config import CacheConfig
from teachers.ensemble import Ensemble

SUBJECTS = ("the cat", "a small dog", "my sister", "the old man", "her friend", "one bird")
VERBS = ("sees", "wants", "finds", "likes", "draws", "carries")
OBJECTS = ("the red ball", "a warm bed", "some water", "the long road", "two apples", "a song")

WINDOW = 24  # some documents are longer, so that windows overlap
CACHE = CacheConfig(dtype="fp32", window=WINDOW, num_folds=3, shard_positions=512, rows=16)
CROSS_ENTROPY = Term(TermConfig(loss="cross_entropy"), None)


def corpus(folder: Path, *, documents: int = 60, seed: int = 1) -> Corpus:
    """A prepared corpus of short documents, every sixth of them several windows long."""
    draw = random.Random(seed)
    text = folder / "text"
    text.mkdir(parents=True)
    with (text / "stories.jsonl").open("w") as file:
        for number in range(documents):
            sentences = [
                f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}."
                for _ in range(12 if number % 6 == 0 else 2)
            ]
            file.write(json.dumps({"id": f"story-{number}", "text": " ".join(sentences)}) + "\n")
    config = CorpusConfig(source="folder", root=str(text), words=None, split=SplitConfig(tune=0.15, test=0.15))
    return prepare_corpus(config, TokenizerConfig(vocab_size=320), seed=1, folder=folder / "prepared")


def model_config(architecture: str, **changes: Any) -> ModelConfig:
    """Two layers of width 16."""
    sizes: dict[str, Any] = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "max_positions": 64}
    if architecture in ("elc_bert", "ltg_bert", "gpt_bert"):
        sizes["position_buckets"] = 8
    elif architecture == "lv_bert":  # a sublayer of each kind, and features of another width than the layers'
        sizes |= {"layers": "DSF", "embedding_size": 12}
    return ModelConfig(architecture=architecture, **(sizes | changes))  # type: ignore[arg-type]


def model(architecture: str, corpus: Corpus, *, seed: int = 0, **changes: Any) -> Buildable:
    """A model that has not learned anything, in evaluation mode, but is as sure of itself as a trained one."""
    built = build_model(
        model_config(architecture, **changes), vocab_size=corpus.vocab_size, token_ids=corpus.token_ids, seed=seed
    )
    weight_VD = built.head().weight_VD
    with torch.no_grad():  # logits of about 2.5: near 0, where training begins, every comparison would be easy
        weight_VD.mul_(2.5 / weight_VD.shape[1] ** 0.5 / weight_VD.std())
    return built.eval()


def cache_key(corpus: Corpus, *, teacher: str = "weights", stream: str = "train", **changes: Any) -> CacheKey:
    """The key of a cache; `objective` and fields of CacheConfig may be changed."""
    objective = changes.pop("objective", "causal")
    config = replace(CACHE, **changes)
    return CacheKey(corpus, stream, teacher, cached_view(config, objective), config)


def cached(built: LanguageModel, key: CacheKey, folder: Path, name: str = "teacher") -> CachedTeacher:
    """A model's cache, made and opened."""
    capture(key, lambda: built, folder)
    return CachedTeacher(name, folder, key.fingerprint(), config=key.config)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, int]:
    """When each array of a folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.npy"))}


def distillation(*members: CachedTeacher, pool: str = "mixture", **changes: Any) -> Term:
    """A forward_kl term that listens to caches with equal weights."""
    weights = dict.fromkeys((member.name for member in members), 1.0)
    config = TermConfig(loss="forward_kl", members=weights, pool=pool, **changes)  # type: ignore[arg-type]
    return Term(config, Ensemble.of({member.name: member for member in members}, weights, pool))


def train_config(**changes: Any) -> TrainConfig:
    """Eight steps of eight rows; a checkpoint after every second one."""
    fields: dict[str, Any] = {
        "steps": 8,
        "batch_size": 8,
        "seq_len": 32,
        "lr": 3e-3,
        "precision": "fp32",
        "checkpoint_every": 2,
        "log_every": 1,
    }
    if "views" not in changes:
        fields["view"] = "causal"
    return TrainConfig(**(fields | changes))


def run(corpus: Corpus, folder: Path, *terms: Term, model: ModelConfig | None = None, **changes: Any) -> Run:
    """A training run; keywords change fields of TrainConfig."""
    model = model or model_config("llama")
    config = train_config(**changes)
    return Run(
        name=folder.name,
        folder=folder,
        model=model,
        train=config,
        terms=terms or (CROSS_ENTROPY,),
        corpus=corpus,
        cache=CACHE,
        seed=7,
        fingerprint={"model": as_plain(model), "train": as_plain(config)},
        tracking=TrackingConfig(),
    )


def byte_tokenizer(*, lower: bool = False) -> ScoringTokenizer:
    """Every byte is a token, its id four more than the byte: the special tokens come first."""
    types = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    types |= {character: 4 + byte for byte, character in _byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=types, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    pad, begin, end, mask = SPECIAL_TOKENS
    return ScoringTokenizer(tokenizer, {"pad_token": pad, "bos_token": begin, "eos_token": end, "mask_token": mask})
