"""The embedded corpus: a language with rules, a seed that fixes it, and pairs whose combinations it never shows."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.document import Document, count_words
from corpora.synthetic import derive_documents, generate_documents
from corpora.synthetic_grammar import is_reserved
from corpora.synthetic_lexicon import ADJECTIVES, NOUN, NOUNS, PERSON_NAMES, VERB, VERBS, lemmas
from corpora.synthetic_pairs import PHENOMENA, draw_pairs, minimal_pairs

WORDS = 150_000
PAIRS = 60
BLIMP_KEYS = {
    "sentence_good", "sentence_bad", "field", "linguistics_term", "UID", "simple_LM_method", "one_prefix_method",
    "two_prefix_method", "lexically_identical", "pairID",
}  # fmt: skip
PREFIX_KEYS = {"one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad"}
BLIMP_TERMS = {
    "anaphor_agreement": "morphology",
    "argument_structure": "syntax",
    "binding": "syntax_semantics",
    "determiner_noun_agreement": "morphology",
    "ellipsis": "syntax",
    "filler_gap_dependency": "syntax",
    "irregular_forms": "morphology",
    "island_effects": "syntax",
    "npi_licensing": "semantics",
    "quantifiers": "semantics",
    "s-selection": "syntax",
    "subject_verb_agreement": "morphology",
}
NOUN_OF_FORM = {form: noun for noun in NOUNS for form in (noun.lemma, noun.plural)}
NOUN_OF_FORM |= {name.lemma.lower(): name for name in PERSON_NAMES}
PLURALS = {noun.plural for noun in NOUNS}


@cache
def corpus() -> tuple[list[Document], frozenset[tuple[str, str, str]]]:
    """Documents and every combination that their derivations used."""
    derived = list(derive_documents(WORDS, 1))
    return [document for document, _ in derived], frozenset(step for _, record in derived for step in record)


@cache
def sentences() -> list[list[str]]:
    """The corpus as lower-case words, one list for each sentence."""
    text = "\n".join(document.text for document in corpus()[0]).lower()
    return [re.findall(r"[a-z]+", sentence) for sentence in re.split(r"[.?!\n]", text)]


@cache
def pairs() -> dict[str, list[dict[str, object]]]:
    return minimal_pairs(PAIRS, 3)


def verb_forms(lemma: str) -> set[str]:
    verb = VERB[lemma]
    return {verb.lemma, verb.third, verb.ing, verb.past, verb.participle}


def noun_forms(lemma: str) -> set[str]:
    return {lemma.lower(), NOUN[lemma].plural} if lemma in NOUN else {lemma.lower()}


def words_of(row: dict[str, object], key: str) -> list[str]:
    return re.findall(r"[a-z]+", str(row[key]).lower())


# ---- the language -------------------------------------------------------------------------------------------------


def test_lexicon_is_large_and_inflects() -> None:
    assert len(lemmas()) >= 500
    assert len({noun.lemma for noun in NOUNS}) == len(NOUNS) and len({verb.lemma for verb in VERBS}) == len(VERBS)
    assert [NOUN[lemma].plural for lemma in ("fox", "wolf", "child", "daisy", "key")] == [
        "foxes", "wolves", "children", "daisies", "keys",
    ]  # fmt: skip
    assert (VERB["run"].ing, VERB["run"].past, VERB["take"].ing, VERB["see"].ing) == (
        "running",
        "ran",
        "taking",
        "seeing",
    )
    assert (VERB["carry"].third, VERB["carry"].past, VERB["hug"].past, VERB["write"].participle) == (
        "carries", "carried", "hugged", "written",
    )  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), words=st.integers(0, 3000), more=st.integers(0, 3000))
def test_a_longer_corpus_only_adds_documents(seed: int, words: int, more: int) -> None:
    short, long = list(generate_documents(words, seed)), list(generate_documents(words + more, seed))
    assert long[: len(short)] == short
    assert words - 101 < sum(count_words(document.text) for document in short) <= max(words, 0)
    assert len({document.id for document in long}) == len(long)


def test_the_seed_fixes_the_text() -> None:
    digests = [
        hashlib.sha256("".join(document.text for document in generate_documents(5000, seed)).encode()).hexdigest()
        for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_documents_have_registers_and_fit_a_window() -> None:
    documents = corpus()[0]
    shares = Counter(document.source for document in documents)
    assert set(shares) == {"child_directed", "story", "encyclopaedia"}
    assert min(shares.values()) > 0.2 * len(documents)
    assert all(re.fullmatch(rf"{document.source}-\d{{6}}", document.id) for document in documents)
    lengths = [count_words(document.text) for document in documents]
    assert max(lengths) <= 100 and sum(length >= 40 for length in lengths) > 0.95 * len(lengths)


def test_sentences_are_well_spelled() -> None:
    for document in corpus()[0]:
        for sentence in re.split(r"\n|(?<=[.?!]) ", document.text):
            assert re.fullmatch(r"[A-Z][A-Za-z]*(,? [A-Za-z]+)*[.?!]", sentence), sentence
    text = " ".join(" ".join(words) for words in sentences())
    assert not re.search(r"\ba (?!unicorn)[aeiou]|\ban ([^aeiou]|unicorn)|\b(\w+) \1 the\b| i is | you is ", text)


def test_tested_constructions_are_frequent() -> None:
    text = "\n".join(" ".join(words) for words in sentences())
    patterns = {
        "not ever": r"\bnot ever\b", "any": r"\bany\b", "no subject": r"(?m)^no \w+", "there": r"(?m)^there ",
        "reflexive": r"\b(him|her|it|them)sel(f|ves)\b", "embedded wh": r"\b(what|who) (the|a|some|[a-z]+) \w+",
        "wh question": r"(?m)^(what|who) (did|does|do|is|are|has|have|had|can|will)\b", "too": r"\btoo\b",
        "scalar": r"\b(at least|at most|more than|fewer than)\b", "relative": r"\w+s? (that|who) \w+",
        "noun ellipsis": r"(?m)\b(two|three|four|five|many)$", "these": r"\b(these|those)\b",
    }  # fmt: skip
    for name, pattern in patterns.items():
        assert len(re.findall(pattern, text)) > 0.0006 * WORDS, name


def test_facts_are_always_the_same() -> None:
    text = " ".join(document.text for document in corpus()[0])
    assert set(re.findall(r"[Aa] fox is a red mammal that lives in the (\w+)|[Ff]oxes live in the (\w+)", text)) <= {
        ("den", ""), ("", "den"),
    }  # fmt: skip


# ---- the pairs ----------------------------------------------------------------------------------------------------


def test_pairs_are_in_blimp_format() -> None:
    assert len(PHENOMENA) >= 14 and set(pairs()) == set(PHENOMENA)
    for uid, rows in pairs().items():
        assert len(rows) == PAIRS == len({(row["sentence_good"], row["sentence_bad"]) for row in rows})
        assert [row["pairID"] for row in rows] == [str(number) for number in range(PAIRS)]
        for row in rows:
            assert set(row) == (BLIMP_KEYS | PREFIX_KEYS if row["one_prefix_method"] else BLIMP_KEYS)
            assert row["UID"] == uid and BLIMP_TERMS[str(row["linguistics_term"])] == row["field"]
            good, bad = str(row["sentence_good"]), str(row["sentence_bad"])
            assert good != bad and good[0].isupper() and bad[0].isupper() and good[-1] == bad[-1] in ".?"
            assert len(good.split()) == len(bad.split())
            if row["one_prefix_method"]:
                for sentence, word in ((good, row["one_prefix_word_good"]), (bad, row["one_prefix_word_bad"])):
                    assert sentence.startswith(f"{row['one_prefix_prefix']} {word}")


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), uid=st.sampled_from(sorted(PHENOMENA)), few=st.integers(1, 6))
def test_pairs_depend_on_seed_and_uid_alone(seed: int, uid: str, few: int) -> None:
    assert draw_pairs(uid, few, seed) == draw_pairs(uid, 8, seed)[:few]


def number_of_verb(form: str) -> str:
    singular = {"is", "has", "was", "does"} | {verb.third for verb in VERBS}
    return "s" if form in singular else "p"


@pytest.mark.parametrize("uid", ["subject_verb_agreement", "agreement_across_phrase", "agreement_across_relative"])
def test_verbs_agree_with_the_first_noun_and_not_with_the_nearest(uid: str) -> None:
    numbers = Counter()
    for row in pairs()[uid]:
        good, bad = words_of(row, "sentence_good"), words_of(row, "sentence_bad")
        place = next(i for i, (left, right) in enumerate(zip(good, bad, strict=True)) if left != right)
        nouns = [word for word in good[:place] if word in NOUN_OF_FORM]
        number = "p" if nouns[0] in PLURALS else "s"
        assert number_of_verb(good[place]) == number != number_of_verb(bad[place]), row
        if uid != "subject_verb_agreement":
            assert (nouns[-1] in PLURALS) == (number == "s"), row
        numbers[number] += 1
    assert numbers["s"] == numbers["p"]


@pytest.mark.parametrize("uid", ["determiner_noun_agreement", "determiner_noun_agreement_with_adjective"])
def test_demonstratives_agree_with_their_noun(uid: str) -> None:
    def agrees(words: list[str]) -> bool:
        place = next(i for i, word in enumerate(words) if word in {"this", "these", "that", "those"})
        noun = next(word for word in words[place + 1 :] if word in NOUN_OF_FORM)
        return (words[place] in ("these", "those")) == (noun in PLURALS)

    for row in pairs()[uid]:
        assert agrees(words_of(row, "sentence_good")) and not agrees(words_of(row, "sentence_bad")), row


@pytest.mark.parametrize("uid", ["anaphor_number_agreement", "anaphor_gender_agreement", "reflexive_locality"])
def test_reflexives_agree_with_the_nearest_subject(uid: str) -> None:
    for row in pairs()[uid]:
        good, bad = words_of(row, "sentence_good"), words_of(row, "sentence_bad")
        antecedent = [word for word in good if word in NOUN_OF_FORM][-1]
        gender = {"m": "himself", "f": "herself"}.get(NOUN_OF_FORM[antecedent].gender, "itself")
        assert good[-1] == ("themselves" if antecedent in PLURALS else gender) != bad[-1], row
    last = Counter(words_of(row, "sentence_good")[-1] for row in pairs()[uid])
    if uid != "anaphor_number_agreement":
        assert last["himself"] == last["herself"] == PAIRS // 2
    else:
        assert last["themselves"] == PAIRS // 2


def test_other_phenomena_contrast_what_they_name() -> None:
    for row in pairs()["npi_ever_under_negation"]:
        assert "not ever" in str(row["sentence_good"]) and "not" not in words_of(row, "sentence_bad")
    for row in pairs()["npi_any_under_no"]:
        assert words_of(row, "sentence_good")[0] in ("no", "few") and words_of(row, "sentence_bad")[0] not in (
            "no",
            "few",
        )
    for row in pairs()["existential_there_quantifiers"]:
        assert words_of(row, "sentence_bad")[2] in ("every", "each", "all", "most")
    for uid in ("ellipsis_n_bar", "coordinate_structure_island"):
        assert all(row["lexically_identical"] for row in pairs()[uid])
    auxiliaries = Counter(words_of(row, "sentence_good")[-2] for row in pairs()["ellipsis_verb_phrase"])
    wrong = Counter(words_of(row, "sentence_bad")[-2] for row in pairs()["ellipsis_verb_phrase"])
    for word in ("did", "had"):
        assert auxiliaries[word] == wrong[word] == PAIRS // 6


# ---- what is held out ---------------------------------------------------------------------------------------------


def test_no_derivation_uses_a_held_out_combination() -> None:
    record = corpus()[1]
    assert not [step for step in record if is_reserved(*step)]
    for uid, phenomenon in PHENOMENA.items():
        for pair in draw_pairs(uid, PAIRS, 3):
            assert pair.combination[0] == phenomenon.relation
            assert is_reserved(*pair.combination) and pair.combination not in record


def test_words_of_held_out_combinations_are_frequent() -> None:
    counts = Counter(word for words in sentences() for word in words)
    for uid in PHENOMENA:
        for pair in draw_pairs(uid, PAIRS, 3):
            for lemma in pair.combination[1:]:
                forms = (verb_forms(lemma) if lemma in VERB else set()) | noun_forms(lemma)
                forms |= {"these", "those"} if lemma in ("this", "that") else set()
                assert sum(counts[form] for form in forms) >= 5, (uid, lemma)


@cache
def seen_in_text() -> dict[str, set[tuple[str, str]]]:
    """Combinations as a reader without the grammar finds them: neighbouring words, and verb-object by skipping."""
    skipped = {
        "the",
        "a",
        "an",
        "this",
        "that",
        "these",
        "those",
        "some",
        "any",
        "many",
        "two",
        "three",
        "four",
        "five",
    }
    skipped |= {"his", "her", "its", "their", "your", "my", "every", "each", "all", "most", "few", "several", "another"}
    adjectives = {adjective.lemma for adjective in ADJECTIVES}
    skipped |= {"at", "least", "more", "fewer", "than", "no"} | adjectives
    forms = {form for verb in VERBS for form in verb_forms(verb.lemma)}
    found: dict[str, set[tuple[str, str]]] = {
        relation: set() for relation in ("next", "object", "demonstrative", "place", "reflexive")
    }
    for words in sentences():
        found["next"].update(pairwise(words))
        triples = zip(words, words[1:], words[2:], strict=False)
        found["reflexive"].update((noun, verb) for noun, verb, last in triples if last.endswith(("self", "selves")))
        for position, word in enumerate(words):
            if word in forms or word in ("this", "that", "these", "those"):
                noun = next((later for later in words[position + 1 :] if later not in skipped), "")
                found["object"].add((word, noun))
            if word in ("this", "these", "those"):
                noun = next((later for later in words[position + 1 :] if later not in adjectives), "")
                found["demonstrative"].add((word, noun))
        if words[:1] == ["there"] and words[-1] in NOUN_OF_FORM:
            found["place"].update((word, words[-1]) for word in words[:-1] if word in NOUN_OF_FORM)
    return found


def test_no_pair_occurs_in_the_text() -> None:
    lines = {" ".join(words) for words in sentences()}
    for rows in pairs().values():
        for row in rows:
            for key in ("sentence_good", "sentence_bad"):
                assert " ".join(words_of(row, key)) not in lines, row


@pytest.mark.parametrize("uid", sorted(PHENOMENA))
def test_held_out_combinations_are_not_in_the_text(uid: str) -> None:
    seen = seen_in_text()
    for pair in draw_pairs(uid, PAIRS, 3):
        relation, first, second = pair.combination
        if relation in ("subject_verb", "reflexive"):
            for noun in noun_forms(first):
                for verb in verb_forms(second):
                    if relation == "subject_verb":
                        assert (noun, verb) not in seen["next"], pair
                    else:
                        assert (noun, verb) not in seen["reflexive"], pair
        elif relation == "verb_object":
            assert not seen["object"] & {(v, n) for v in verb_forms(first) for n in noun_forms(second)}, pair
        elif relation == "demonstrative_noun":
            words = {"this": ("this", "these"), "that": ("those",)}[first]
            assert not seen["demonstrative"] & {(word, noun) for word in words for noun in noun_forms(second)}, pair
        else:
            assert not seen["place"] & {(noun, second) for noun in noun_forms(first)}, pair
