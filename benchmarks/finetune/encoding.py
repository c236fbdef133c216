"""Texts to rows of tokens: what stands before, between and behind them, and where they are cut.

A tokenizer's own template comes first: `[CLS] A [SEP] B [SEP]` of BERT, `<s> A <s> B` of Llama. Many have none for two
texts, and the challenge's pipelines then read the two without anything between them. The frame `tokenizer` does so
too; `begin` puts a begin token before each text, the one border of documents that a model of ours has met.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing

from benchmarks.finetune.config import FinetuneConfig
from benchmarks.finetune.data import Example
from corpora.errors import InputRefused

_SOME_TEXT = "a"  # in it all special tokens are a template's


class PairEncoder:
    """Examples of one task, which have one text each or two, to token ids."""

    def __init__(
        self, tokenizer_json: str, config: FinetuneConfig, *, begin_id: int | None, pairs: bool, max_positions: int
    ) -> None:
        """`max_positions`: longest row that the model reads; `begin_id`: its begin token, None where it has none.

        Raises InputRefused when the frame asks for a begin token and there is none.
        """
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # "<mask>" written in a text is text
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pairs = pairs
        if config.frame == "begin" and not self._framed():
            self._put_begin_tokens(begin_id)
        self.max_length = min(config.max_length, max_positions)
        self._tokenizer.enable_truncation(self.max_length, strategy="longest_first")

    @property
    def frame(self) -> str:
        """What stands around the texts, with A and B for them."""
        probe = self._probe()
        parts: list[str] = []
        for token, special, text in zip(probe.tokens, probe.special_tokens_mask, probe.sequence_ids, strict=True):
            part = token if special else "AB"[text or 0]
            if special or part not in parts:
                parts.append(part)
        return " ".join(parts)

    def rows(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        """Token ids of each example, at most `max_length`; raises InputRefused for one that gives none."""
        texts = [(each.first, each.second) if each.second is not None else each.first for each in examples]
        rows = [tuple(encoding.ids) for encoding in self._encode(texts)]
        for example, row in zip(examples, rows, strict=True):
            if not row:
                raise InputRefused(f"{example.place}: no token; expected at least one; mend or remove the line")
        return rows

    def _encode(self, texts: Sequence[str | tuple[str, str]]) -> list[Encoding]:
        return self._tokenizer.encode_batch(list(texts))

    def _probe(self) -> Encoding:
        """What becomes of a text, or of two."""
        return self._encode([(_SOME_TEXT, _SOME_TEXT) if self._pairs else _SOME_TEXT])[0]

    def _framed(self) -> bool:
        """Whether the tokenizer itself puts a token before a text; of two, also one between them."""
        probe = self._probe()
        text_of_each = probe.sequence_ids
        before = [number for number in range(2 if self._pairs else 1) if number in text_of_each]
        firsts = [text_of_each.index(number) for number in before]
        return all(first > 0 and probe.special_tokens_mask[first - 1] for first in firsts)

    def _put_begin_tokens(self, begin_id: int | None) -> None:
        token = None if begin_id is None else self._tokenizer.id_to_token(begin_id)
        if token is None:
            raise InputRefused(
                "tokenizer: no begin token, which the frame `begin` puts before each text; expected one in "
                "tokenizer_config.json; name it there, or choose frame: tokenizer"
            )
        self._tokenizer.post_processor = TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", token, "$B:1"], special_tokens=[(token, begin_id)]
        )
