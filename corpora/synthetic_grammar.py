"""A probabilistic grammar of English: noun phrases, verbs, clauses, and the tables that weigh their words.

Every choice of a word beside another goes through a weighted table. A table leaves out the combinations that are
reserved for the minimal pairs (`is_reserved`), so no derivation can contain one, and each combination that a
derivation uses is written into its record. Two combinations are not equally likely even when both are allowed
(`affinity`): real text has collocations that must be remembered one by one, and a larger model remembers more.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from typing import Any

from corpora.synthetic_lexicon import (
    ADJECTIVES,
    KIND_GROUPS,
    NOUNS,
    OBJECT_IMPOSSIBLE,
    OBJECT_NEEDED,
    PLACE_PREPOSITIONS,
    THAT_VERBS,
    VERB,
    VERBS,
    WH_VERBS,
    Adjective,
    Noun,
    Verb,
)

RESERVED_SHARE = 0.15  # of all combinations of two words
EVERYDAY = frozenset("live eat work use".split())  # needed to state facts about everything: never reserved
TOPICAL, UNIVERSAL, FOREIGN = 1.0, 0.8, 0.02  # weight of a noun in its topic, of one without topic, of any other
NOUN_DECAY, VERB_DECAY = 0.7, 0.5  # exponents: how fast frequency falls with rank within a row of the lexicon
Table = tuple[tuple[Any, ...], tuple[float, ...]]  # items and cumulative weights
Combination = tuple[str, str, str]  # which relation, first lemma, second lemma

YOU, ME = Noun("you", "", "name", "", ""), Noun("I", "", "name", "", "")
AGREEMENT = {YOU: "p", ME: "i"}
BE_PRESENT, BE_PAST = {"s": "is", "p": "are", "i": "am"}, {"s": "was", "p": "were", "i": "was"}
AUXILIARY = {
    "present": {"s": "does", "p": "do", "i": "do"},
    "past": dict.fromkeys("spi", "did"),
    "progressive": BE_PRESENT,
    "past progressive": BE_PAST,
    "perfect": {"s": "has", "p": "have", "i": "have"},
    "pluperfect": dict.fromkeys("spi", "had"),
    **{modal: dict.fromkeys("spi", modal) for modal in ("can", "will", "must")},
}
PAST_TENSES = frozenset(("past", "past progressive", "pluperfect"))


def _fraction(*parts: str) -> float:
    """A number in [0, 1) that depends on the words alone, on every machine."""
    return int.from_bytes(blake2b("|".join(parts).encode(), digest_size=4).digest(), "big") / 2**32


@cache
def is_reserved(relation: str, first: str, second: str) -> bool:
    """Whether this combination is kept for the minimal pairs, so that the corpus never contains it.

    Relations: `subject_verb`, `verb_object`, `demonstrative_noun`, `reflexive` (antecedent and verb), `noun_place`.
    """
    if EVERYDAY & {first, second}:
        return False
    return _fraction("reserved", relation, first, second) < RESERVED_SHARE


@cache
def affinity(first: str, second: str) -> float:
    """How much more often than chance two words meet: a stable number between 1/4 and 4."""
    return 4.0 ** (2 * _fraction("affinity", first, second) - 1)


def table(items: Iterable[Any], weight: Callable[[Any], float]) -> Table:
    """Items with their cumulative weights, ready to be drawn from."""
    chosen, total, cumulative = tuple(items), 0.0, []
    for item in chosen:
        total += weight(item)
        cumulative.append(total)
    return chosen, tuple(cumulative)


def weighted(**weights: float) -> Table:
    """A table written by hand: `_` in a name stands for a space."""
    spaced = {name.replace("_", " "): weight for name, weight in weights.items()}
    return table(spaced, spaced.__getitem__)


@dataclass(slots=True)
class Draft:
    """A text being derived: its random source, its topic and style, whom it is about, which combinations it used."""

    rng: random.Random
    topic: str
    determiners: dict[bool, Table]  # by plural
    tenses: Table
    cast: tuple[Noun, ...] = ()  # names that may be objects and second subjects
    record: list[Combination] = field(default_factory=list)
    mentioned: list[Noun] = field(default_factory=list)  # common nouns, in the order of the text

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def pick(self, choices: Table) -> Any:
        """One item of a weighted table."""
        items, cumulative = choices
        return items[bisect(cumulative, self.rng.random() * cumulative[-1], 0, len(items) - 1)]

    def one_of(self, *items: Any) -> Any:
        """One item, all equally likely."""
        return items[int(self.rng.random() * len(items))]

    def tense(self) -> str:
        """A tense of this register."""
        return self.pick(self.tenses)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase: its words, its head, its agreement (s, p, i), and other nouns that stand before the verb."""

    text: str
    noun: Noun
    agreement: str
    also: tuple[Noun, ...] = ()
    gender: str = ""

    @property
    def plural(self) -> bool:
        """Whether it takes a plural verb."""
        return self.agreement == "p"


# ---- tables -------------------------------------------------------------------------------------------------------


@cache
def noun_table(group: str, topic: str) -> Table:
    """Nouns of a group of kinds; within a kind and topic the frequencies fall as in natural text."""
    kinds = KIND_GROUPS.get(group) or frozenset(group.split())
    return table((noun for noun in NOUNS if noun.kind in kinds), lambda noun: _noun_weight(noun, topic))


@cache
def _noun_weight(noun: Noun, topic: str) -> float:
    peers = [other for other in NOUNS if (other.kind, other.topic) == (noun.kind, noun.topic)]
    place = TOPICAL if noun.topic == topic else UNIVERSAL if not noun.topic else FOREIGN
    return place * (peers.index(noun) + 1) ** -NOUN_DECAY


@cache
def _verb_weight(verb: Verb) -> float:
    peers = [other for other in VERBS if (other.subjects, other.objects) == (verb.subjects, verb.objects)]
    return (peers.index(verb) + 1) ** -VERB_DECAY


FRAMES = {
    "bare": lambda verb: verb.frame in ("intransitive", "either"),
    "object": lambda verb: verb.frame in ("transitive", "either"),
    "strict": lambda verb: verb.frame == "transitive",
    "intransitive": lambda verb: verb.frame == "intransitive",
    "reflexive": lambda verb: verb.reflexive,
    "object needed": lambda verb: verb.lemma in OBJECT_NEEDED.split(),
    "object impossible": lambda verb: verb.lemma in OBJECT_IMPOSSIBLE.split(),
}


@cache
def verb_table(subject: Noun, frame: str, reserved: bool = False) -> Table:
    """Verbs that this subject can have in this frame, either all reserved combinations or all the others."""
    fits = FRAMES[frame]
    return table(
        (
            verb
            for verb in VERBS
            if fits(verb)
            and subject.kind in verb.subjects
            and is_reserved("subject_verb", subject.lemma, verb.lemma) == reserved
        ),
        lambda verb: _verb_weight(verb) * affinity(subject.lemma, verb.lemma),
    )


@cache
def object_table(verb: Verb, topic: str, reserved: bool = False) -> Table:
    """Nouns that this verb can have as its object."""
    return table(
        (
            noun
            for noun in NOUNS
            if noun.kind in verb.objects and is_reserved("verb_object", verb.lemma, noun.lemma) == reserved
        ),
        lambda noun: _noun_weight(noun, topic) * affinity(verb.lemma, noun.lemma),
    )


@cache
def adjective_table(kind: str) -> Table:
    """Adjectives for nouns of one kind, commonest first."""
    fitting = [adjective for adjective in ADJECTIVES if kind in adjective.kinds]
    return table(fitting, lambda adjective: (fitting.index(adjective) + 2) ** -0.5)


CLAUSAL = {kind: table(words.split(), lambda _: 1.0) for kind, words in (("that", THAT_VERBS), ("wh", WH_VERBS))}
ADJUNCTS = weighted(
    place=6, today=0.3, every_day=0.4, in_the_morning=0.6, at_night=0.6, in_the_evening=0.4, in_the_rain=0.3, again=0.4
)  # fmt: skip
MANNERS = weighted(quietly=3, happily=2, slowly=2, quickly=1.5, carefully=1)
LOCATORS = weighted(near=3, behind=2, beside=2)
NUMBERS = weighted(two=4, three=3, four=1.5, five=1)
COMPARISONS = weighted(at_least=1, at_most=1, more_than=1, fewer_than=1)


# ---- noun phrases -------------------------------------------------------------------------------------------------


def finish(text: str, mark: str = ".") -> str:
    """A sentence: first letter capital, mark at the end."""
    return text[0].upper() + text[1:] + mark


def with_article(words: str) -> str:
    """The words after `a` or `an`."""
    vowel = words[0].lower() in "aeiou" and not words.startswith("unicorn")
    return f"{'an' if vowel else 'a'} {words}"


def demonstrative(base: str, plural: bool) -> str:
    """The form of `this` or `that`."""
    return {"this": ("this", "these"), "that": ("that", "those")}[base][plural]


def noun_group(draft: Draft, noun: Noun, plural: bool, adjective: float = 0.22) -> str:
    """The noun, perhaps after an adjective."""
    form = noun.form(plural)
    return f"{draft.pick(adjective_table(noun.kind)).lemma} {form}" if draft.chance(adjective) else form


def noun_phrase(
    draft: Draft,
    noun: Noun,
    plural: bool,
    determiner: str = "",
    adjective: float = 0.22,
    owner: Phrase | None = None,
) -> Phrase:
    """A determiner and a noun group; a name stands alone. The determiner `own` is the possessive of the owner."""
    if noun.proper:
        return Phrase(noun.lemma, noun, AGREEMENT.get(noun, "s"), gender=noun.gender)
    group = noun_group(draft, noun, plural, adjective)
    word = determiner or draft.pick(draft.determiners[plural])
    if word in ("this", "that"):
        if is_reserved("demonstrative_noun", word, noun.lemma):
            word = "the"
        else:
            draft.record.append(("demonstrative_noun", word, noun.lemma))
            word = demonstrative(word, plural)
    if word == "own":
        word = possessive(owner)
    text = with_article(group) if word == "a" else group if word == "bare" else f"{word} {group}"
    return Phrase(text, noun, "p" if plural else "s", gender=noun.gender)


def possessive(owner: Phrase | None) -> str:
    """The possessive pronoun that agrees with the owner; the article where there is none or it has no known gender."""
    if owner is None or owner.noun in AGREEMENT:
        return "the" if owner is None else {YOU: "your", ME: "my"}[owner.noun]
    if owner.plural:
        return "their"
    return {"m": "his", "f": "her"}.get(owner.gender, "the" if owner.noun.person else "its")


def any_noun_phrase(draft: Draft, group: str, determiner: str = "") -> Phrase:
    """A noun phrase about something of the topic."""
    noun = mentioned_noun(draft, KIND_GROUPS[group])
    if noun is not None:
        return noun_phrase(draft, noun, draft.chance(0.4), determiner or "the", 0.05)
    noun = draft.pick(noun_table(group, draft.topic))
    draft.mentioned.append(noun)
    return noun_phrase(draft, noun, draft.chance(0.4), determiner)


def mentioned_noun(draft: Draft, kinds: frozenset[str]) -> Noun | None:
    """Something of these kinds that the text spoke of lately: texts return to what they are about."""
    if not draft.mentioned or draft.chance(0.4):
        return None
    noun = draft.one_of(*draft.mentioned[-6:])
    return noun if noun.kind in kinds else None


def other_subject(draft: Draft, subject: Phrase) -> Phrase:
    """Somebody else who can act."""
    cast = [name for name in draft.cast if name is not subject.noun and name not in subject.also]
    if cast and draft.chance(0.5):
        return noun_phrase(draft, draft.one_of(*cast), False)
    for _ in range(4):
        phrase = any_noun_phrase(draft, "human" if draft.chance(0.6) else "animal")
        if phrase.noun is not subject.noun:
            break
    return phrase


def place_phrase(draft: Draft) -> str:
    """Where something happens."""
    noun = draft.pick(noun_table("place", draft.topic))
    return f"{at_place(draft, noun)} the {noun_group(draft, noun, False, 0.12)}"


def at_place(draft: Draft, noun: Noun) -> str:
    """A preposition that fits this place."""
    return PLACE_PREPOSITIONS.get(noun.lemma, "in") if draft.chance(0.7) else "near"


def attractor_phrase(draft: Draft, subject: Phrase, plural: bool) -> Phrase:
    """The subject with a prepositional phrase whose noun stands between it and the verb."""
    noun = draft.pick(noun_table("place" if draft.chance(0.3) else "inanimate", draft.topic))
    preposition = at_place(draft, noun) if noun.kind == "place" and not plural else draft.pick(LOCATORS)
    inner = f"{preposition} the {noun_group(draft, noun, plural, 0.1)}"
    return Phrase(f"{subject.text} {inner}", subject.noun, subject.agreement, (*subject.also, noun), subject.gender)


def relativizer(draft: Draft, noun: Noun) -> str:
    """`who` or `that`."""
    return "who" if noun.person and draft.chance(0.4) else "that"


def subject_relative(draft: Draft, subject: Phrase, tense: str, plural: bool) -> Phrase:
    """The girl who sees the foxes: the object of the clause stands before the main verb."""
    verb = choose_verb(draft, subject, "strict")
    inner = object_phrase(draft, verb, subject, plural=plural, names=False)
    text = f"{subject.text} {relativizer(draft, subject.noun)} {finite(verb, tense, subject.agreement)} {inner.text}"
    return Phrase(text, subject.noun, subject.agreement, (*subject.also, inner.noun), subject.gender)


def object_relative(draft: Draft, subject: Phrase, tense: str, plural: bool) -> Phrase:
    """The girl that the foxes see: another subject and its verb stand before the main verb."""
    inner = noun_phrase(draft, draft.pick(noun_table("animate", draft.topic)), plural, "the", 0.1)
    verb = choose_verb(draft, inner, "strict", fixed_object=subject.noun)
    if verb is None:
        return subject
    text = f"{subject.text} {relativizer(draft, subject.noun)} {inner.text} {finite(verb, tense, inner.agreement)}"
    return Phrase(text, subject.noun, subject.agreement, subject.also, subject.gender)


# ---- verbs --------------------------------------------------------------------------------------------------------


def auxiliary(tense: str, agreement: str) -> str:
    """The auxiliary of a tense, `do` where the verb itself is finite."""
    return AUXILIARY[tense][agreement]


def main_form(verb: Verb, tense: str) -> str:
    """The form of the verb after its auxiliary."""
    if tense.endswith("progressive"):
        return verb.ing
    return verb.participle if tense.endswith("perfect") else verb.lemma


def finite(verb: Verb, tense: str, agreement: str) -> str:
    """The verb with its auxiliary, affirmative."""
    if tense == "present":
        return verb.third if agreement == "s" else verb.lemma
    return verb.past if tense == "past" else f"{auxiliary(tense, agreement)} {main_form(verb, tense)}"


def negative(verb: Verb, tense: str, agreement: str, adverb: str = "not") -> str:
    """The verb with `not`, or with another adverb in its place."""
    return f"{auxiliary(tense, agreement)} {adverb} {main_form(verb, tense)}"


def choose_verb(
    draft: Draft, subject: Phrase, frame: str, *, reserved: bool = False, fixed_object: Noun | None = None
) -> Any:
    """A verb for this subject; None when no verb was found for a fixed object.

    With `reserved` the combination of subject and verb is one that the corpus never contains.
    """
    choices = verb_table(subject.noun, frame, reserved)
    for _ in range(12 if choices[0] else 0):
        verb = draft.pick(choices)
        if any(is_reserved("subject_verb", noun.lemma, verb.lemma) for noun in subject.also):
            continue
        if fixed_object is not None:
            if fixed_object.kind not in verb.objects or is_reserved("verb_object", verb.lemma, fixed_object.lemma):
                continue
            draft.record.append(("verb_object", verb.lemma, fixed_object.lemma))
        draft.record.extend(("subject_verb", noun.lemma, verb.lemma) for noun in (subject.noun, *subject.also))
        return verb
    return None if fixed_object is not None or reserved else VERB["eat"]


def object_phrase(
    draft: Draft, verb: Verb, subject: Phrase, *, plural: bool | None = None, determiner: str = "", names: bool = True
) -> Phrase:
    """An object that the verb selects: sometimes one of the cast, who is not the subject."""
    if names and "name" in verb.objects and draft.cast and draft.chance(0.25):
        name = draft.one_of(*draft.cast)
        absent = name.gender and name not in (subject.noun, *subject.also)  # `you` and `I` are subjects only
        if absent and not is_reserved("verb_object", verb.lemma, name.lemma):
            draft.record.append(("verb_object", verb.lemma, name.lemma))
            return noun_phrase(draft, name, False)
    noun = mentioned_noun(draft, verb.objects)
    if noun is None or noun is subject.noun or is_reserved("verb_object", verb.lemma, noun.lemma):
        choices = object_table(verb, draft.topic)
        noun = draft.pick(choices)
        if noun is subject.noun:  # a farmer who meets a farmer is possible, but seldom said
            noun = draft.pick(choices)
        draft.mentioned.append(noun)
    else:
        determiner = determiner or draft.one_of("the", "the", "own")
    draft.record.append(("verb_object", verb.lemma, noun.lemma))
    return noun_phrase(draft, noun, draft.chance(0.4) if plural is None else plural, determiner, owner=subject)


def adjunct(draft: Draft, probability: float = 1.0, *, described: bool = True) -> str:
    """Where or when, or how unless that is described, with a leading space; empty with the other probability."""
    if not draft.chance(probability):
        return ""
    words = draft.pick(ADJUNCTS if described or draft.chance(0.7) else MANNERS)
    return f" {place_phrase(draft) if words == 'place' else words}"


def complement(draft: Draft, verb: Verb, subject: Phrase, frame: str) -> str:
    """What follows the verb in this frame, with a leading space."""
    if frame in ("bare", "intransitive"):
        return adjunct(draft, 0.85, described=False)
    return f" {object_phrase(draft, verb, subject).text}{adjunct(draft, 0.4)}"


def frame_of(draft: Draft) -> str:
    """With or without an object."""
    return "object" if draft.chance(0.55) else "bare"


def clause(draft: Draft, subject: Phrase, tense: str) -> str:
    """Subject, verb, complement."""
    frame = frame_of(draft)
    verb = choose_verb(draft, subject, frame)
    return f"{subject.text} {finite(verb, tense, subject.agreement)}{complement(draft, verb, subject, frame)}"


def describe(draft: Draft, subject: Phrase, tense: str) -> str:
    """Subject, a form of `be`, adjective."""
    be = (BE_PAST if tense in PAST_TENSES else BE_PRESENT)[subject.agreement]
    adjective: Adjective = draft.pick(adjective_table(subject.noun.kind))
    return f"{subject.text} {be} {draft.one_of('', '', 'very ', 'not ')}{adjective.lemma}"


def reflexive_pronoun(subject: Phrase) -> str:
    """The reflexive that agrees with this antecedent."""
    if subject.noun in AGREEMENT:
        return "yourself" if subject.noun is YOU else "myself"
    return "themselves" if subject.plural else {"m": "himself", "f": "herself"}.get(subject.gender, "itself")


def choose_reflexive_verb(draft: Draft, subject: Phrase, *, reserved: bool = False) -> Verb | None:
    """A verb for this subject and its own reflexive."""
    for _ in range(12):
        verb = draft.pick(verb_table(subject.noun, "reflexive"))
        nouns = (subject.noun, *subject.also)
        if any(is_reserved("subject_verb", noun.lemma, verb.lemma) for noun in subject.also):
            continue
        if is_reserved("reflexive", subject.noun.lemma, verb.lemma) != reserved:
            continue
        if any(is_reserved("reflexive", noun.lemma, verb.lemma) for noun in subject.also):
            continue
        draft.record.extend((kind, noun.lemma, verb.lemma) for kind in ("subject_verb", "reflexive") for noun in nouns)
        return verb
    return None
