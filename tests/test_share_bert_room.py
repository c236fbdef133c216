"""Which vocabularies hold ShareBERT's matrices, and what is offered where one does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_students_share_bert import SMALL

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from students.config import ModelConfig
from students.configuration_share_bert import columns_needed, largest_sizes, smallest_vocabulary
from students.registry import build_model
from students.share_bert import ShareBert


@given(hidden_size=st.integers(7, 300), width=st.integers(1, 900))
@settings(max_examples=50, deadline=None)
def test_the_smallest_vocabulary_is_the_smallest(hidden_size: int, width: int) -> None:
    rows = smallest_vocabulary(hidden_size, width)
    assert columns_needed(rows, hidden_size, width) <= hidden_size
    assert rows == 1 or columns_needed(rows - 1, hidden_size, width) > hidden_size


@given(vocab_size=st.integers(20, 3000), heads=st.sampled_from([1, 4, 16]), ratio=st.sampled_from([1, 2, 4]))
@settings(max_examples=50, deadline=None)
def test_the_largest_sizes_that_fit_are_the_largest(vocab_size: int, heads: int, ratio: int) -> None:
    asked = 320
    found = largest_sizes(vocab_size, asked, ratio * asked, heads)
    fitting = [d for d in range(heads, asked, heads) if columns_needed(vocab_size, d, ratio * d) <= d]
    assert found == ((max(fitting), ratio * max(fitting)) if fitting else None)


def test_a_vocabulary_that_is_too_small_is_refused_with_what_would_fit() -> None:
    """At the door where the recipe says its size, in the build where the tokenizer does; both offers are true."""
    published = ModelConfig(architecture="share_bert", num_layers=12, hidden_size=2048, num_heads=16, factor_size=128)
    for config, vocab_size in ((replace(published, vocab_size=16_000), 16_000), (published, 16_000)):
        with pytest.raises(RecipeError) as refused:
            build_model(config, vocab_size=vocab_size, token_ids=TokenIds(), seed=0)
        line = str(refused.value)
        assert line.startswith("model.vocab_size: from 16000 rows") and "\n" not in line
        assert "take 2365 columns, expected at most 2048" in line and "fewer layers need no less" in line
        smallest, size, width = smallest_vocabulary(2048, 4096), *largest_sizes(16_000, 2048, 4096, 16)
        assert f"at least {smallest}, or hidden_size {size} with intermediate_size {width} at most" in line
    ShareBert.check(replace(published, vocab_size=smallest))
    ShareBert.check(replace(published, vocab_size=16_000, hidden_size=size, intermediate_size=width))
    with pytest.raises(RecipeError, match="model.hidden_size: found 4, needs at least 7"):
        ShareBert.check(ModelConfig(**(SMALL | {"hidden_size": 4, "vocab_size": 400})))
    with pytest.raises(RecipeError, match=r"at least \d+ \(all layers"):  # no hidden size fits so few
        small_vocabulary = ModelConfig(**(SMALL | {"hidden_size": 8, "num_heads": 8, "vocab_size": 8}))
        ShareBert.check(small_vocabulary)
