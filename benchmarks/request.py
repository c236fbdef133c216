"""What a benchmark asks of a candidate: how likely is a text, after a context?

Every zero-shot task is made of these. Who answers sees texts alone: neither which of them is right nor which task they
belong to.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A text whose tokens are scored, and what stands before it, whose tokens are only read.

    The two are tokenised as one string, so a space between them is written at the beginning of `text`. With `apart`
    they are tokenised one by one and their tokens joined, as surprisals of single words are measured. With `mean` the
    score is the mean over the text's tokens, whatever the protocol says: texts of several lengths are compared.

    With `masks` a masked candidate reads so many mask tokens behind the context, as if it wrote on: of the text, which
    is tokenised alone, it sees nothing but the tokens before the one that is asked for. A causal candidate sees no more
    anyway, and is asked as without them.
    """

    context: str
    text: str
    apart: bool = False
    mean: bool = False
    masks: int = 0
