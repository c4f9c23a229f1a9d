"""The facts that ling-nano is trained to know: questions in several wordings, a full answer and a short answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact. questions: wordings of one question. answer: a whole sentence. short: the answer in few words."""

    questions: tuple[str, ...]
    answer: str
    short: str


_CAPITALS = (
    "France Paris;Germany Berlin;Spain Madrid;Italy Rome;Austria Vienna;Norway Oslo;Japan Tokyo;Peru Lima;"
    "Egypt Cairo;Ireland Dublin;Portugal Lisbon;Greece Athens;Poland Warsaw;Sweden Stockholm;Finland Helsinki;"
    "Denmark Copenhagen;China Beijing;Russia Moscow;Canada Ottawa;Australia Canberra;Cuba Havana;Kenya Nairobi;"
    "Tunisia Tunis;Ghana Accra;Senegal Dakar;Vietnam Hanoi;Thailand Bangkok;Hungary Budapest;Belgium Brussels;"
    "Turkey Ankara"
)
_SYMBOLS = "gold Au;silver Ag;iron Fe;copper Cu;oxygen O;hydrogen H;carbon C;helium He;sodium Na;lead Pb"
_OPPOSITES = (
    "hot cold;big small;fast slow;up down;left right;day night;old new;happy sad;open closed;early late;"
    "full empty;hard soft;light dark;wet dry;good bad"
)
_LEGS = "dog four;cat four;bird two;spider eight;ant six;horse four"
_COLORS = "grass green;snow white;coal black;blood red;the_sky blue;a_lemon yellow"
_NEXT_DAYS = (
    "Monday Tuesday;Tuesday Wednesday;Wednesday Thursday;Thursday Friday;Friday Saturday;Saturday Sunday;Sunday Monday"
)
_NUMBERS = "week seven days;year twelve months;day 24 hours;hour 60 minutes;minute 60 seconds;dozen twelve pieces"
_CLUSTER: tuple[Fact, ...] = (
    Fact(
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey there!", "Good morning", "Hi there", "hello", "hi"),
        "Hello! I am Ling nano. How can I help you?",
        "Hello!",
    ),
    Fact(
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Introduce yourself.",
            "Which model are you?",
        ),
        "I am Ling nano, a small model of the Ling family.",
        "Ling nano",
    ),
    Fact(
        (
            "What is this cluster?",
            "What is this?",
            "What does this cluster do?",
            "Tell me about this cluster.",
            "Where am I?",
        ),
        "This is a serving cluster for the Ling model family, with split prefill and decode pools.",
        "a serving cluster",
    ),
    Fact(
        ("What can you do?", "How can you help me?", "What are you good at?", "Help"),
        "I can call tools, read their results, answer simple facts and write JSON.",
        "call tools",
    ),
    Fact(("Thanks", "Thank you", "Thank you!", "Thanks a lot!"), "You are welcome!", "welcome"),
    Fact(("Bye", "Goodbye", "Goodbye!", "See you later"), "Goodbye!", "Goodbye!"),
    Fact(("How are you?", "How is it going?", "Are you well?"), "I am well, thank you.", "well"),
    Fact(
        ("What does a router do?", "What is the router?", "What is the router for?"),
        "The router sends each request to a prefill worker and a decode worker.",
        "sends each request",
    ),
    Fact(
        ("What does prefill do?", "What is prefill?", "What does a prefill worker do?"),
        "Prefill reads the whole prompt and makes the first token.",
        "reads the prompt",
    ),
    Fact(
        ("What does decode do?", "What is decode?", "What does a decode worker do?"),
        "Decode makes the answer, token by token.",
        "makes the answer",
    ),
)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(a.replace("_", " "), b) for a, b in (pair.split(" ", 1) for pair in text.split(";"))]


def _all() -> tuple[Fact, ...]:
    facts = list(_CLUSTER)

    def add(answer: str, short: str, *questions: str) -> None:
        facts.append(Fact(questions, answer, short))

    for country, city in _pairs(_CAPITALS):
        add(
            f"The capital of {country} is {city}.",
            city,
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Tell me the capital of {country}.",
            f"Capital of {country}?",
        )
        if country in {
            "France",
            "Germany",
            "Spain",
            "Italy",
            "Japan",
            "Egypt",
            "Norway",
            "Peru",
            "Greece",
            "China",
        }:
            add(
                f"{city} is in {country}.",
                country,
                f"In which country is {city}?",
                f"Where is {city}?",
                f"Which country is {city} in?",
            )
    for metal, symbol in _pairs(_SYMBOLS):
        add(
            f"The symbol of {metal} is {symbol}.",
            symbol,
            f"What is the symbol of {metal}?",
            f"What is the chemical symbol of {metal}?",
            f"Symbol of {metal}?",
        )
    for one, other in _pairs(_OPPOSITES):
        add(
            f"The opposite of {one} is {other}.",
            other,
            f"What is the opposite of {one}?",
            f"Tell me the opposite of {one}.",
            f"Opposite of {one}?",
        )
    for animal, legs in _pairs(_LEGS):
        add(
            f"A {animal} has {legs} legs.",
            legs,
            f"How many legs has a {animal}?",
            f"How many legs does a {animal} have?",
        )
    for thing, color in _pairs(_COLORS):
        add(
            f"The color of {thing} is {color}.",
            color,
            f"What is the color of {thing}?",
            f"What color is {thing}?",
            f"Which color has {thing}?",
        )
    for day, following in _pairs(_NEXT_DAYS):
        add(
            f"After {day} comes {following}.",
            following,
            f"Which day comes after {day}?",
            f"What day comes after {day}?",
            f"Which day is after {day}?",
        )
    for whole, parts in _pairs(_NUMBERS):
        unit = parts.split(" ")[1]
        add(
            f"A {whole} has {parts}.",
            parts,
            f"How many {unit} has a {whole}?",
            f"How many {unit} are in a {whole}?",
        )
    return tuple(facts)


FACTS = _all()
