"""The sentence patterns of the embedded corpus: each takes a draft, a subject and a tense and gives a whole sentence.

These are the constructions that the minimal pairs test (agreement across attractors, reflexives, polarity items,
quantifiers, gaps, ellipsis), beside the plain clauses that everything else is told with.
"""

from __future__ import annotations

from corpora.synthetic_grammar import (
    AGREEMENT,
    BE_PAST,
    BE_PRESENT,
    CLAUSAL,
    COMPARISONS,
    ME,
    NUMBERS,
    PAST_TENSES,
    Draft,
    Phrase,
    adjective_table,
    adjunct,
    any_noun_phrase,
    at_place,
    attractor_phrase,
    auxiliary,
    choose_reflexive_verb,
    choose_verb,
    clause,
    complement,
    describe,
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
    other_subject,
    place_phrase,
    reflexive_pronoun,
    subject_relative,
    weighted,
    with_article,
)
from corpora.synthetic_lexicon import VERB, Noun, Verb

PRONOUNS = frozenset(("he", "she", "it", "they"))
SINGULAR_THERE = weighted(a=5, no=1.5)
PLURAL_THERE = weighted(some=3, many=3, no=1.5, two=1.5, three=1, few=1)
SCALED_SUBJECTS = weighted(the=4, some=2, most=1, many=1)
LINKING_ADVERBS = weighted(also=3, often=2, really=2, already=2)


def simple_tense(tense: str) -> str:
    """Past or present, whichever is nearer."""
    return "past" if tense in PAST_TENSES else "present"


def common(draft: Draft, subject: Phrase) -> Phrase:
    """The subject, or a common noun in place of a name or pronoun, which take no modifiers."""
    if subject.noun.proper or subject.text in PRONOUNS:
        return any_noun_phrase(draft, "human" if draft.chance(0.6) else "animal")
    return subject


def human(draft: Draft, subject: Phrase) -> Phrase:
    """The subject, or a person in place of an animal, which does not say or know."""
    return subject if subject.noun.person else any_noun_phrase(draft, "human")


def with_gender(draft: Draft, subject: Phrase) -> Phrase:
    """The subject if its reflexive is known, else somebody of known gender: a farmer may be a man or a woman."""
    if subject.gender or not subject.noun.person or subject.plural or subject.noun in AGREEMENT:
        return subject
    choices = noun_table("human", draft.topic)
    noun = draft.pick(choices)
    while not noun.gender:
        noun = draft.pick(choices)
    return noun_phrase(draft, noun, False)


def with_same_verb(draft: Draft, subject: Phrase, verb: Verb) -> Phrase | None:
    """Somebody else who can do the same."""
    for _ in range(8):
        other = other_subject(draft, subject)
        fits = other.noun.kind in verb.subjects and other.noun is not subject.noun
        if fits and not is_reserved("subject_verb", other.noun.lemma, verb.lemma):
            draft.record.append(("subject_verb", other.noun.lemma, verb.lemma))
            return other
    return None


def plain(draft: Draft, subject: Phrase, tense: str) -> str:
    """The fox chased a rabbit."""
    return finish(clause(draft, subject, tense))


def copular(draft: Draft, subject: Phrase, tense: str) -> str:
    """The fox was very hungry."""
    return finish(describe(draft, subject, tense))


def attractor(draft: Draft, subject: Phrase, tense: str) -> str:
    """The dogs near the barn sleep."""
    modified = attractor_phrase(draft, common(draft, subject), draft.chance(0.5))
    return finish(describe(draft, modified, tense) if draft.chance(0.2) else clause(draft, modified, tense))


def relative(draft: Draft, subject: Phrase, tense: str) -> str:
    """The girl who feeds the hens laughs; the girl that the dogs follow laughs."""
    head = common(draft, subject)
    build = subject_relative if draft.chance(0.55) else object_relative
    modified = build(draft, head, simple_tense(tense), draft.chance(0.5))
    return finish(describe(draft, modified, tense) if draft.chance(0.2) else clause(draft, modified, tense))


def reflexive(draft: Draft, subject: Phrase, tense: str) -> str:
    """Mia hid herself behind the tree."""
    subject = with_gender(draft, subject)
    verb = choose_reflexive_verb(draft, subject)
    if verb is None:
        return plain(draft, subject, tense)
    verb_words = finite(verb, tense, subject.agreement)
    return finish(f"{subject.text} {verb_words} {reflexive_pronoun(subject)}{adjunct(draft, 0.5)}")


def embedded_reflexive(draft: Draft, subject: Phrase, tense: str) -> str:
    """Mia thinks that Tom hurt himself."""
    subject = human(draft, subject)
    other = with_gender(draft, other_subject(draft, subject))
    verb = choose_reflexive_verb(draft, other)
    if verb is None:
        return plain(draft, subject, tense)
    outer = finite(VERB[draft.pick(CLAUSAL["that"])], simple_tense(tense), subject.agreement)
    inner = finite(verb, tense, other.agreement)
    return finish(f"{subject.text} {outer} that {other.text} {inner} {reflexive_pronoun(other)}")


def coordinated(draft: Draft, subject: Phrase, tense: str) -> str:
    """The fox and the bear sleep."""
    return finish(clause(draft, pair_of(draft, subject), tense))


def pair_of(draft: Draft, subject: Phrase) -> Phrase:
    """Two subjects joined by `and`."""
    other = other_subject(draft, subject)
    first, last = (other, subject) if subject.noun is ME else (subject, other)
    return Phrase(f"{first.text} and {last.text}", subject.noun, "p", (*subject.also, other.noun))


def negated(draft: Draft, subject: Phrase, tense: str) -> str:
    """Mia did not find any keys; Mia has not ever danced; and, without negation, Mia has also danced."""
    kind = draft.one_of("any", "ever", "ever", "not", "adverb")
    if kind == "any":
        verb = choose_verb(draft, subject, "strict")
        determiner = "any" if draft.chance(0.8) else "many"
        plural = determiner == "many" or draft.chance(0.7)
        things = object_phrase(draft, verb, subject, plural=plural, determiner=determiner, names=False)
        return finish(f"{subject.text} {negative(verb, tense, subject.agreement)} {things.text}{adjunct(draft, 0.3)}")
    if kind == "adverb":
        tense = draft.one_of("pluperfect" if tense in PAST_TENSES else "perfect", "can", "will")
    elif kind == "ever" and draft.chance(0.6):
        tense = draft.one_of("pluperfect" if tense in PAST_TENSES else "perfect", "will")
    word = {"ever": "not ever", "not": "not", "adverb": draft.pick(LINKING_ADVERBS)}[kind]
    frame = frame_of(draft)
    verb = choose_verb(draft, subject, frame)
    return finish(
        f"{subject.text} {negative(verb, tense, subject.agreement, word)}{complement(draft, verb, subject, frame)}"
    )


def no_subject(draft: Draft, subject: Phrase, tense: str) -> str:
    """No farmer ever found any mice; and, without negation, the farmer found some mice."""
    noun = common(draft, subject).noun
    licensed = draft.chance(0.65)
    determiner = draft.one_of("no", "no", "few") if licensed else draft.one_of("the", "some", "every")
    plural = determiner == "few" or (determiner != "every" and draft.chance(0.5))
    people = noun_phrase(draft, noun, plural, determiner, 0.1)
    tense = draft.one_of(simple_tense(tense), "pluperfect" if tense in PAST_TENSES else "perfect")
    if draft.chance(0.5):
        verb = choose_verb(draft, people, "strict")
        determiner = "any" if licensed else draft.one_of("some", "the")
        things = object_phrase(draft, verb, people, plural=draft.chance(0.7), determiner=determiner, names=False)
        return finish(f"{people.text} {finite(verb, tense, people.agreement)} {things.text}{adjunct(draft, 0.3)}")
    frame = frame_of(draft)
    verb = choose_verb(draft, people, frame)
    words = with_adverb(verb, tense, people.agreement, "ever" if licensed else draft.one_of("often", "also", "really"))
    return finish(f"{people.text} {words}{complement(draft, verb, people, frame)}")


def with_adverb(verb: Verb, tense: str, agreement: str, adverb: str) -> str:
    """The verb with an adverb before it, or after its auxiliary."""
    if tense in ("present", "past"):
        return f"{adverb} {finite(verb, tense, agreement)}"
    return negative(verb, tense, agreement, adverb)


def existential(draft: Draft, subject: Phrase, tense: str) -> str:
    """There are many foxes in the forest."""
    group = draft.one_of("animal", "human", "inanimate", "inanimate")
    noun = subject.noun if draft.chance(0.4) and not subject.noun.proper else draft.pick(noun_table(group, draft.topic))
    plural = draft.chance(0.6)
    place = place_for(draft, noun)
    quantifier = draft.pick(PLURAL_THERE if plural else SINGULAR_THERE)
    return finish(there_is(draft, noun, plural, quantifier, place, tense))


def place_for(draft: Draft, noun: Noun, *, reserved: bool = False) -> Noun:
    """A place where this noun may be said to be."""
    for _ in range(40):
        place = draft.pick(noun_table("place", draft.topic))
        if is_reserved("noun_place", noun.lemma, place.lemma) == reserved:
            break
    draft.record.append(("noun_place", noun.lemma, place.lemma))
    return place


def there_is(draft: Draft, noun: Noun, plural: bool, quantifier: str, place: Noun, tense: str) -> str:
    """The clause of `existential`."""
    be = (BE_PAST if tense in PAST_TENSES else BE_PRESENT)["p" if plural else "s"]
    group = noun_group(draft, noun, plural)
    things = with_article(group) if quantifier == "a" else f"{quantifier} {group}"
    return f"there {be} {things} {at_place(draft, place)} the {place.lemma}"


def scalar(draft: Draft, subject: Phrase, tense: str) -> str:
    """The girl carried at least two bags; but under `no` only: no girl carried more than two bags."""
    noun = common(draft, subject).noun
    denied = draft.chance(0.35)
    people = noun_phrase(draft, noun, draft.chance(0.6), "no" if denied else draft.pick(SCALED_SUBJECTS), 0.1)
    if people.text.startswith(("most", "many")):
        people = noun_phrase(draft, noun, True, people.text.split()[0], 0.1)
    comparison = draft.one_of("more than", "fewer than") if denied else draft.pick(COMPARISONS)
    verb = choose_verb(draft, people, "strict")
    amount = f"{comparison} {draft.pick(NUMBERS)}"
    things = object_phrase(draft, verb, people, plural=True, determiner=amount, names=False)
    verb_words = finite(verb, draft.one_of(tense, simple_tense(tense)), people.agreement)
    return finish(f"{people.text} {verb_words} {things.text}{adjunct(draft, 0.25)}")


def wh_question(draft: Draft, subject: Phrase, tense: str) -> str:
    """What did the dog and the cat find?"""
    if draft.chance(0.2):
        people = human(draft, subject)
        verb = choose_verb(draft, people, "object")
        return finish(f"who {finite(verb, tense, 's')}{complement(draft, verb, people, 'object')}", "?")
    if draft.chance(0.3):
        subject = pair_of(draft, subject)
    word, verb = gap_verb(draft, subject)
    ending = adjunct(draft, 0.35) if word != "where" else ""
    words = f"{word} {auxiliary(tense, subject.agreement)} {subject.text} {main_form(verb, tense)}{ending}"
    return finish(words, "?")


def gap_verb(draft: Draft, subject: Phrase) -> tuple[str, Verb]:
    """A question word and a verb that leaves its place empty."""
    if draft.chance(0.12):
        return "where", choose_verb(draft, subject, "intransitive")
    verb = choose_verb(draft, subject, "strict")
    things = "treasure" in verb.objects or "human" not in verb.objects
    people = "human" in verb.objects and (not things or draft.chance(0.25))
    return ("who" if people else "what"), verb


def yes_no_question(draft: Draft, subject: Phrase, tense: str) -> str:
    """Has the dog ever seen any ducks?"""
    frame = frame_of(draft)
    verb = choose_verb(draft, subject, frame)
    ever = " ever" if draft.chance(0.2) else ""
    words = f"{auxiliary(tense, subject.agreement)} {subject.text}{ever} {main_form(verb, tense)}"
    if frame == "object" and draft.chance(0.3):
        things = object_phrase(draft, verb, subject, plural=True, determiner="any", names=False)
        return finish(f"{words} {things.text}", "?")
    return finish(f"{words}{complement(draft, verb, subject, frame)}", "?")


def embedded(draft: Draft, subject: Phrase, tense: str) -> str:
    """The girl knows what the fox found; the girl knows that the fox found the key."""
    subject = human(draft, subject)
    other = other_subject(draft, subject)
    inner_tense = draft.one_of("past", tense)
    outer = simple_tense(tense)
    if draft.chance(0.65):
        word, verb = gap_verb(draft, other)
        ending = adjunct(draft, 0.25) if word != "where" else ""
        matrix = VERB[draft.pick(CLAUSAL["wh"])]
    else:
        word, verb = "that", choose_verb(draft, other, "object" if draft.chance(0.8) else "intransitive")
        ending = complement(draft, verb, other, "intransitive" if verb.frame == "intransitive" else "object")
        matrix = VERB[draft.pick(CLAUSAL["that"])]
    matrix_words = finite(matrix, outer, subject.agreement)
    inner = f"{other.text} {finite(verb, inner_tense, other.agreement)}"
    return finish(f"{subject.text} {matrix_words} {word} {inner}{ending}")


def verb_phrase_ellipsis(draft: Draft, subject: Phrase, tense: str) -> str:
    """Mia laughed, and Tom did too."""
    frame = frame_of(draft)
    verb = choose_verb(draft, subject, frame)
    other = with_same_verb(draft, subject, verb)
    words = f"{subject.text} {finite(verb, tense, subject.agreement)}{complement(draft, verb, subject, frame)}"
    if other is None:
        return finish(words)
    helper = auxiliary(tense, other.agreement)
    return finish(f"{words}, {draft.one_of(f'and {other.text} {helper} too', f'but {other.text} {helper} not')}")


def noun_ellipsis(draft: Draft, subject: Phrase, tense: str) -> str:
    """Mia ate two red apples and Tom ate three."""
    verb = choose_verb(draft, subject, "strict")
    other = with_same_verb(draft, subject, verb)
    if other is None:
        return plain(draft, subject, tense)
    things = object_phrase(draft, verb, subject, plural=True, determiner="bare", names=False)
    return finish(two_amounts(draft, subject, other, verb, things.noun, tense, draft.chance(0.7)))


def two_amounts(
    draft: Draft, subject: Phrase, other: Phrase, verb: Verb, noun: Noun, tense: str, described: bool
) -> str:
    """The clause of `noun_ellipsis`, with or without an adjective before the noun."""
    first, second = two_numbers(draft)
    adjective = f"{draft.pick(adjective_table(noun.kind)).lemma} " if described else ""
    left = f"{subject.text} {finite(verb, tense, subject.agreement)} {first} {adjective}{noun.plural}"
    return f"{left} and {other.text} {finite(verb, tense, other.agreement)} {second}"


def two_numbers(draft: Draft) -> tuple[str, str]:
    """Two different amounts."""
    first = second = draft.pick(NUMBERS)
    while second == first:
        second = draft.one_of("two", "three", "four", "five", "many")
    return first, second


def quantified(draft: Draft, subject: Phrase, tense: str) -> str:
    """Most foxes sleep; every fox sleeps."""
    noun = common(draft, subject).noun
    determiner = draft.one_of("every", "each", "all", "most", "many", "some", "few")
    return finish(clause(draft, noun_phrase(draft, noun, determiner not in ("every", "each"), determiner), tense))


def subordinate(draft: Draft, subject: Phrase, tense: str) -> str:
    """The fox slept because it was tired; when the fox slept, the hens danced."""
    other = other_subject(draft, subject)
    if draft.chance(0.5):
        reason = describe(draft, other, simple_tense(tense))
        return finish(f"{clause(draft, subject, tense)} because {reason}")
    tense = simple_tense(tense)
    return finish(f"when {clause(draft, subject, tense)}, {clause(draft, other, tense)}")


def somewhere(draft: Draft, subject: Phrase, tense: str) -> str:
    """In the forest, the fox slept."""
    return finish(f"{place_phrase(draft)}, {clause(draft, subject, tense)}")
