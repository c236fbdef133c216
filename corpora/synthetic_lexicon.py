"""The words of the embedded corpus: inflection, meaning class, topic, and facts about the things they name.

The tables are written as compact strings, one row for each class and topic, commonest words first, and parsed once
into `Noun`, `Verb` and `Adjective` records. The grammar reads nothing but these records.
"""

from __future__ import annotations

from dataclasses import dataclass

TOPICS = ("farm", "forest", "sea", "home", "school", "garden", "town", "castle")


# Compared by identity, so that a word is a cheap key of the grammar's tables.
@dataclass(frozen=True, eq=False)
class Noun:
    """A countable noun or a name: `kind` is its meaning class, `gender` is m, f or empty (known or irrelevant)."""

    lemma: str
    plural: str  # empty for names
    kind: str
    topic: str  # empty: at home in every topic
    gender: str

    @property
    def proper(self) -> bool:
        """Whether this is a name, which takes no determiner."""
        return not self.plural

    @property
    def animate(self) -> bool:
        """Whether it names a person or an animal."""
        return self.kind in KIND_GROUPS["animate"]

    @property
    def person(self) -> bool:
        """Whether it names a human being (`who`, never `it`)."""
        return self.kind in KIND_GROUPS["human"]

    def form(self, plural: bool) -> str:
        """The inflected noun."""
        return self.plural if plural else self.lemma


@dataclass(frozen=True, eq=False)
class Verb:
    """A verb with its forms; `frame` is intransitive, transitive, either or clausal."""

    lemma: str
    third: str
    ing: str
    past: str
    participle: str
    frame: str
    subjects: frozenset[str]  # kinds of noun
    objects: frozenset[str]  # kinds of noun; empty: no object
    reflexive: bool

    @property
    def irregular(self) -> bool:
        """Whether past and participle are irregular and differ."""
        return self.past != self.participle


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective with the kinds of noun that it may describe."""

    lemma: str
    kinds: frozenset[str]


def _expand(groups: str, table: dict[str, str]) -> frozenset[str]:
    return frozenset(kind for group in groups.split() for kind in table.get(group, group).split())


_PERSONS = "human name"
_ANIMALS = "mammal bird fish insect reptile"
_ITEMS = "tool toy clothes treasure text instrument household"
_GROUPS = {
    "human": _PERSONS,
    "animal": _ANIMALS,
    "animate": f"{_PERSONS} {_ANIMALS}",
    "item": _ITEMS,
    "portable": f"{_ITEMS} food",
    "inanimate": f"{_ITEMS} food plant vehicle furniture",
    "anything": f"{_PERSONS} {_ANIMALS} {_ITEMS} food plant vehicle furniture",
}
KIND_GROUPS = {name: frozenset(kinds.split()) for name, kinds in _GROUPS.items()}

# kind, topic, words: lemma, then /plural where it is irregular, then :gender where it has one
NOUN_ROWS = (
    ("human", "", "girl:f boy:m woman/women:f man/men:m child/children friend"),
    ("human", "farm", "farmer shepherd cowboy:m"),
    ("human", "forest", "hunter ranger camper woodsman/woodsmen:m"),
    ("human", "sea", "sailor captain pirate fisherman/fishermen:m diver mermaid:f swimmer"),
    ("human", "home", "mother:f father:m baby brother:m sister:f grandmother:f grandfather:m aunt:f uncle:m cousin"),
    ("human", "home", "son:m daughter:f nephew:m niece:f twin"),
    ("human", "school", "teacher student classmate librarian coach reader"),
    ("human", "garden", "gardener neighbour visitor beekeeper"),
    ("human", "town", "baker doctor nurse driver painter singer lady:f gentleman/gentlemen:m pilot waiter:m"),
    ("human", "town", "waitress:f builder mechanic dancer tailor actor actress:f firefighter clown"),
    ("human", "castle", "king:m queen:f prince:m princess:f knight guard wizard:m witch:f servant giant fairy dwarf"),
    ("mammal", "", "dog cat mouse/mice"),
    ("mammal", "farm", "cow horse pig goat donkey lamb pony calf/calves"),
    ("mammal", "forest", "fox bear rabbit wolf/wolves squirrel badger hedgehog bat beaver raccoon"),
    ("mammal", "sea", "whale dolphin seal otter walrus"),
    ("mammal", "home", "puppy kitten"),
    ("mammal", "school", "hamster"),
    ("mammal", "garden", "mole"),
    ("mammal", "town", "rat monkey"),
    ("mammal", "castle", "unicorn lion"),
    ("bird", "", "duck"),
    ("bird", "farm", "hen goose/geese rooster"),
    ("bird", "forest", "owl eagle woodpecker"),
    ("bird", "sea", "gull penguin pelican"),
    ("bird", "school", "parrot"),
    ("bird", "garden", "robin sparrow"),
    ("bird", "town", "pigeon"),
    ("bird", "castle", "raven falcon swan"),
    ("fish", "sea", "shark eel crab lobster octopus"),
    ("insect", "garden", "bee butterfly ant beetle caterpillar ladybird"),
    ("reptile", "forest", "snake frog lizard"),
    ("reptile", "sea", "turtle crocodile"),
    ("reptile", "castle", "dragon toad"),
    ("food", "farm", "egg carrot potato/potatoes pumpkin turnip"),
    ("food", "forest", "berry nut mushroom acorn"),
    ("food", "sea", "sandwich coconut oyster"),
    ("food", "home", "cake cookie pie pancake bun muffin sausage"),
    ("food", "school", "banana biscuit orange"),
    ("food", "garden", "apple pear tomato/tomatoes strawberry plum cherry cabbage bean onion"),
    ("food", "town", "pizza lemon peach pretzel"),
    ("food", "castle", "tart melon"),
    ("plant", "forest", "tree oak bush fern leaf/leaves branch"),
    ("plant", "garden", "flower violet tulip daisy lily weed sunflower hedge"),
    ("vehicle", "farm", "tractor cart wagon"),
    ("vehicle", "sea", "boat ship raft canoe"),
    ("vehicle", "town", "car bus truck train bicycle taxi van"),
    ("vehicle", "castle", "carriage"),
    ("tool", "farm", "bucket rake shovel rope ladder"),
    ("tool", "forest", "axe lantern stick tent"),
    ("tool", "sea", "net anchor oar"),
    ("tool", "home", "broom hammer brush"),
    ("tool", "school", "pencil pen ruler crayon"),
    ("tool", "garden", "spade hose"),
    ("tool", "castle", "sword shield candle"),
    ("household", "home", "cup plate spoon bowl pot box bottle blanket pillow fork"),
    ("household", "town", "umbrella wallet suitcase camera"),
    ("household", "farm", "basket bell"),
    ("household", "school", "bag"),
    ("toy", "home", "ball doll teddy puzzle balloon block"),
    ("toy", "school", "kite marble robot"),
    ("clothes", "home", "coat hat shirt sock shoe"),
    ("clothes", "town", "dress scarf/scarves glove boot jacket"),
    ("clothes", "castle", "cloak"),
    ("text", "school", "book letter story poem note card"),
    ("text", "town", "newspaper ticket"),
    ("text", "sea", "map"),
    ("treasure", "sea", "shell pearl chest"),
    ("treasure", "town", "coin"),
    ("treasure", "castle", "crown ring key jewel necklace"),
    ("instrument", "town", "guitar violin piano"),
    ("instrument", "school", "drum flute"),
    ("instrument", "castle", "trumpet harp"),
    ("furniture", "home", "table chair bed sofa lamp mirror clock shelf/shelves"),
    ("furniture", "school", "desk globe"),
    ("furniture", "garden", "bench"),
    ("furniture", "castle", "throne"),
    ("place", "farm", "barn field stable meadow farm"),
    ("place", "forest", "forest cave river hill den lake"),
    ("place", "sea", "beach sea harbour island bay lighthouse"),
    ("place", "home", "house kitchen bedroom hall attic"),
    ("place", "school", "school classroom library playground"),
    ("place", "garden", "garden pond orchard shed greenhouse"),
    ("place", "town", "shop market park street station bakery hospital museum theatre"),
    ("place", "castle", "castle tower palace dungeon"),
)

# the preposition of being there; `in` for all others
PLACE_PREPOSITIONS = {
    place: preposition
    for preposition, places in (("on", "hill beach island street farm playground"), ("at", "harbour station market"))
    for place in places.split()
}

NAMES = {
    "f": "Mia Anna Emma Nora Sara Julia Alice Molly Eva Lucy Nina Rosa",
    "m": "Tom Ben Max Leo Sam Jack Oscar Peter Noah Henry Paul Simon",
}
FAMILY_NAMES = {"f": "Mummy Granny", "m": "Daddy Grandpa"}

# frame, subject kinds, object kinds, words: lemma, then /past and /participle where irregular; + doubles its end
VERB_ROWS = (
    (
        "intransitive",
        "animate",
        "",
        "sleep/slept run+/ran/run jump walk wait sit+/sat rest stand/stood fall/fell/fallen",
    ),
    ("intransitive", "animate", "", "wake/woke/woken swim+/swam/swum shiver arrive yawn sneeze crawl tremble"),
    ("intransitive", "human", "", "laugh smile dance work talk cry shout whisper kneel/knelt rise/rose/risen sneak"),
    ("intransitive", "human", "", "speak/spoke/spoken"),
    ("intransitive", "bird insect", "", "fly/flew/flown"),
    ("intransitive", "animal", "", "drink/drank/drunk hop+"),
    ("intransitive", "animate", "", "live"),
    ("either", "animate", "food", "eat/ate/eaten chew"),
    ("either", "human", "text", "read/read write/wrote/written"),
    ("either", "human", "anything", "draw/drew/drawn paint"),
    ("either", "human", "food", "cook bake"),
    ("either", "human", "instrument", "play"),
    ("transitive", "animate", "anything", "see/saw/seen find/found like watch notice"),
    ("transitive", "human", "anything", "want love need admire describe"),
    ("transitive", "human", "portable", "carry hold/held bring/brought buy/bought choose/chose/chosen sell/sold"),
    ("transitive", "human", "portable", "keep/kept pack lift collect"),
    ("transitive", "animate", "item", "take/took/taken hide/hid/hidden steal/stole/stolen lose/lost touch"),
    ("transitive", "human", "item", "throw/threw/thrown break/broke/broken fix shake/shook/shaken use"),
    ("transitive", "human", "item furniture vehicle", "clean wash push pull"),
    ("transitive", "human", "clothes", "wear/wore/worn tear/tore/torn fold mend"),
    ("transitive", "human", "food", "peel slice"),
    ("transitive", "animate", "animate", "help follow chase meet/met scare hear/heard"),
    ("transitive", "animal", "animate portable", "bite/bit/bitten"),
    ("transitive", "human", "human", "greet thank hug+ teach/taught call trust visit"),
    ("transitive", "human", "animal", "feed/fed catch/caught tame"),
    ("transitive", "human", "vehicle", "drive/drove/driven repair ride/rode/ridden"),
    ("transitive", "human", "plant", "grow/grew/grown pick cut+/cut smell"),
    ("transitive", "human", "instrument", "blow/blew/blown tune"),
    ("transitive", "animate", "animate", "hurt/hurt warm calm scratch protect blame surprise"),
    ("transitive", "human", "human", "comfort praise introduce"),
    ("clausal", "human", "", "know/knew/known think/thought say/said believe hope wonder ask learn discover guess"),
    ("clausal", "human", "", "remember understand/understood forget+/forgot/forgotten"),
)
REFLEXIVE_VERBS = (
    "see hide help hurt wash clean scratch feed warm calm blame surprise protect comfort praise introduce draw paint "
    "describe teach admire trust scare watch"
)
# Where English is firmer than our frames, the pairs keep to these: `watched` may drop its object, `walked` take one.
OBJECT_NEEDED = (
    "find like want love admire describe carry hold bring buy choose take lose touch throw fix use wear mend peel "
    "greet thank hug trust catch tame protect blame surprise comfort praise introduce lift keep scare chase"
)
OBJECT_IMPOSSIBLE = "sleep laugh smile arrive yawn sneeze crawl tremble shiver kneel fall wait swim sit rise cry sneak"
INANIMATE_CAUSES = "hurt warm calm scratch protect surprise scare help touch hold need cut follow comfort blow"
THAT_VERBS = "know think say believe hope learn discover guess remember understand forget"
WH_VERBS = "know wonder ask learn discover guess remember understand forget"

# kinds, words: commonest first
ADJECTIVE_ROWS = (
    ("anything place", "big small little old beautiful strange"),
    ("animate", "young happy hungry tired clever brave quiet friendly proud lazy gentle shy funny angry"),
    ("human", "kind tall polite rich busy famous"),
    ("animal", "wild noisy fat fast"),
    ("item furniture vehicle plant", "red blue green yellow white black"),
    ("item furniture vehicle", "new dirty heavy wooden shiny rusty cheap"),
    ("food", "sweet fresh ripe tasty sour warm"),
    ("place", "dark cold empty large crowded"),
    ("clothes household toy", "soft long"),
    ("treasure", "golden silver"),
)

# animal: place where it lives, what it eats, colour, covering, what it can do
ANIMAL_FACTS = """
cow: field grass brown hair pull carts | horse: stable hay brown hair carry people
pig: barn corn pink bristles smell food | goat: hill grass white hair climb rocks
donkey: field hay grey hair carry bags | lamb: meadow grass white wool jump
pony: stable hay brown hair carry children | calf: field milk brown hair walk
mouse: barn corn grey fur climb walls | fox: den mice red fur hear mice | bear: cave berries brown fur climb trees
rabbit: meadow grass grey fur dig holes | wolf: forest meat grey fur run far
squirrel: forest acorns red fur climb trees | badger: den worms black fur dig holes
hedgehog: garden worms brown spines roll | bat: cave insects black fur hear insects
beaver: river bark brown fur cut trees | raccoon: forest nuts grey fur open boxes
whale: sea fish blue skin dive deep | dolphin: bay fish grey skin jump high | seal: beach fish grey fur dive deep
otter: river crabs brown fur swim fast | walrus: island oysters brown skin dive deep
dog: house meat brown fur smell food | cat: house mice black fur see at night | puppy: house meat brown fur run fast
kitten: house milk white fur climb curtains | hamster: house seeds yellow fur run at night
mole: garden worms black fur dig holes | rat: street bread grey fur climb walls
monkey: park bananas brown fur climb trees | lion: palace meat yellow fur roar
unicorn: meadow flowers white hair run fast | hen: barn corn brown feathers lay eggs
duck: pond grass white feathers swim | goose: pond grass grey feathers fly far
rooster: barn corn red feathers call loudly | owl: forest mice brown feathers see at night
eagle: hill fish brown feathers see far | woodpecker: forest insects black feathers cut trees
gull: harbour fish white feathers fly far | penguin: island fish black feathers dive deep
pelican: bay fish white feathers carry fish | parrot: house seeds green feathers repeat words
robin: garden worms red feathers sing | sparrow: garden seeds brown feathers fly fast
pigeon: park bread grey feathers fly home | raven: tower meat black feathers repeat words
falcon: tower mice grey feathers fly fast | swan: lake grass white feathers fly far
shark: sea fish grey skin smell fish | eel: river crabs black skin swim backwards
crab: beach shells red shell walk sideways | lobster: bay oysters blue shell walk backwards
octopus: sea crabs red skin change colour | bee: garden flowers yellow hair make honey
butterfly: meadow flowers blue scales fly far | ant: garden seeds black shell carry leaves
beetle: garden leaves black shell fly | caterpillar: orchard leaves green hair make silk
ladybird: garden insects red shell fly | snake: forest mice green scales swim
frog: pond insects green skin jump high | lizard: hill insects brown scales climb walls
turtle: beach grass green shell dive deep | crocodile: river meat green scales swim fast
dragon: cave meat green scales breathe fire | toad: pond worms brown skin dig holes
"""

# profession: where it works, what it uses, whom or what it helps or makes
PERSON_FACTS = """
farmer: field tractor food | shepherd: meadow stick wool | hunter: forest net meat | ranger: forest lantern maps
sailor: harbour rope ships | captain: harbour map plans | fisherman: bay net food | diver: bay lantern pearls
teacher: school book lessons | librarian: library card lists | coach: playground ball teams
gardener: garden spade flowers | beekeeper: orchard box honey | baker: bakery bowl bread
doctor: hospital lamp medicine | nurse: hospital bottle medicine | driver: street bus trips
painter: museum brush pictures | singer: theatre piano songs | pilot: station map trips | waiter: hall plate tea
waitress: hall plate tea | builder: street hammer houses | mechanic: station ladder engines
dancer: theatre dress shows | tailor: shop box coats | actor: theatre mirror plays | actress: theatre mirror plays
firefighter: station ladder rescues | clown: theatre balloon jokes | knight: castle sword peace
guard: tower shield peace | servant: palace broom dinner | king: palace crown laws | queen: palace crown laws
wizard: tower book spells
"""

# thing: its class, what it is made of or where it grows, colour or taste, who uses it, where it is kept
THING_FACTS = """
tractor: vehicle metal red farmer barn | cart: vehicle wood brown shepherd barn
boat: vehicle wood white fisherman harbour | ship: vehicle metal grey captain harbour
canoe: vehicle wood green ranger lake | car: vehicle metal blue doctor street
bus: vehicle metal red driver station | truck: vehicle metal green builder street
train: vehicle metal black driver station | bicycle: vehicle metal blue teacher street
carriage: vehicle wood golden queen palace | bucket: tool metal grey farmer stable
rake: tool wood brown gardener shed | shovel: tool metal black builder shed | rope: tool string white sailor harbour
axe: tool metal grey woodsman forest | lantern: tool glass yellow ranger cave
net: tool string green fisherman harbour | anchor: tool metal black sailor harbour
broom: tool wood yellow servant kitchen | hammer: tool metal grey builder shed
brush: tool hair black painter museum | pencil: tool wood yellow student classroom
pen: tool metal blue teacher classroom | ruler: tool wood white student classroom
spade: tool metal green gardener greenhouse | sword: weapon metal silver knight castle
shield: weapon metal golden guard tower | cup: dish clay white waiter kitchen
plate: dish clay blue waitress kitchen | spoon: dish metal silver baker kitchen | bowl: dish clay white baker bakery
kite: toy paper red child playground | doll: toy cloth pink girl bedroom | ball: toy leather blue coach playground
puzzle: toy wood green twin bedroom | drum: instrument leather red singer theatre
guitar: instrument wood brown singer theatre | violin: instrument wood brown student theatre
piano: instrument wood black singer hall | trumpet: instrument metal golden guard castle
flute: instrument wood silver shepherd meadow | crown: jewel gold golden king palace
necklace: jewel gold silver princess castle | coat: garment wool black doctor hall
hat: garment cloth brown farmer hall | scarf: garment wool red grandmother bedroom
dress: garment silk blue dancer theatre | glove: garment leather brown gardener shed
book: object paper red librarian library | letter: object paper white queen palace
map: object paper yellow captain lighthouse | table: furniture wood brown baker kitchen
mirror: furniture glass silver actress theatre
"""

ADVERBS = "quickly slowly quietly happily often sometimes always usually soon suddenly carefully"
PREPOSITIONS = "near behind beside in on under with from to of at by above for through into around across"
PRONOUNS = (
    "he she it they I you we him her them me us his its their my your who what where why himself herself itself "
    "themselves yourself myself nobody everybody"
)
DETERMINERS = (
    "the a this that some many most all every each no few several any two three four five both another at-least "
    "at-most more-than fewer-than"
)
AUXILIARIES = "be have do can will must may not ever too also and but because when if than there"


def plural_of(lemma: str) -> str:
    """The regular plural, also the regular third person singular of a verb."""
    if lemma.endswith(("s", "x", "z", "ch", "sh")):
        return lemma + "es"
    if lemma.endswith("y") and lemma[-2] not in "aeiou":
        return lemma[:-1] + "ies"
    return lemma + "s"


def _past_of(lemma: str, stem: str) -> str:
    if lemma.endswith("e"):
        return lemma + "d"
    if lemma.endswith("y") and lemma[-2] not in "aeiou":
        return lemma[:-1] + "ied"
    return stem + "ed"


def _parse_noun(word: str, kind: str, topic: str) -> Noun:
    forms, _, gender = word.partition(":")
    lemma, _, plural = forms.partition("/")
    return Noun(lemma, plural or plural_of(lemma), kind, topic, gender)


def _parse_verb(word: str, frame: str, subjects: str, objects: str) -> Verb:
    base, *irregular = word.split("/")
    lemma = base.rstrip("+")
    stem = lemma + lemma[-1] if base.endswith("+") else lemma
    drops_e = lemma.endswith("e") and not lemma.endswith("ee")
    return Verb(
        lemma=lemma,
        third=plural_of(lemma),
        ing=(lemma[:-1] if drops_e else stem) + "ing",
        past=irregular[0] if irregular else _past_of(lemma, stem),
        participle=irregular[-1] if irregular else _past_of(lemma, stem),
        frame=frame,
        subjects=_expand(subjects, _GROUPS),
        objects=_expand(objects, _GROUPS),
        reflexive=lemma in REFLEXIVE_VERBS.split(),
    )


def _parse_facts(table: str) -> dict[str, tuple[str, ...]]:
    entries = [entry.strip() for line in table.strip().splitlines() for entry in line.split("|")]
    pairs = (entry.split(": ") for entry in entries)
    return {lemma: tuple(facts.split(" ")) for lemma, facts in pairs}


NOUNS = tuple(_parse_noun(word, kind, topic) for kind, topic, words in NOUN_ROWS for word in words.split())
PERSON_NAMES = tuple(Noun(name, "", "name", "", gender) for gender, names in NAMES.items() for name in names.split())
RELATIVES = tuple(
    Noun(name, "", "name", "", gender) for gender, names in FAMILY_NAMES.items() for name in names.split()
)
VERBS = tuple(
    _parse_verb(word, frame, subjects, objects)
    for frame, subjects, objects, words in VERB_ROWS
    for word in words.split()
)
ADJECTIVES = tuple(
    Adjective(word, _expand(kinds, _GROUPS)) for kinds, words in ADJECTIVE_ROWS for word in words.split()
)
NOUN = {noun.lemma: noun for noun in NOUNS}
VERB = {verb.lemma: verb for verb in VERBS}
ANIMALS, PROFESSIONS, THINGS = map(_parse_facts, (ANIMAL_FACTS, PERSON_FACTS, THING_FACTS))


def lemmas() -> frozenset[str]:
    """All lexical items, each lemma once."""
    words = [*(noun.lemma for noun in (*NOUNS, *PERSON_NAMES, *RELATIVES)), *(verb.lemma for verb in VERBS)]
    words += [adjective.lemma for adjective in ADJECTIVES]
    words += " ".join((ADVERBS, PREPOSITIONS, PRONOUNS, DETERMINERS, AUXILIARIES)).split()
    return frozenset(words)
