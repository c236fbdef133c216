"""What speed and peers are measured on: random models with tokenizers, and pairs of sentences that nobody wrote.

The networks have 6 layers of width 384 and 16,384 rows in their vocabulary; their tokenizers know about 2,000 types.
The sentences are as long as BLiMP's, about 11 tokens, and differ as its pairs do: in one word, or in their order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from corpora.batch import Objective
from corpora.storage import make_folder, write_file, write_json

PARADIGMS = 67  # in the whole of BLiMP
PAIRS_OF_PARADIGM = 1000


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """Sizes of a network that has learned nothing."""

    num_layers: int = 6
    hidden_size: int = 384
    num_heads: int = 6
    vocab_size: int = 16_384  # rows of the embedding
    types: int = 2_000  # of the tokenizer, at most
    max_positions: int = 128
    # of the normal distribution of weights: with transformers' 0.02 logits would be nearly equal, and verdicts noise
    spread: float = 0.1
    seed: int = 0


FIVE_MILLION = RandomModel(num_layers=8, hidden_size=192, num_heads=3, vocab_size=8192)  # parameters: 5.2M


def save_random_model(
    folder: Path, objective: Objective, sizes: RandomModel, texts: Iterable[str], *, begins: bool = False
) -> Path:
    """Save a GPT-2 (causal) or a BERT (masked) with a tokenizer trained on some texts, as a Hugging Face folder.

    With `begins` the causal tokenizer puts a begin token before every text, as Llama's does; GPT-2's does not.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(sizes.seed)
    network = _gpt2(sizes) if objective == "causal" else _bert(sizes)
    make_folder(folder)
    network.save_pretrained(folder)
    tokenizer, special = (
        _byte_level(texts, sizes.types, begins) if objective == "causal" else _word_pieces(texts, sizes.types)
    )
    write_file(folder / "tokenizer.json", tokenizer.to_str().encode())
    # the class that transformers 4 and 5 both know
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    return folder


def generated_pairs(paradigms: int, pairs: int, *, seed: int = 1) -> dict[str, list[dict[str, str]]]:
    """Rows in BLiMP's format by paradigm: an agreement in one word and an order of words, in turn."""
    lexicon = made_up_words(seed)
    return {
        f"{template.__name__.removeprefix('_')}_{number // 2:02}": list(_rows(template, lexicon, pairs, seed + number))
        for number, template in zip(range(paradigms), [_agreement, _island] * paradigms, strict=False)
    }


def write_pairs(folder: Path, rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> Path:
    """A `.jsonl` file for each paradigm, which every row of it names."""
    return write_rows(folder, {uid: [dict(row) | {"UID": uid} for row in found] for uid, found in rows.items()})


def write_rows(folder: Path, rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> Path:
    """A `.jsonl` file for each name."""
    make_folder(folder)
    for name, found in rows.items():
        write_file(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in found).encode())
    return folder


@dataclass(frozen=True)
class Lexicon:
    """Stems of made-up words, which take English endings."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]


def made_up_words(seed: int) -> Lexicon:
    """Some hundreds of nouns, and of verbs."""
    draw = random.Random(seed)
    syllables = [onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou"]
    stems = sorted(
        {"".join(draw.choices(syllables, k=draw.choice((2, 2, 3)))) + draw.choice("klmnt") for _ in range(900)}
    )
    draw.shuffle(stems)
    return Lexicon(tuple(stems[::2]), tuple(stems[1::2]))


def _gpt2(sizes: RandomModel) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=sizes.vocab_size,
            n_positions=sizes.max_positions,
            n_embd=sizes.hidden_size,
            n_layer=sizes.num_layers,
            n_head=sizes.num_heads,
            initializer_range=sizes.spread,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _bert(sizes: RandomModel) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=sizes.vocab_size,
            max_position_embeddings=sizes.max_positions,
            hidden_size=sizes.hidden_size,
            intermediate_size=4 * sizes.hidden_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            initializer_range=sizes.spread,
        )
    )


def _byte_level(texts: Iterable[str], types: int, begins: bool) -> tuple[Tokenizer, dict[str, str]]:
    """As GPT-2's: one special token for begin and end."""
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=types, special_tokens=[end, "<pad>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{end} $A", special_tokens=[(end, 0)])
    return tokenizer, {"bos_token": end, "eos_token": end, "pad_token": "<pad>"}


def _word_pieces(texts: Iterable[str], types: int) -> tuple[Tokenizer, dict[str, str]]:
    """As BERT's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=types, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return tokenizer, dict(zip(roles, special, strict=True))


def _rows(
    template: Callable[[random.Random, Lexicon], tuple[str, str]], lexicon: Lexicon, pairs: int, seed: int
) -> Iterator[dict[str, str]]:
    draw = random.Random(seed)
    for _ in range(pairs):
        good, bad = template(draw, lexicon)
        yield {"sentence_good": good, "sentence_bad": bad}


def _agreement(draw: random.Random, lexicon: Lexicon) -> tuple[str, str]:
    noun, other = draw.sample(lexicon.nouns, 2)
    verb, later = draw.sample(lexicon.verbs, 2)
    head = draw.choice((f"The {noun}s near the {other}", f"Most {noun}s that {verb}", f"All {noun}s"))
    return f"{head} have {later}ed themselves.", f"{head} have {later}ed itself."


def _island(draw: random.Random, lexicon: Lexicon) -> tuple[str, str]:
    noun, other = draw.sample(lexicon.nouns, 2)
    verb, later = draw.sample(lexicon.verbs, 2)
    asked = f"{draw.choice(('What', 'Who'))} {draw.choice(('had', 'should', 'would'))} the {noun} {verb}"
    return f"{asked} while {later}ing that {other}?", f"{asked} that {other} while {later}ing?"
