"""How many words each source may give, and which documents give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from corpora.addressed import address
from corpora.document import Document, count_words
from corpora.errors import InputRefused
from corpora.sources import gather_lines


def apply_budget(
    documents: Iterable[Document], budget: Mapping[str, int], words: int | None, seed: int
) -> list[Document]:
    """The documents that fit: at most `budget[source]` words of a source and `words` in all, never one more.

    Documents are taken in the order of a hash of (seed, id), so more `words` only add; the one that does not fit whole
    is cut at a line end. Raises InputRefused when `budget` names a source that is not there.
    """
    by_source: dict[str, list[Document]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(document)
    for name in budget:
        if name not in by_source:
            raise InputRefused(f"corpus.budget.{name}: no such source; there are {', '.join(sorted(by_source))}")
    available = {name: sum(count_words(document.text) for document in group) for name, group in by_source.items()}
    capped = {name: min(number, budget.get(name, number)) for name, number in available.items()}
    shares = proportional_shares(capped, words) if words is not None else capped
    return [
        document
        for name in sorted(by_source)
        for document in _take(sorted(by_source[name], key=lambda document: _order(document, seed)), shares[name])
    ]


def proportional_shares(available: Mapping[str, int], total: int) -> dict[str, int]:
    """At most `total` divided in proportion to `available`, in whole numbers.

    Rounded down, so that no share shrinks when the total grows, as it can when remainders are handed out.
    """
    everything = sum(available.values())
    if total >= everything:
        return dict(available)
    return {name: number * total // everything for name, number in available.items()}


def _order(document: Document, seed: int) -> tuple[int, str]:
    return address(seed, "budget", document.id), document.id


def _take(documents: Iterable[Document], room: int) -> list[Document]:
    taken = []
    for document in documents:
        words = count_words(document.text)
        if words > room:
            if room:
                taken.append(replace(document, text=next(gather_lines(document.text.split("\n"), room))))
            break
        taken.append(document)
        room -= words
    return taken
