"""Minimal pairs for the embedded corpus, in BLiMP's format (arXiv 1912.00582): one sentence right, one wrong.

Each phenomenon is built around a combination of two words that `is_reserved` keeps out of the corpus: a model has
read both words often, but never together, so only the rule can tell the sentences apart. Good and bad always have
the same number of words, and the two halves of a phenomenon (singular and plural, past and participle, ...) alternate.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

from corpora.synthetic_constructions import (
    there_is,
    two_amounts,
    with_same_verb,
)
from corpora.synthetic_grammar import (
    CLAUSAL,
    NUMBERS,
    Combination,
    Draft,
    Phrase,
    adjunct,
    attractor_phrase,
    auxiliary,
    choose_reflexive_verb,
    choose_verb,
    complement,
    demonstrative,
    finish,
    finite,
    frame_of,
    is_reserved,
    main_form,
    negative,
    noun_group,
    noun_phrase,
    noun_table,
    object_phrase,
    object_relative,
    object_table,
    place_phrase,
    reflexive_pronoun,
    subject_relative,
    table,
    verb_table,
    weighted,
)
from corpora.synthetic_lexicon import INANIMATE_CAUSES, PERSON_NAMES, TOPICS, VERB, Noun, Verb

DETERMINERS = {False: weighted(the=5, a=2, every=0.5), True: weighted(the=5, some=2, many=1.5)}
TENSES = weighted(past=4, present=3, perfect=1, will=1)


@dataclass(frozen=True)
class Pair:
    """Two sentences without capital and mark, and the reserved combination that both are built around."""

    good: str
    bad: str
    combination: Combination
    mark: str = "."


@dataclass(frozen=True)
class Phenomenon:
    """How one phenomenon is named in BLiMP's terms, which relation it holds out, and how a pair of it is drawn."""

    field: str
    linguistics_term: str
    relation: str  # of `is_reserved`
    draw: Callable[[Draft, int], Pair | None]  # the int alternates the halves; None: no fitting words, draw again
    one_prefix: bool = False  # whether the words before the first difference decide which continuation is right


def minimal_pairs(pairs: int, seed: int) -> dict[str, list[dict[str, object]]]:
    """UID -> this many rows with BLiMP's keys; a function of (seed, UID), and a prefix of every longer list.

    `lexically_identical` says that both sentences consist of the same words in another order.
    """
    return {
        uid: [blimp_row(uid, number, pair) for number, pair in enumerate(draw_pairs(uid, pairs, seed))]
        for uid in PHENOMENA
    }


def draw_pairs(uid: str, pairs: int, seed: int) -> list[Pair]:
    """Distinct pairs of one phenomenon, with the combination that each holds out."""
    rng = random.Random(f"{seed}/{uid}")
    drawn: dict[tuple[str, str], Pair] = {}
    while len(drawn) < pairs:
        draft = Draft(rng, rng.choice(TOPICS), DETERMINERS, TENSES)
        pair = PHENOMENA[uid].draw(draft, len(drawn))
        if pair is not None:
            drawn.setdefault((pair.good, pair.bad), pair)
    return list(drawn.values())


def blimp_row(uid: str, number: int, pair: Pair) -> dict[str, object]:
    """The pair as one line of BLiMP's JSONL files."""
    phenomenon = PHENOMENA[uid]
    good, bad = finish(pair.good, pair.mark), finish(pair.bad, pair.mark)
    row: dict[str, object] = {"sentence_good": good, "sentence_bad": bad}
    if phenomenon.one_prefix:
        good_words, bad_words = good.rstrip(pair.mark).split(" "), bad.rstrip(pair.mark).split(" ")
        first = next(i for i, (left, right) in enumerate(zip(good_words, bad_words, strict=True)) if left != right)
        row["one_prefix_prefix"] = " ".join(good_words[:first])
        row["one_prefix_word_good"], row["one_prefix_word_bad"] = good_words[first], bad_words[first]
    return row | {
        "field": phenomenon.field,
        "linguistics_term": phenomenon.linguistics_term,
        "UID": uid,
        "simple_LM_method": True,
        "one_prefix_method": phenomenon.one_prefix,
        "two_prefix_method": False,
        "lexically_identical": sorted(pair.good.split(" ")) == sorted(pair.bad.split(" ")),
        "pairID": str(number),
    }


# ---- what several phenomena need ----------------------------------------------------------------------------------


def actor(draft: Draft, plural: bool, group: str = "animate", determiner: str = "") -> Phrase:
    """Somebody who acts, without adjective more often than with one."""
    return noun_phrase(draft, draft.pick(noun_table(group, draft.topic)), plural, determiner, 0.1)


def somebody(draft: Draft) -> Phrase:
    """A name, or a person of either number."""
    if draft.chance(0.4):
        return noun_phrase(draft, draft.one_of(*PERSON_NAMES), False)
    return actor(draft, draft.chance(0.4), "human")


def opposite(agreement: str) -> str:
    """The other number."""
    return "s" if agreement == "p" else "p"


def held_out_object(draft: Draft, verb: Verb) -> Noun | None:
    """An object that the corpus never gives to this verb."""
    choices = object_table(verb, draft.topic, True)
    return draft.pick(choices) if choices[0] else None


def subject_and_verb(subject: Phrase, verb: Verb) -> Combination:
    """The held-out combination of most phenomena."""
    return ("subject_verb", subject.noun.lemma, verb.lemma)


# ---- agreement ----------------------------------------------------------------------------------------------------


def agreeing(draft: Draft, number: int, subject: Phrase) -> Pair | None:
    """The verb in both numbers: plain, progressive and perfect in turn."""
    frame = frame_of(draft)
    verb = choose_verb(draft, subject, frame, reserved=True)
    if verb is None:
        return None
    tense = ("present", "progressive", "perfect")[number // 2 % 3]
    rest = complement(draft, verb, subject, frame)
    good, bad = (finite(verb, tense, agreement) for agreement in (subject.agreement, opposite(subject.agreement)))
    return Pair(f"{subject.text} {good}{rest}", f"{subject.text} {bad}{rest}", subject_and_verb(subject, verb))


def plain_agreement(draft: Draft, number: int) -> Pair | None:
    """The dogs sleep / sleeps in the barn."""
    return agreeing(draft, number, actor(draft, number % 2 == 1))


def agreement_across_phrase(draft: Draft, number: int) -> Pair | None:
    """The dogs near the barn sleep / sleeps: the nearer noun always has the other number."""
    plural = number % 2 == 1
    return agreeing(draft, number, attractor_phrase(draft, actor(draft, plural), not plural))


def agreement_across_relative(draft: Draft, number: int) -> Pair | None:
    """The dogs that the girl feeds sleep / sleeps: the noun inside the clause always has the other number."""
    plural = number % 2 == 1
    build = object_relative if number // 6 % 2 else subject_relative
    head = actor(draft, plural)
    subject = build(draft, head, draft.one_of("present", "past"), not plural)
    return None if subject is head else agreeing(draft, number, subject)


def demonstrative_and_noun(draft: Draft, number: int, described: bool) -> Pair | None:
    """An object with a demonstrative: the noun differs, or with an adjective between them the demonstrative."""
    plural, base = number % 2 == 1, ("this", "that")[number // 2 % 2]
    subject = somebody(draft)
    verb = choose_verb(draft, subject, "strict")
    noun = draft.pick(object_table(verb, draft.topic))
    if not is_reserved("demonstrative_noun", base, noun.lemma):
        return None
    start = f"{subject.text} {finite(verb, draft.tense(), subject.agreement)}"
    ending = adjunct(draft, 0.3)
    combination = ("demonstrative_noun", base, noun.lemma)
    right, wrong = demonstrative(base, plural), demonstrative(base, not plural)
    if described:
        group = noun_group(draft, noun, plural, 1.0)
        return Pair(f"{start} {right} {group}{ending}", f"{start} {wrong} {group}{ending}", combination)
    good, bad = noun.form(plural), noun.form(not plural)
    return Pair(f"{start} {right} {good}{ending}", f"{start} {right} {bad}{ending}", combination)


def demonstrative_noun(draft: Draft, number: int) -> Pair | None:
    """Mia likes these apples / apple."""
    return demonstrative_and_noun(draft, number, False)


def demonstrative_adjective_noun(draft: Draft, number: int) -> Pair | None:
    """Mia likes these / this red apples."""
    return demonstrative_and_noun(draft, number, True)


# ---- reflexives ---------------------------------------------------------------------------------------------------


def reflexive_pair(draft: Draft, antecedent: Phrase, start: str, wrong: str, tense: str) -> Pair | None:
    """The antecedent's own reflexive against a wrong one."""
    verb = choose_reflexive_verb(draft, antecedent, reserved=True)
    if verb is None:
        return None
    words = f"{start}{antecedent.text} {finite(verb, tense, antecedent.agreement)}"
    combination = ("reflexive", antecedent.noun.lemma, verb.lemma)
    return Pair(f"{words} {reflexive_pronoun(antecedent)}", f"{words} {wrong}", combination)


def reflexive_number(draft: Draft, number: int) -> Pair | None:
    """The boys hurt themselves / himself."""
    plural = number % 2 == 1
    antecedent = actor(draft, plural)
    if antecedent.noun.person and not antecedent.gender:
        return None
    other = Phrase("", antecedent.noun, opposite(antecedent.agreement), (), antecedent.gender)
    return reflexive_pair(draft, antecedent, "", reflexive_pronoun(other), draft.one_of("past", "past", "will"))


def gendered(draft: Draft, gender: str) -> Phrase:
    """A name or a noun of this gender."""
    if draft.chance(0.5):
        return noun_phrase(draft, draft.one_of(*(name for name in PERSON_NAMES if name.gender == gender)), False)
    noun = draft.pick(noun_table("human", draft.topic))
    while noun.gender != gender:
        noun = draft.pick(noun_table("human", draft.topic))
    return noun_phrase(draft, noun, False)


def reflexive_gender(draft: Draft, number: int) -> Pair | None:
    """Mia hurt herself / himself."""
    antecedent = gendered(draft, "fm"[number % 2])
    wrong = ("himself", "herself")[number % 2]
    return reflexive_pair(draft, antecedent, "", wrong, draft.one_of("past", "perfect", "will"))


def reflexive_locality(draft: Draft, number: int) -> Pair | None:
    """Tom thinks that Mia hurt herself / himself: the nearer subject binds, not the one outside."""
    outer, inner = gendered(draft, "mf"[number % 2]), gendered(draft, "fm"[number % 2])
    matrix = finite(VERB[draft.pick(CLAUSAL["that"])], draft.one_of("present", "past"), "s")
    return reflexive_pair(draft, inner, f"{outer.text} {matrix} that ", reflexive_pronoun(outer), "past")


# ---- negative polarity --------------------------------------------------------------------------------------------


def ever_under_negation(draft: Draft, number: int) -> Pair | None:
    """The girl has not / also ever danced."""
    subject = actor(draft, number % 2 == 1)
    frame = frame_of(draft)
    verb = choose_verb(draft, subject, frame, reserved=True)
    if verb is None:
        return None
    tense, rest = draft.one_of("perfect", "pluperfect", "will"), complement(draft, verb, subject, frame)
    adverb = draft.one_of("also", "really", "often")
    good, bad = (negative(verb, tense, subject.agreement, f"{word} ever") for word in ("not", adverb))
    return Pair(f"{subject.text} {good}{rest}", f"{subject.text} {bad}{rest}", subject_and_verb(subject, verb))


def any_under_no(draft: Draft, number: int) -> Pair | None:
    """No / some girl found any keys."""
    plural = number % 2 == 1
    noun = draft.pick(noun_table("animate", draft.topic))
    licensed, bare = ("few", "many") if plural and draft.chance(0.5) else ("no", draft.one_of("the", "some"))
    group = noun_group(draft, noun, plural, 0.1)
    subject = Phrase(f"{licensed} {group}", noun, "p" if plural else "s")
    verb = choose_verb(draft, subject, "strict")
    thing = held_out_object(draft, verb)
    if thing is None:
        return None
    tense = draft.one_of("past", "present", "perfect", "pluperfect")
    rest = f"{finite(verb, tense, subject.agreement)} any {thing.form(draft.chance(0.7))}"
    return Pair(f"{subject.text} {rest}", f"{bare} {group} {rest}", ("verb_object", verb.lemma, thing.lemma))


# ---- forms and arguments of verbs ---------------------------------------------------------------------------------


def irregular_form(draft: Draft, number: int) -> Pair | None:
    """The girl ate / eaten a cake; the girl has eaten / ate a cake."""
    subject = somebody(draft) if draft.chance(0.5) else actor(draft, draft.chance(0.4))
    frame = frame_of(draft)
    irregular = [verb for verb in verb_table(subject.noun, frame, True)[0] if verb.irregular]
    if not irregular:
        return None
    verb = draft.one_of(*irregular)
    rest = complement(draft, verb, subject, frame)
    helper = f" {auxiliary(draft.one_of('perfect', 'pluperfect'), subject.agreement)}" if number % 2 else ""
    good, bad = (verb.participle, verb.past) if number % 2 else (verb.past, verb.participle)
    start = f"{subject.text}{helper}"
    return Pair(f"{start} {good}{rest}", f"{start} {bad}{rest}", subject_and_verb(subject, verb))


def missing_object(draft: Draft, number: int) -> Pair | None:
    """The girl laughed / lifted in the barn; neither verb was ever read with this subject."""
    subject = actor(draft, number % 2 == 1)
    fine = choose_verb(draft, subject, "intransitive", reserved=True)
    wanting = choose_verb(draft, subject, "object needed", reserved=True)
    if fine is None or wanting is None:
        return None
    tense, rest = draft.one_of("past", "perfect", "will"), place_phrase(draft)
    good, bad = (f"{subject.text} {finite(verb, tense, subject.agreement)} {rest}" for verb in (fine, wanting))
    return Pair(good, bad, subject_and_verb(subject, fine))


def impossible_object(draft: Draft, number: int) -> Pair | None:
    """The girl lifted / laughed the bag."""
    subject = actor(draft, number % 2 == 1)
    fine, lacking = choose_verb(draft, subject, "strict"), choose_verb(draft, subject, "object impossible")
    thing = held_out_object(draft, fine)
    if thing is None or lacking.frame != "intransitive":  # no such verb: the fallback came
        return None
    tense, rest = draft.one_of("past", "perfect", "will"), f"the {thing.form(draft.chance(0.4))}"
    good, bad = (f"{subject.text} {finite(verb, tense, subject.agreement)} {rest}" for verb in (fine, lacking))
    return Pair(good, bad, ("verb_object", fine.lemma, thing.lemma))


def animate_subject(draft: Draft, number: int) -> Pair | None:
    """The girl / spoon followed the dog."""
    plural = number % 2 == 1
    subject, thing = actor(draft, plural, "animate", "the"), actor(draft, plural, "inanimate", "the")
    verb = choose_verb(draft, subject, "object", reserved=True)
    if verb is None or verb.lemma in INANIMATE_CAUSES.split() or len(subject.text.split()) != len(thing.text.split()):
        return None
    tense = draft.one_of("past", "present", "will")
    rest = f"{finite(verb, tense, subject.agreement)} {object_phrase(draft, verb, subject).text}"
    return Pair(f"{subject.text} {rest}", f"{thing.text} {rest}", subject_and_verb(subject, verb))


# ---- gaps ---------------------------------------------------------------------------------------------------------

COMPLEMENTIZED = table(sorted(set(CLAUSAL["that"][0]) & set(CLAUSAL["wh"][0])), lambda _: 1.0)


def question_word(verb: Verb) -> str:
    """Who or what this verb asks for."""
    return "what" if "treasure" in verb.objects or "human" not in verb.objects else "who"


def embedding(draft: Draft, number: int, gap: bool) -> Pair | None:
    """A clause under a verb that takes both `that` and a question."""
    other = actor(draft, number % 2 == 1)
    verb = choose_verb(draft, other, "object needed" if gap else "strict", reserved=True)
    if verb is None:
        return None
    subject = somebody(draft)
    matrix = finite(VERB[draft.pick(COMPLEMENTIZED)], draft.one_of("past", "present"), subject.agreement)
    start = f"{subject.text} {matrix}"
    inner = f"{other.text} {finite(verb, draft.one_of('past', 'present', 'pluperfect'), other.agreement)}"
    inner += adjunct(draft, 0.25) if gap else f" {object_phrase(draft, verb, other).text}"
    words = (question_word(verb), "that") if gap else ("that", question_word(verb))
    good, bad = (f"{start} {word} {inner}" for word in words)
    return Pair(good, bad, subject_and_verb(other, verb))


def gap_after_wh(draft: Draft, number: int) -> Pair | None:
    """Mia knows what / that the fox found."""
    return embedding(draft, number, True)


def no_gap_after_that(draft: Draft, number: int) -> Pair | None:
    """Mia knows that / what the fox found the key."""
    return embedding(draft, number, False)


def coordinate_island(draft: Draft, number: int) -> Pair | None:
    """What did the fox and the bear find? / What did the fox find and the bear?"""
    first = actor(draft, number % 2 == 1)
    verb = choose_verb(draft, first, "strict", reserved=True)
    other = with_same_verb(draft, first, verb) if verb else None
    if other is None:
        return None
    tense = draft.one_of("past", "pluperfect", "will")
    start, main = f"{question_word(verb)} {auxiliary(tense, 'p')} {first.text}", main_form(verb, tense)
    combination = subject_and_verb(first, verb)
    return Pair(f"{start} and {other.text} {main}", f"{start} {main} and {other.text}", combination, "?")


# ---- quantifiers and ellipsis -------------------------------------------------------------------------------------


def existential_quantifier(draft: Draft, number: int) -> Pair | None:
    """There are many / all foxes in the forest."""
    plural = number % 2 == 1
    noun = draft.pick(noun_table("animate" if draft.chance(0.6) else "inanimate", draft.topic))
    place = draft.pick(noun_table("place", draft.topic))
    if not is_reserved("noun_place", noun.lemma, place.lemma):
        return None
    weak = draft.one_of("some", "many", "few") if plural else draft.one_of("a", "a", "no")
    strong = draft.one_of("all", "most") if plural else draft.one_of("every", "each")
    tense = draft.one_of("present", "past")
    good = there_is(draft, noun, plural, weak, place, tense)
    there, be, _, *rest = good.split(" ")
    return Pair(good, " ".join([there, be, strong, *rest]), ("noun_place", noun.lemma, place.lemma))


def scalar_under_no(draft: Draft, number: int) -> Pair | None:
    """No girl carried more than / at least two bags."""
    subject = actor(draft, number % 2 == 1, "animate", "no")
    verb = choose_verb(draft, subject, "strict")
    thing = held_out_object(draft, verb)
    if thing is None:
        return None
    right, wrong = ("more than", "at least") if number // 2 % 2 else ("fewer than", "at most")
    start = f"{subject.text} {finite(verb, draft.one_of('past', 'present'), subject.agreement)}"
    rest = f"{draft.pick(NUMBERS)} {thing.plural}"
    return Pair(f"{start} {right} {rest}", f"{start} {wrong} {rest}", ("verb_object", verb.lemma, thing.lemma))


def noun_ellipsis(draft: Draft, number: int) -> Pair | None:
    """Mia ate two red apples and Tom ate three. / Mia ate two apples and Tom ate three red."""
    subject = somebody(draft) if number % 2 else actor(draft, draft.chance(0.4))
    verb = choose_verb(draft, subject, "strict")
    other, thing = with_same_verb(draft, subject, verb), held_out_object(draft, verb)
    if other is None or thing is None:
        return None
    good = two_amounts(draft, subject, other, verb, thing, draft.one_of("past", "present"), True)
    words = good.split(" ")
    adjective = words.pop(words.index(thing.plural) - 1)
    return Pair(good, " ".join([*words, adjective]), ("verb_object", verb.lemma, thing.lemma))


TIMES = (("past", "past progressive", "pluperfect"), ("present", "progressive", "perfect"))
AUXILIARY_SWAPS = [swap for swaps in zip(*(permutations(time, 2) for time in TIMES), strict=True) for swap in swaps]


def verb_phrase_ellipsis(draft: Draft, number: int) -> Pair | None:
    """Mia laughed, and Tom did / was too."""
    subject = somebody(draft) if draft.chance(0.5) else actor(draft, draft.chance(0.5))
    frame = frame_of(draft)
    verb = choose_verb(draft, subject, frame, reserved=True)
    other = with_same_verb(draft, subject, verb) if verb else None
    if other is None:
        return None
    right, wrong = AUXILIARY_SWAPS[number % len(AUXILIARY_SWAPS)]
    start = f"{subject.text} {finite(verb, right, subject.agreement)}{complement(draft, verb, subject, frame)}"
    good, bad = (f"{start}, and {other.text} {auxiliary(tense, other.agreement)} too" for tense in (right, wrong))
    return Pair(good, bad, subject_and_verb(subject, verb))


AGREEMENT, BOTH = "subject_verb_agreement", "syntax_semantics"
PHENOMENA = {
    "subject_verb_agreement": Phenomenon("morphology", AGREEMENT, "subject_verb", plain_agreement, True),
    "agreement_across_phrase": Phenomenon("morphology", AGREEMENT, "subject_verb", agreement_across_phrase, True),
    "agreement_across_relative": Phenomenon("morphology", AGREEMENT, "subject_verb", agreement_across_relative, True),
    "determiner_noun_agreement": Phenomenon(
        "morphology", "determiner_noun_agreement", "demonstrative_noun", demonstrative_noun, True
    ),
    "determiner_noun_agreement_with_adjective": Phenomenon(
        "morphology", "determiner_noun_agreement", "demonstrative_noun", demonstrative_adjective_noun
    ),
    "anaphor_number_agreement": Phenomenon("morphology", "anaphor_agreement", "reflexive", reflexive_number, True),
    "anaphor_gender_agreement": Phenomenon("morphology", "anaphor_agreement", "reflexive", reflexive_gender, True),
    "reflexive_locality": Phenomenon(BOTH, "binding", "reflexive", reflexive_locality, True),
    "npi_ever_under_negation": Phenomenon("semantics", "npi_licensing", "subject_verb", ever_under_negation),
    "npi_any_under_no": Phenomenon("semantics", "npi_licensing", "verb_object", any_under_no),
    "irregular_verb_forms": Phenomenon("morphology", "irregular_forms", "subject_verb", irregular_form, True),
    "drop_argument": Phenomenon("syntax", "argument_structure", "subject_verb", missing_object),
    "transitive": Phenomenon("syntax", "argument_structure", "verb_object", impossible_object),
    "animate_subject": Phenomenon("syntax", "s-selection", "subject_verb", animate_subject),
    "wh_vs_that_with_gap": Phenomenon("syntax", "filler_gap_dependency", "subject_verb", gap_after_wh),
    "wh_vs_that_no_gap": Phenomenon("syntax", "filler_gap_dependency", "subject_verb", no_gap_after_that),
    "coordinate_structure_island": Phenomenon("syntax", "island_effects", "subject_verb", coordinate_island),
    "existential_there_quantifiers": Phenomenon("semantics", "quantifiers", "noun_place", existential_quantifier),
    "superlative_quantifiers": Phenomenon("semantics", "quantifiers", "verb_object", scalar_under_no),
    "ellipsis_n_bar": Phenomenon("syntax", "ellipsis", "verb_object", noun_ellipsis),
    "ellipsis_verb_phrase": Phenomenon("syntax", "ellipsis", "subject_verb", verb_phrase_ellipsis, True),
}
