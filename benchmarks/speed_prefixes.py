"""What a causal model is spared where texts begin alike: its tokens and its time, in trees and row by row.

Items are generated in the challenge's layout, as long as its own and as like each other: an entity-tracking context has
about 120 words and five answers, and one of EWoK 10 words and two targets, each of which follows both contexts of its
item. The options of COMPS begin differently, but its files say many properties of each concept. BLiMP's pairs differ
late or early.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.choices import asked_order
from benchmarks.protocol import PROTOCOLS
from benchmarks.request import Request
from benchmarks.scorer import candidate_from_model
from benchmarks.scoring import Scorer
from benchmarks.scoring_tokenizer import read_scoring_tokenizer
from benchmarks.speed_figures import Table
from benchmarks.speed_models import (
    Lexicon,
    RandomModel,
    generated_pairs,
    made_up_words,
    save_random_model,
    write_rows,
)
from benchmarks.speed_turns import in_turns, processor_seconds
from benchmarks.tasks.choice_files import read_choices
from students.run_folder import load_model

Rows = dict[str, list[dict[str, Any]]]  # lines of each file by its stem
COLUMNS = (
    *("benchmark", "items", "tokens of a text", "read for an item, in rows", "in trees"),
    *("ms for an item, in rows", "in trees", "rows / trees", "scores differ by at most"),
)
DOMAIN, SIDES = "spatial-relations", ("left", "right")  # of EWoK
BOXES, OPERATIONS = 7, 10  # that the context of an entity-tracking item tells of
# sentences that begin with one concept: 2 x 49,340 and 2 x 13,896 of them, and some 500 concepts (not counted here)
TEXTS_OF_CONCEPT = {"comps_base": 190, "comps_wugs": 53}


@dataclass(frozen=True, kw_only=True)
class PrefixSizes:
    """How much is measured."""

    model: RandomModel = RandomModel(max_positions=512)
    items: Mapping[str, int] = field(
        default_factory=lambda: {"blimp": 100, "ewok_filtered": 100, "entity_tracking": 12, "comps": 200}
    )
    max_tokens: int = 4096  # in a forward pass, as on the command line


def prefix_table(folder: Path, sizes: PrefixSizes, *, repetitions: int) -> Table:
    """A row for each benchmark, of a random GPT-2 that scores generated items; files are left in `folder`."""
    asked, items = {}, {}
    for name, number in sizes.items.items():
        tasks = read_choices(name, write_rows(folder / name, MADE[name](number, seed=1)))
        asked[name], items[name] = asked_order(tasks), sum(len(task.items) for task in tasks)
    texts = [request.context + request.text for requests in asked.values() for request in requests]
    model = save_random_model(folder / "model", "causal", sizes.model, texts)
    candidate = candidate_from_model("GPT-2", load_model(model), "causal")
    scorer = Scorer("GPT-2", (candidate,), read_scoring_tokenizer(model), PROTOCOLS["cuvee"], sizes.max_tokens)
    rows = [
        _compared(name, requests, scorer=scorer, items=items[name], repetitions=repetitions)
        for name, requests in asked.items()
    ]
    return Table(
        "texts that begin alike, read in rows and in trees (one thread, seconds of the processor)", COLUMNS, rows
    )


def _compared(name: str, requests: Sequence[Request], *, scorer: Scorer, items: int, repetitions: int) -> list[str]:
    """The row of a benchmark; its items are `items`."""
    (candidate,) = scorer.parts
    read: dict[str, list[int]] = {"rows": [], "trees": []}
    ways = {
        "rows": replace(candidate, log_probs=_noted(candidate.log_probs, read["rows"]), tree_log_probs=None),
        "trees": replace(candidate, tree_log_probs=_noted(candidate.tree_log_probs, read["trees"])),
    }
    scorers = {way: replace(scorer, parts=(reading,)) for way, reading in ways.items()}
    scores = {way: each.scores(requests) for way, each in scorers.items()}
    tokens = {way: sum(noted) / items for way, noted in read.items()}
    sides: dict[str, Callable[[], float]] = {
        way: partial(processor_seconds, partial(each.scores, requests)) for way, each in scorers.items()
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = in_turns(sides, repetitions=repetitions, warm_up=1)
    torch.set_num_threads(threads)
    milliseconds = {way: 1000 * statistics.median(taken) / items for way, taken in seconds.items()}
    encodings = scorer.tokenizer.encode([request.context + request.text for request in requests])
    return [
        name,
        f"{items}",
        f"{statistics.mean(len(each.ids) for each in encodings):.0f}",
        *(f"{number:.1f}" for number in tokens.values()),
        *(f"{number:.3g}" for number in milliseconds.values()),
        f"{milliseconds['rows'] / milliseconds['trees']:.2f}",
        f"{np.abs(scores['rows'] - scores['trees']).max():.1g} nats",
    ]


def _noted(answer: Callable[..., Tensor] | None, read: list[int]) -> Callable[..., Tensor]:
    """The same answers; how many tokens were read for each is noted, padding included."""
    assert answer is not None, "the network reads trees"

    def noting(input_ids_BT: Tensor, *others: Tensor) -> Tensor:
        read.append(input_ids_BT.numel())
        return answer(input_ids_BT, *others)

    return noting


def _blimp(items: int, *, seed: int) -> Rows:
    """As many pairs of each of two paradigms."""
    pairs = generated_pairs(2, items // 2, seed=seed)
    return {uid: [row | {"UID": uid} for row in rows] for uid, rows in pairs.items()}


def _ewok(items: int, *, seed: int) -> Rows:
    """Each item twice, the second time with contexts and targets changed over."""
    draw, words = random.Random(seed), made_up_words(seed)
    rows = []
    for _ in range(items // 2):
        thing, name = draw.sample(words.nouns, 2)
        place, turn = draw.choice(("in front of", "behind", "beside")), draw.choice(words.verbs)
        contexts = [f"The {thing} is {place} {name.title()}. {name.title()} {turn}s {side}." for side in SIDES]
        targets = [f"The {thing} is {side} of {name.title()}." for side in SIDES]
        for first, second in ((0, 1), (1, 0)):
            said = {"Context1": contexts[first], "Context2": contexts[second]}
            said |= {"Target1": targets[first], "Target2": targets[second]}
            rows.append(said | {"Domain": DOMAIN, "ContextType": "direct", "ContextDiff": "antonym"})
    return {DOMAIN: rows}


def _entity_tracking(items: int, *, seed: int) -> Rows:
    draw, words = random.Random(seed), made_up_words(seed)
    rows = []
    for number in range(items):
        things = draw.sample(words.nouns, 2 * BOXES + OPERATIONS)
        held = [f"the {things[box]}" + f" and the {things[BOXES + box]}" * (box % 2) for box in range(BOXES)]
        filled = ", ".join(f"Box {box} contains {found}" for box, found in enumerate(held))
        done = " ".join(_operation(draw, things) for _ in range(OPERATIONS))
        asked = f"{filled}. {done} Box {draw.randrange(BOXES)} contains "
        answers = [*draw.sample(held, 2), *(f"the {thing}" for thing in draw.sample(things, 2)), "nothing"]
        rows.append({"input_prefix": asked, "options": [f"{answer}." for answer in answers], "numops": number % 6})
    return {"regular": rows}


def _operation(draw: random.Random, things: Sequence[str]) -> str:
    thing = draw.choice(things)
    box, other = draw.sample(range(BOXES), 2)
    return draw.choice((f"Move the {thing} from Box {box} to Box {other}.", f"Put the {thing} into Box {box}."))


def _comps(items: int, *, seed: int) -> Rows:
    draw, words = random.Random(seed), made_up_words(seed)
    return {
        "comps_base": _properties(draw, words, items // 2, "comps_base", "A {}"),
        "comps_wugs": _properties(draw, words, items // 2, "comps_wugs", "A wug is a {}. Therefore, a wug"),
    }


def _properties(draw: random.Random, words: Lexicon, items: int, file: str, prefix: str) -> list[dict[str, Any]]:
    concepts = words.nouns[: max(2, 2 * items // TEXTS_OF_CONCEPT[file])]
    rows = []
    for _ in range(items):
        concept, other = draw.sample(concepts, 2)
        verb, noun = draw.choice(words.verbs), draw.choice(words.nouns)
        rows.append(
            {
                "prefix_acceptable": prefix.format(concept),
                "prefix_unacceptable": prefix.format(other),
                "property_phrase": f"{draw.choice(('is', 'can be'))} {verb}ed for {noun}s.",
            }
        )
    return rows


MADE: dict[str, Callable[..., Rows]] = {
    "blimp": _blimp,
    "ewok_filtered": _ewok,
    "entity_tracking": _entity_tracking,
    "comps": _comps,
}
