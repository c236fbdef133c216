"""How a text becomes a score: every choice in which public pipelines differ, as a field, and their presets.

Scores under different protocols are different numbers, so the protocol is printed beside each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Frame = Literal["begin", "tokenizer", "prefix"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to score a text after a context. Every score is in nats."""

    name: str
    # what stands around a causal model's text: the tokenizer's own special tokens; those, and a begin token where it
    # begins with none; or one begin token (end token where there is none) before a text without context
    causal: Frame = "begin"
    masked: Literal["begin", "tokenizer"] = "begin"  # the same of a masked model's
    space: bool = False  # a causal text without context begins with a space, as after a prompt
    # the tokens of a text are those that end behind the context's last character, or those that follow as many tokens
    # as the context has alone
    boundary: Literal["characters", "tokens"] = "characters"
    causal_reduction: Literal["sum", "mean"] = "sum"  # over the scored tokens
    masked_reduction: Literal["sum", "mean"] = "sum"
    # pseudo-log-likelihood: hide the token alone (arXiv 1910.14659), or with what follows of its word (2305.10588)
    pll: Literal["original", "within_word_l2r"] = "original"
    masked_after_end: bool = False  # a masked model's text stands after an end token
    source: str = ""  # whose way it is, and how far that was checked

    def lines(self, masked: bool) -> tuple[str, ...]:
        """Every choice in words, for one kind of model."""
        frame = self.masked if masked else self.causal
        reduction = self.masked_reduction if masked else self.causal_reduction
        found = [
            f"Protocol {self.name}: {self.source}." if self.source else f"Protocol {self.name}.",
            _FRAMES[frame] + (" The text follows an end token." if masked and self.masked_after_end else ""),
            "The text is tokenised as it is written; no space is put before it."
            if masked or not self.space
            else "A space is put before a text without context.",
            _BOUNDARIES[self.boundary],
        ]
        if masked:
            found += [_PLL[self.pll], _READING]
        else:
            found.append("A token's score is log p(token | tokens before it); a token with nothing before it has none.")
        found.append(f"A text's score is the {reduction} over its tokens, in nats, at temperature 1.")
        return tuple(found)


_FRAMES: dict[str, str] = {
    "begin": "Around the text stand the tokenizer's special tokens, at least a begin token; they are never scored.",
    "tokenizer": "Around the text stand the tokenizer's special tokens, where it has any; they are never scored.",
    "prefix": "One begin token (end token where there is none) stands before a text without context; it is not scored.",
}
_BOUNDARIES: dict[str, str] = {
    "characters": "After a context, tokens count that end behind its last character.",
    "tokens": "After a context, tokens count that follow as many tokens as the context has alone.",
}
_PLL: dict[str, str] = {
    "original": "Pseudo-log-likelihood `original`: each token hidden alone, a masked copy each (arXiv 1910.14659).",
    "within_word_l2r": "Pseudo-log-likelihood `within_word_l2r`: each token hidden with what follows of its word "
    "(arXiv 2305.10588).",
}

_READING = (
    "Reading times: three mask tokens stand behind the context, and nothing else does; the word's first token is "
    "predicted at the first of them, then written behind the context, and what is left of the word asked for in the "
    "same way, as in the challenge of 2025."
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="cuvee", source="ours"),
        Protocol(
            name="babylm2025",
            causal="tokenizer",
            masked="tokenizer",
            source="the BabyLM challenge of 2025 and 2026 (strict), from its published description",
        ),
        Protocol(
            name="babylm2024",
            causal="prefix",
            masked="tokenizer",
            space=True,
            boundary="tokens",
            masked_reduction="mean",
            masked_after_end=True,
            source="the BabyLM challenge of 2024, without the order of requests that gave some pairs another's score",
        ),
        Protocol(
            name="babylm2023",
            causal="prefix",
            masked="tokenizer",
            space=True,
            boundary="tokens",
            source="the BabyLM challenge of 2023; its masked scores were in bits, which changes no verdict",
        ),
        Protocol(
            name="lm-eval",
            causal="prefix",
            masked="tokenizer",
            space=True,
            boundary="tokens",
            source="lm-eval 0.4.13, compared on every pair; it scores no masked models",
        ),
        Protocol(
            name="minicons",
            causal="tokenizer",
            masked="tokenizer",
            boundary="tokens",
            causal_reduction="mean",
            masked_reduction="mean",
            source="minicons 0.3.39 with its defaults, compared on every pair",
        ),
    )
}
