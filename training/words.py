"""The words of dialogues: lists of real words, and functions that invent others."""

import hashlib
from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CITIES = _words(
    "Paris London Berlin Madrid Rome Vienna Oslo Tokyo Lima Cairo Delhi Dublin Prague Lisbon Athens Warsaw Boston "
    "Chicago Denver Seattle Austin Munich Zurich Geneva Milan Naples Lyon Turin Osaka Kyoto Seoul Hanoi Dakar "
    "Accra Quito Bogota Havana Toronto Sydney Perth Hangzhou Shanghai Beijing Mumbai Nairobi Tunis"
)
PEOPLE = _words(
    "Alice Bob Carol Dave Erin Frank Grace Heidi Ivan Judy Kevin Laura Mia Nina Oscar Paul Quinn Rosa Sam Tina "
    "Uma Victor Wendy Xavier Yara Zoe Anna Ben Clara David Emma Felix Hugo Iris Jack Kate Leo Maria Noah Olga"
)
NOUNS = _words(
    "weather order ticket invoice flight hotel room user account balance price stock map route train bus car bike "
    "recipe song movie book file folder image photo video email message calendar meeting task note reminder alarm "
    "timer lamp door heater fridge garden plant animal dog cat horse school course exam grade report chart table "
    "server cluster log metric job queue model token city country river museum ticker rate currency score game team "
    "player match news article post comment review product basket payment refund parcel address phone contact "
    "sensor robot drone camera printer battery engine forecast temperature distance time date holiday event seat"
)
VERBS = _words(
    "get find show read check list look fetch search load create add make set update change send book start stop "
    "open close delete remove cancel move copy save count compute convert play turn order buy sell plan run"
)
ADJECTIVES = _words(
    "red blue green black white small large old new fast slow warm cold sunny cloudy rainy windy happy sad quiet "
    "bright dark open closed ready late early full empty good bad fresh dry wet soft hard busy free"
)
KEYS = _words(
    "name city age color size mood price count title state level mode unit kind type place day month year speed "
    "status total amount weight height owner code team score rating topic language country email phone date time "
    "reason label source target width depth rank phase shape brand genre author"
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a careful agent.",
    "You are Ling nano.",
    "Be brief.",
    "Answer the user.",
    "Use the tools when they help.",
    "You are an agent with tools.",
)
_ONSETS = _words("b c d f g h j k l m n p r s t v w z br ch cl cr dr fl gl gr kr pl pr sh sk sl st th tr")
_VOWELS = _words("a e i o u a e i o u ai ea oo")
_CODAS = ("", "", "", "l", "n", "r", "s", "t", "m", "k", "d", "x", "nd", "rt", "st")


def invented(random: Random) -> str:
    """An invented lower-case word of two or three syllables."""
    count = 2 if random.random() < 0.7 else 3
    return "".join(random.choice(_ONSETS) + random.choice(_VOWELS) + random.choice(_CODAS) for _ in range(count))


def held_out(name: str) -> bool:
    """Whether only evaluation uses a tool's name: one name in ten, chosen by its hash."""
    return hashlib.sha256(name.lower().encode()).digest()[0] < 26


def noun(random: Random) -> str:
    """The noun of a tool, of one or two words; mostly invented."""
    draw = random.random()
    if draw < 0.35:
        word = random.choice(NOUNS)
    else:
        word = random.choice(random.choice((KEYS, ADJECTIVES))) if draw < 0.45 else invented(random)
    return f"{word} {random.choice(random.choice((NOUNS, KEYS)))}" if random.random() < 0.12 else word


def code(random: Random) -> str:
    """An identifier such as QX-482."""
    letters = "".join(random.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=random.randint(1, 3)))
    digits = "".join(random.choices("0123456789", k=random.randint(2, 4)))
    return letters + random.choice(["", "-"]) + digits


def capitalised(random: Random) -> str:
    """A capitalised name: a city's, a person's, or an invented one."""
    draw = random.random()
    if draw < 0.2:
        return random.choice(CITIES)
    if draw < 0.4:
        return random.choice(PEOPLE)
    return invented(random).capitalize()
