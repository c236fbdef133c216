"""A text of any length under a candidate: each token scored once, documents in windows that overlap by half.

A document is one row of tokens, framed as the protocol says. Where it is longer than the candidate reads, a causal
candidate scores a token in the window that holds most of the text before it, a masked one where the token is farthest
from an edge; windows that do not begin the document have no begin token. What is kept of a document is its sum, so
memory holds a few documents, whatever the length of the text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.likelihood import scorable, token_scores
from benchmarks.request import Request
from benchmarks.score_store import ScoreStore
from benchmarks.scored_rows import ScoredRow, scored_rows
from benchmarks.scorer import Candidate
from benchmarks.scoring import Scorer
from benchmarks.text_costs import NATS_PER_TOKEN, PSEUDO_NATS, TextCosts
from corpora.config import CorpusConfig
from corpora.document import Document, count_words
from corpora.errors import Diverged, InputRefused
from corpora.sources import ENDINGS, documents_of
from corpora.windows import document_windows

LONGEST_WINDOW = 1_024  # tokens, of a candidate that reads any number
SHORTEST_WINDOW = 8  # below it, half a window is no context
MOST_WORDS = 100_000  # of a document that is one row: 0.6 MB of text, 100 MB while it is scored
CHARACTERS_AT_ONCE = 1 << 16  # of documents that are scored before their sums are stored


def text_costs(scorer: Scorer, path: Path, store: ScoreStore | None = None) -> TextCosts:
    """What every document of a text costs a candidate in nats; the pieces of a cut one are added.

    `store` keeps and finds the sums; its identity must name `text_window`. Several processes share the documents, and
    meet there. Raises InputRefused for what is no text, for a document without a token and for one whose first token
    the protocol leaves without a score; Diverged where a score is not finite.
    """
    several = scorer.team.world_size > 1
    assert store is not None or not several, "processes meet in the store"
    if several:
        for number, documents in enumerate(_blocks(text_documents(path))):
            if number % scorer.team.world_size == scorer.team.rank:
                _scored(scorer, documents, store)
        scorer.team.barrier()
    text, sums = "", []
    for documents in _blocks(text_documents(path)):
        for document, nats, tokens in zip(documents, *_scored(scorer, documents, store), strict=True):
            if document.side_key != text or not sums:
                text = document.side_key
                sums.append(np.zeros(4))
            sums[-1] += (nats, tokens, len(document.text.encode()), count_words(document.text))
    if not sums:
        raise InputRefused(f"{path}: holds no text; expected at least one word; check --text")
    nats_D, tokens_D, bytes_D, words_D = np.array(sums).T
    causal = scorer.objective == "causal"
    return TextCosts(
        benchmark="text",
        title=path.resolve().name,
        objective=scorer.objective,
        measure=NATS_PER_TOKEN if causal else PSEUDO_NATS,
        nats_D=nats_D,
        tokens_D=tokens_D,
        bytes_D=bytes_D,
        words_D=words_D,
        read=f"longer ones are read in windows of {text_window(scorer)} tokens that overlap by half",
    )


def text_window(scorer: Scorer) -> int:
    """Tokens of the longest row that a text is read in; raises InputRefused where they are too few."""
    part = scorer.parts[0]
    window = min(part.max_positions or LONGEST_WINDOW, scorer.max_tokens)
    if window < SHORTEST_WINDOW:
        raise InputRefused(
            f"{part.name}: reads {window} tokens; expected at least {SHORTEST_WINDOW} to read a text; leave out --text"
        )
    return window


def text_documents(path: Path) -> Iterator[Document]:
    """The documents of a file, or of all files below a folder, as a corpus reads them; blank ones are left out.

    One of more than MOST_WORDS words is cut at line ends. Raises InputRefused with file and line.
    """
    for file in text_files(path):
        # a domain without borders is cut as in a corpus
        domain_words = CorpusConfig().max_document_words
        yield from documents_of(file, str(file), domain_words=domain_words, most_words=MOST_WORDS)


def text_files(path: Path) -> list[Path]:
    """The files of a text, sorted; raises InputRefused where there is none."""
    every = path.rglob("*") if path.is_dir() else [path]
    found = sorted(file for file in every if file.name.endswith(ENDINGS) and file.is_file())
    if not found:
        what = "holds no file that ends" if path.is_dir() else "no such file, or not one that ends"
        raise InputRefused(f"{path}: {what} in {', '.join(ENDINGS)}; expected a text; check --text")
    return found


def windows(row: ScoredRow, size: int, *, objective: str) -> Iterator[ScoredRow]:
    """A row in parts of at most `size` tokens that overlap by half; each target of it is a target of one part."""
    # the last token of a causal part is predicted and not read
    reads = size - 1 if objective == "causal" else size
    for window in document_windows(0, len(row.ids), reads, objective=objective):
        stop = max(window.stop, window.keep_stop)
        kept = slice(bisect_left(row.targets, window.keep_start), bisect_left(row.targets, window.keep_stop))
        hidden = tuple(
            tuple(position - window.start for position in each if position < stop) for each in row.hidden[kept]
        )
        if hidden:
            yield ScoredRow(row.ids[window.start : stop], tuple(each[0] for each in hidden), hidden)


def _scored(scorer: Scorer, documents: Sequence[Document], store: ScoreStore | None) -> tuple[list[float], list[int]]:
    """Nats and tokens of each document."""
    (part,) = scorer.parts
    requests = [Request("", document.text) for document in documents]
    rows = scored_rows(requests, scorer.tokenizer, scorer.protocol, masked=part.objective == "masked")
    for document, row in zip(documents, rows, strict=True):
        _require_whole(row, part, document, scorer.protocol.name)
    known = store.find(requests) if store is not None else {}
    missing = {
        request: (document, row)
        for request, document, row in zip(requests, documents, rows, strict=True)
        if request not in known
    }
    made = dict(zip(missing, _sums(scorer, part, [row for _, row in missing.values()]), strict=True))
    for request, score in made.items():
        if not np.isfinite(score):
            raise Diverged(
                f"{scorer.name} on {missing[request][0].id}: log-likelihood {score}; expected a finite one; the "
                "candidate is invalid, train it again with a lower learning rate"
            )
    if made and store is not None:
        store.add(made)
    known |= made
    return [-known[request] for request in requests], [len(row.targets) for row in rows]


def _sums(scorer: Scorer, part: Candidate, rows: Sequence[ScoredRow]) -> list[float]:
    """The log-likelihood of each row in nats."""
    # windows share no beginnings, so there is nothing to read as a tree
    part, size = replace(part, tree_log_probs=None), text_window(scorer)
    parts = [list(windows(row, size, objective=part.objective)) for row in rows]
    scores = iter(
        token_scores(
            part,
            [window for of_row in parts for window in of_row],
            mask_id=scorer.tokenizer.mask_id,
            max_tokens=scorer.max_tokens,
        )
    )
    return [sum(float(next(scores).sum()) for _ in of_row) for of_row in parts]


def _require_whole(row: ScoredRow, part: Candidate, document: Document, protocol: str) -> None:
    """Bits per byte divide by all bytes of a text, so that all of its tokens must have a score."""
    if not row.targets:
        raise InputRefused(f"{document.id}: the tokenizer makes no token of it; expected text; remove the document")
    if scorable(row, part) != row.targets:
        raise InputRefused(
            f"{document.id}: under the protocol {protocol} nothing stands before the first token, so it has no score; "
            "expected a begin token; choose a protocol that places one, such as cuvee"
        )


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents that are scored together."""
    block, characters = [], 0
    for document in documents:
        block.append(document)
        characters += len(document.text)
        if characters >= CHARACTERS_AT_ONCE:
            yield block
            block, characters = [], 0
    if block:
        yield block
