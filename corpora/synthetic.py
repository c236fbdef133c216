"""The embedded default corpus: documents in three registers, from a grammar, a lexicon and a seed.

`child_directed` talks about what is in view, `story` follows two characters and a thing that is lost and found,
`encyclopaedia` states what the lexicon knows about an animal, a profession or a thing: the same facts each time.
Document k is a function of (seed, k) alone, so a longer corpus only adds documents at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

from corpora import synthetic_constructions as say
from corpora.document import Document, count_words
from corpora.synthetic_grammar import (
    ME,
    YOU,
    Combination,
    Draft,
    Phrase,
    Table,
    choose_verb,
    clause,
    finish,
    finite,
    is_reserved,
    noun_phrase,
    noun_table,
    object_phrase,
    place_phrase,
    table,
    weighted,
    with_article,
)
from corpora.synthetic_lexicon import (
    ANIMALS,
    NOUNS,
    PERSON_NAMES,
    PLACE_PREPOSITIONS,
    PROFESSIONS,
    RELATIVES,
    THINGS,
    TOPICS,
    VERB,
    Noun,
)

SHORTEST, LONGEST = 45, 90  # words after which a document is looking for its end; it has at most LONGEST + 10
Sentences = Iterator[str]
Construction = Callable[[Draft, Phrase, str], str]


def generate_documents(words: int, seed: int) -> Iterator[Document]:
    """Documents until the next one would exceed this many words; deterministic, and a prefix of every longer corpus."""
    for document, _ in derive_documents(words, seed):
        yield document


def derive_documents(words: int, seed: int) -> Iterator[tuple[Document, list[Combination]]]:
    """The documents of `generate_documents`, each with the combinations of words that its derivation used."""
    number = 0
    while True:
        document, record = derive_document(seed, number)
        words -= count_words(document.text)
        if words < 0:
            return
        yield document, record
        number += 1


def derive_document(seed: int, number: int) -> tuple[Document, list[Combination]]:
    """Document `number` of a seed, with the combinations of words that its derivation used."""
    rng = random.Random(f"{seed}/{number}")
    register = rng.choices(tuple(REGISTERS), (0.3, 0.36, 0.34))[0]
    write, separator, determiners, tenses = REGISTERS[register]
    draft = Draft(rng, rng.choice(TOPICS), determiners, tenses)
    enough = rng.randint(SHORTEST, LONGEST)
    sentences: list[str] = []
    length = 0
    for sentence in write(draft):
        more = count_words(sentence)
        if length + more > LONGEST + 10:
            break
        sentences.append(sentence)
        length += more
        if length >= enough:
            break
    return Document(id=f"{register}-{number:06d}", source=register, text=separator.join(sentences)), draft.record


def tell(draft: Draft, constructions: Table, subject: Phrase) -> str:
    """One sentence about this subject, in a construction and a tense of the register."""
    construction: Construction = draft.pick(constructions)
    return construction(draft, subject, draft.tense())


# ---- child-directed talk ------------------------------------------------------------------------------------------


def child_directed(draft: Draft) -> Sentences:
    """Short turns about one thing in view: naming, asking, telling, asking again."""
    draft.cast = (*RELATIVES, YOU, ME)
    focus = draft.pick(noun_table("anything", draft.topic))
    mover = focus if focus.animate else draft.pick(noun_table("animal", draft.topic))
    draft.mentioned = [focus, mover]
    greeting = draft.one_of("Look at the {}!", "What about the {}?", "Here is the {}.", "Where is the {}?")
    yield greeting.format(focus.lemma)
    while True:
        yield naming(draft, focus) if draft.chance(0.22) else turn(draft, focus, mover)


def turn(draft: Draft, focus: Noun, mover: Noun) -> str:
    """One turn with the mover, a relative, the child or the speaker as its subject."""
    if draft.chance(0.12):
        return imperative(draft, focus)
    noun = draft.one_of(mover, mover, mover, mover, draft.one_of(*RELATIVES), draft.one_of(YOU, ME))
    subject = noun_phrase(draft, noun, draft.chance(0.35))
    if noun is mover and draft.chance(0.15):
        subject = Phrase("it", mover, "s")
    return tell(draft, CHILD_DIRECTED, subject)


def naming(draft: Draft, focus: Noun) -> str:
    """This is a ball. Those balls are red."""
    plural = draft.chance(0.4)
    if draft.chance(0.3):
        pointing = draft.one_of("these are", "those are", "they are") if plural else draft.one_of("this is", "it is")
        return finish(f"{pointing} {noun_phrase(draft, focus, plural, 'bare' if plural else 'a', 0.4).text}")
    thing = noun_phrase(draft, focus, plural, draft.one_of("this", "that"), 0.3)
    if draft.chance(0.6):
        return finish(say.describe(draft, thing, "present"))
    return f"{draft.one_of('What about', 'And what about', 'Where did you put')} {thing.text}?"


def imperative(draft: Draft, focus: Noun) -> str:
    """Do not touch the lamp!"""
    subject = noun_phrase(draft, YOU, False)
    verb = choose_verb(draft, subject, "strict")
    if focus.kind in verb.objects and not is_reserved("verb_object", verb.lemma, focus.lemma):
        draft.record.append(("verb_object", verb.lemma, focus.lemma))
        words = f"{verb.lemma} {noun_phrase(draft, focus, False).text}"
    else:
        words = f"{verb.lemma} {object_phrase(draft, verb, subject, names=False).text}"
    return finish(f"{draft.one_of('', '', 'do not ', 'please ')}{words}", draft.one_of("!", "."))


# ---- stories ------------------------------------------------------------------------------------------------------


class Cast:
    """Who a story is about, and how each is called: by name, by what they are, by pronoun when just spoken of."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.gender = {
            gender: draft.one_of(*(name for name in PERSON_NAMES if name.gender == gender)) for gender in "fm"
        }
        self.names = list(self.gender.values())
        if draft.chance(0.5):
            self.names.reverse()
        self.roles = {name: self._role(name.gender) for name in self.names}
        self.animal = draft.pick(noun_table("animal", draft.topic))
        self.last: object = None

    def _role(self, gender: str) -> Noun:
        while True:
            role = self.draft.pick(noun_table("human", self.draft.topic))
            if role.gender in ("", gender) and role.lemma not in ("mother", "father"):
                return role

    def person(self, name: Noun) -> Phrase:
        """A pronoun if this person was the last subject, else the name or the role."""
        again, self.last = self.last is name, name
        if again and self.draft.chance(0.7):
            return Phrase({"f": "she", "m": "he"}[name.gender], name, "s", gender=name.gender)
        if self.draft.chance(0.3):
            role = self.roles[name]
            return Phrase(f"the {role.lemma}", role, "s", gender=name.gender)
        return noun_phrase(self.draft, name, False)

    def subject(self) -> Phrase:
        """Whoever acts next."""
        chance = self.draft.rng.random()
        if chance < 0.4:
            return self.person(self.names[0])
        if chance < 0.6:
            return self.person(self.names[1])
        if chance < 0.72:
            again, self.last = self.last == "both", "both"
            text = "they" if again else f"{self.names[0].lemma} and {self.names[1].lemma}"
            return Phrase(text, self.names[0], "p", (self.names[1],))
        self.last = None
        if chance < 0.86:
            return noun_phrase(self.draft, self.animal, self.draft.chance(0.4), "the", 0.1)
        return say.any_noun_phrase(self.draft, "animate")


def story(draft: Draft) -> Sentences:
    """Two characters, what one of them loses and where it is found."""
    cast = Cast(draft)
    draft.mentioned = [cast.animal]
    draft.cast = tuple(cast.names)
    hero, friend = cast.names
    yield opening(draft, cast)
    lost = plot_thing(draft)
    hidden = draft.pick(noun_table("place", draft.topic)).lemma
    thief = noun_phrase(draft, cast.animal, False, "the", 0.0)
    if lost is not None:
        draft.mentioned.append(lost)
        yield plot(draft, cast.person(hero), "want need love hold", lost, "a")
        for _ in range(draft.one_of(1, 2, 3)):
            yield tell(draft, STORY, cast.subject())
        yield plot(draft, thief, "steal take lose hide touch", lost, "the")
        yield f"The {lost.lemma} was {being_at(hidden)}, but nobody knew."
        cast.last = None
    for _ in range(draft.one_of(1, 2)):
        yield tell(draft, STORY, cast.subject())
    if lost is not None:
        yield f"At last {hero.lemma} went to the {hidden} with {friend.lemma}."
        yield plot(draft, noun_phrase(draft, hero, False), "find see take notice", lost, "the", f" {being_at(hidden)}")
    while True:
        yield tell(draft, STORY, cast.subject())


def opening(draft: Draft, cast: Cast) -> str:
    """Who it is about."""
    hero, friend = cast.names
    role, other = cast.roles[hero].lemma, cast.roles[friend].lemma
    cast.last = hero
    return draft.one_of(
        f"Once there was {with_article(role)} named {hero.lemma} who had a friend named {friend.lemma}.",
        f"{hero.lemma} was {with_article(role)} and {friend.lemma} was {with_article(other)}.",
        f"Long ago, {with_article(role)} named {hero.lemma} lived {place_phrase(draft)}.",
        f"One day, {hero.lemma} and {friend.lemma} went to the {draft.pick(noun_table('place', draft.topic)).lemma}.",
    )


def plot_thing(draft: Draft) -> Noun | None:
    """What the hero cares about: something that can be wanted, lost and found."""
    if draft.chance(0.15):
        return None
    return draft.pick(noun_table("portable", draft.topic))


def plot(draft: Draft, subject: Phrase, verbs: str, thing: Noun, determiner: str, ending: str = "") -> str:
    """The first of these verbs that may stand between this subject and this thing; else another sentence."""
    for lemma in verbs.split():
        verb = VERB[lemma]
        pairs = (("subject_verb", subject.noun.lemma, lemma), ("verb_object", lemma, thing.lemma))
        if thing.kind in verb.objects and not any(is_reserved(*pair) for pair in pairs):
            draft.record.extend(pairs)
            words = noun_phrase(draft, thing, False, determiner, 0.2 if determiner == "a" else 0.0).text
            return finish(f"{subject.text} {finite(verb, 'past', subject.agreement)} {words}{ending}")
    return finish(clause(draft, subject, "past"))


# ---- encyclopaedia ------------------------------------------------------------------------------------------------


def encyclopaedia(draft: Draft) -> Sentences:
    """A definition, then facts and generic sentences about its subject in turn."""
    entry = draft.pick(entries())
    draft.topic = entry.topic or draft.topic
    facts = FACTS[entry.lemma in ANIMALS, entry.lemma in PROFESSIONS](draft, entry)
    draft.rng.shuffle(facts[1])
    draft.mentioned = [entry]
    yield facts[0]
    for fact in facts[1]:
        yield fact
        if draft.chance(0.6):
            yield generic(draft, entry)
    while True:
        yield generic(draft, entry)


@cache
def entries() -> Table:
    """What the encyclopaedia has articles about, some much oftener than others."""
    known = [noun for noun in NOUNS if noun.lemma in ANIMALS or noun.lemma in PROFESSIONS or noun.lemma in THINGS]
    return table(known, lambda noun: (known.index(noun) % 25 + 2) ** -0.5)


def generic(draft: Draft, entry: Noun) -> str:
    """A sentence about the subject of the article, or about what uses it when it cannot act."""
    noun = entry if entry.animate and draft.chance(0.75) else draft.pick(noun_table("animate", draft.topic))
    return tell(draft, ENCYCLOPAEDIA, noun_phrase(draft, noun, draft.chance(0.65)))


def animal_facts(draft: Draft, noun: Noun) -> tuple[str, list[str]]:
    """Class, habitat, food, colour and ability of an animal."""
    place, food, colour, covering, *ability = ANIMALS[noun.lemma]
    where = being_at(place)
    one, many = with_article(noun.lemma), noun.plural
    first = draft.one_of(
        f"{one} is {with_article(colour)} {noun.kind} that lives {where}",
        f"{many} are {colour} {NOUN_CLASSES[noun.kind]} that live {where}",
    )
    facts = [
        draft.one_of(f"{many} live {where} and eat {food}", f"{one} eats {food} and lives {where}"),
        draft.one_of(f"{most(draft)} {many} have {colour} {covering}", f"the {covering} of {one} is {colour}"),
        draft.one_of(f"{food} are the food of {many}", f"the best food of every {noun.lemma} is {food}"),
    ]
    if allowed_ability(noun, ability):
        able = " ".join(ability)
        facts.append(draft.one_of(f"{one} can {able}", f"{most(draft)} {many} can {able}"))
    return finish(first), [finish(fact) for fact in facts]


def allowed_ability(noun: Noun, ability: list[str]) -> bool:
    """Whether the fact contains no reserved combination."""
    things = [thing.lemma for thing in NOUNS if thing.plural == ability[-1]]
    return not is_reserved("subject_verb", noun.lemma, ability[0]) and not any(
        is_reserved("verb_object", ability[0], thing) for thing in things
    )


def person_facts(draft: Draft, noun: Noun) -> tuple[str, list[str]]:
    """Workplace, tool and purpose of a profession."""
    place, tool, product = PROFESSIONS[noun.lemma]
    where = being_at(place)
    one, many = with_article(noun.lemma), noun.plural
    first = draft.one_of(f"{one} is a person who works {where}", f"{many} are people who work {where}")
    facts = [
        f"{many} use {with_article(tool)} when they work",
        draft.one_of(f"the work of {one} is {product}", f"{many} give us {product}"),
        draft.one_of(f"{most(draft)} {many} work {where}", f"every {noun.lemma} {where} uses the {tool}"),
    ]
    return finish(first), [finish(fact) for fact in facts]


def thing_facts(draft: Draft, noun: Noun) -> tuple[str, list[str]]:
    """Class, material, colour, user and place of a thing."""
    kind, material, colour, user, place = THINGS[noun.lemma]
    where = being_at(place)
    one, many = with_article(noun.lemma), noun.plural
    first = draft.one_of(
        f"{one} is {with_article(kind)} that is made of {material}", f"{many} are things that are made of {material}"
    )
    facts = [
        draft.one_of(f"{one} is the {kind} of the {user}", f"the {user} uses the {noun.lemma} every day"),
        draft.one_of(f"{most(draft)} {many} are {colour}", f"{one} is usually {colour}"),
        draft.one_of(f"{many} belong {where}", f"the {many} of the {user} are {where}"),
    ]
    return finish(first), [finish(fact) for fact in facts]


def being_at(place: str) -> str:
    """In the barn, on the hill."""
    return f"{PLACE_PREPOSITIONS.get(place, 'in')} the {place}"


def most(draft: Draft) -> str:
    """A quantifier of a general statement."""
    return draft.one_of("most", "all", "many")


NOUN_CLASSES = {"mammal": "mammals", "bird": "birds", "fish": "sea animals", "insect": "insects", "reptile": "reptiles"}
FACTS = {(True, False): animal_facts, (False, True): person_facts, (False, False): thing_facts}


# ---- how often each construction appears --------------------------------------------------------------------------


def _constructions(**weights: float) -> Table:
    return table([getattr(say, name) for name in weights], lambda construction: weights[construction.__name__])


CHILD_DIRECTED = _constructions(
    plain=14, copular=12, attractor=3, relative=3, reflexive=7, embedded_reflexive=1.5, coordinated=2, negated=8,
    no_subject=2.5, existential=6, scalar=2, wh_question=11, yes_no_question=10, embedded=7, verb_phrase_ellipsis=7,
    noun_ellipsis=3, quantified=2, subordinate=3,
)  # fmt: skip
STORY = _constructions(
    plain=18, copular=10, attractor=6, relative=6, reflexive=12, embedded_reflexive=4, coordinated=2.5, negated=6,
    no_subject=4, existential=4, scalar=4, wh_question=1.5, embedded=10, verb_phrase_ellipsis=7, noun_ellipsis=4,
    quantified=2.5, somewhere=3, subordinate=5,
)  # fmt: skip
ENCYCLOPAEDIA = _constructions(
    plain=16, copular=10, attractor=12, relative=12, reflexive=7, embedded_reflexive=2.5, coordinated=3, negated=6,
    no_subject=6, existential=7, scalar=5, embedded=7, verb_phrase_ellipsis=5, noun_ellipsis=4, quantified=8,
    subordinate=4,
)  # fmt: skip

HERE = {
    False: weighted(the=5, a=2.5, this=1.5, that=1, your=1, my=0.8, own=1, every=0.2),
    True: weighted(the=4, some=1, this=1.5, that=1, your=0.8, own=1, two=1, many=0.8),
}
TOLD = {
    False: weighted(the=4.5, a=3, this=0.9, that=1.2, own=2, every=0.3, another=0.4),
    True: weighted(the=3.5, some=1.5, many=0.8, this=1, that=1.3, own=1.5, two=0.8, three=0.5, all=0.3, several=0.3),
}
STATED = {
    False: weighted(the=2.5, a=3.5, this=1.1, that=1.1, own=0.6, every=0.6, each=0.4),
    True: weighted(
        the=1.8, bare=3.5, most=0.8, many=1, some=1, all=0.6, this=1.2, that=1.2, own=0.8, few=0.2, several=0.3
    ),
}
NOW = weighted(present=5, progressive=4, past=1.5, perfect=1.5, can=0.7, will=0.7)
THEN = weighted(past=6, past_progressive=2.2, pluperfect=1.4)
ALWAYS = weighted(present=7, progressive=1, perfect=1.2, can=0.6, must=0.2)
REGISTERS = {
    "child_directed": (child_directed, "\n", HERE, NOW),
    "story": (story, " ", TOLD, THEN),
    "encyclopaedia": (encyclopaedia, " ", STATED, ALWAYS),
}
