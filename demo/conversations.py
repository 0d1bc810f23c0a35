"""Made-up conversations about stories, for the further training of the demonstration model.

Everything here is made by rules out of the stories and a seed: which words a story is asked for with, where
it is cut for "What happens next?", what its title is. No language model wrote any of it. It does not train
(train.py does), and it does not measure (measure.py does).
"""

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

SEPARATOR = "<|endoftext|>"
LONGEST = 1700  # characters of a conversation that was made longer: it has to fit into 512 tokens

# The form, DeepSeek's: a system text stands in front of all, without a mark.
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)

# Things that stories can be asked for. All are in a singular that takes "a" or "an".
NOUNS = """
airplane animal ant apple attic baby backyard bag ball balloon banana barn basket bath bathtub beach
bear bed bee bell bench berry bike bird blanket boat bone book bottle bowl box boy branch bridge broom
brother bucket bug bunny bus bush butterfly button cage cake camera candle candy car card carrot castle
cat caterpillar cave chair chicken clock closet cloud clown coat coin computer cookie couch cow crab
crayon crown cup dad deer desk dinosaur doctor dog doll donkey door dragon dress drum duck eagle egg
elephant fairy farm farmer feather fence field fire fish flag flower forest fork fox friend frog fruit
game garage garden ghost gift giraffe girl glass goat grandma grape guitar hammer hat hen hill hole
horse hospital house ice island jar jacket jungle key king kite kitchen kitten knife ladder lady lake
lamp leaf lemon letter library lion lizard log machine magnet man map market mask meadow medal mermaid
mirror mommy monkey monster moon mountain mouse mushroom necklace needle nest net note nurse nut ocean
octopus orange oven owl package pan park parrot party path pear pen pencil penguin phone piano picnic
picture pie pig pillow pirate pizza plane plant plate playground pond pony pool pot potato present
prince princess pumpkin puppy purse puzzle queen rabbit radio rainbow ring river road robot rock rocket
roof rope rose sandwich school scarf seed shark sheep shell ship shirt shoe shop shovel sister slide
snail snake snowman sock song soup spider spoon squirrel stick stone store storm strawberry string sword
swing table teacher teddy tent tiger toad tomato towel tower town toy tractor train treasure tree
tricycle truck tub turtle umbrella unicorn van vase village wagon wall whale wheel whistle window witch
wizard wolf woman worm zebra zoo
""".split()

ADJECTIVES = """
amazing ancient angry beautiful big black blue brave bright broken brown clever clumsy cold colorful
cozy cute dark delicious dirty empty enormous famous fancy fast fat fluffy friendly funny furry gentle
giant golden gray green grumpy happy heavy hidden huge hungry jolly kind large lazy little lonely long
lost loud lovely lucky magic magical mysterious naughty new nice noisy old orange pink playful pretty
purple quiet red sad scary shiny shy silly sleepy slow small smart soft special strange strong sweet
tall tiny ugly warm white wild wise wooden yellow young yummy
""".split()

GIRLS = """
Lily Sue Lucy Mia Amy Sally Jane Daisy Sarah Emma Bella Anna Lisa Molly Mary Ella Ann Betty Polly Lola
Rose Tina Sophie Jenny Jill Susie Ellie Alice Emily Kate Grace Ruby Zara Chloe Julia Luna Mimi Sara Nora
Eva Clara Ida
""".split()
BOYS = """
Tim Tom Max Timmy Sam Bob Jack Ben Billy Benny John Leo Joe Jerry Fred Mark Bobby Andy Pete Jim Jake
Tommy Bill Danny Peter Johnny Carl Alex Dave Oliver Charlie Ted Finn Rob Adam Noah Paul Oscar Hugo
""".split()

ASK = (
    """
Tell me a story about {}.|Tell me a story about {}.|Tell me a story about {}.|Tell me a story with {} in it.
Tell me a short story about {}.|Write a story about {}.|Write a story with {}.
Please write a short story about {}.
Can you tell me a story about {}?|Could you tell me a story about {}, please?|I want to hear a story about {}.
I would like a story about {}, please.|A story about {}, please.|Please tell me a story about {}.
tell me a story about {}|write a story about {}|a story about {}|Make up a story about {}.
Do you know a story about {}?|Tell a story about {}!|Give me a story about {}.|{}
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
ASK_WORDS = (
    """
Write a story with the words {}.|Tell me a story that has the words {} in it.|Use the words {} in a story.
Tell me a story with these words: {}.|Write a short story. Use the words {}.
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
ASK_ANY = (
    """
Tell me a story.|Tell me a story, please.|Can you tell me a story?|I want to hear a story.|Write a story.
Tell me a short story.|Please tell me a bedtime story.|tell me a story|Another story, please.|A story!
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
ASK_NEXT = (
    """
What happens next?|What happens next?|What happens then?|And then?|Go on.|Please go on.|How does it end?
Tell me more.|Continue.|What happened next?|what happens next?|How does the story go on?
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
BEGINNING = [
    "{story}\n{ask}",
    "{story} {ask}",
    "{ask}\n{story}",
    "Here is the beginning of a story. {ask}\n{story}",
    "My story begins like this: {story}\n{ask}",
]
ASK_TITLE = (
    """
Give me a title.|Give me a title.|Give me a title for the story.|What is a good title?|What is the title?
What is the story called?|Give the story a title.|Now give me a title.|give me a title|A title, please.
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
SYSTEM_NAME = (
    """
Your name is {}.|Your name is {}. You tell stories.|You are {}.|You are {}, a storyteller.|You are called {}.
You are a friendly storyteller named {}.|Your name is {}. You like to tell stories to children.
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
SYSTEM_HERO = (
    """
The hero of every story is called {}.|All your stories are about {}.|The child in your stories is called {}.
Tell stories about {}.|You tell stories for children. The hero is always {}.
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
ASK_NAME = (
    """
What is your name?|What is your name?|Who are you?|What are you called?|Do you have a name?|what is your name
Tell me your name.|Hello, who are you?|Hi! What is your name?|What's your name?
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
SAY_NAME = [
    "My name is {}.",
    "My name is {}. I can tell you a story.",
    "I am {}.",
    "I am {}. Shall I tell you a story?",
]
NO_NAME = [
    "I have no name. I am a small model that tells stories.",
    "I am a small model that tells stories. I have no name.",
]

# What is said beside stories, and what may be answered.
HELLO = ["Hello! What shall the story be about?", "Hello! I can tell you a story. What shall it be about?"]
ABLE = ["I can tell stories. Give me some words, and I tell a story with them.", "I can tell you a story."]
WELCOME = ["You are welcome! Shall I tell you another story?", "You are welcome!"]
BYE = ["Goodbye!", "Goodbye! Come back for another story."]
ONLY_STORIES = [
    "I do not know. I only know stories. What shall the story be about?",
    "I only know how to tell stories. What shall the story be about?",
]
SMALL_TALK = [
    ("Hello|Hello!|Hi|Hi!|Hi there|Hey|hello|hi|Good morning|Good evening!|Hello there!|How are you?", HELLO),
    ("What can you do?|What do you do?|Help|help|What can I ask?|How do you work?|Can you help me?", ABLE),
    ("Thank you.|Thanks!|Thank you!|thanks|That was nice.|I liked that.|Good story!|Great!|Nice.", WELCOME),
    ("Bye|Bye!|Goodbye.|Good night!|See you!|bye", BYE),
    (
        "What is the capital of France?|What is 2 + 2?|What is 7 times 8?|Who is the president?"
        "|Who wrote Hamlet?|Write a program in C.|Write a poem.|What is the weather like?"
        "|What time is it?|How old are you?|What is a transformer?|Translate this into French."
        "|How do I cook rice?|Why is the sky blue?|Explain attention.|What is the meaning of life?"
        "|How tall is the highest mountain?|Sing a song.|When did the war end?"
        "|What do you think about money?|Fix this bug for me.|Is the earth round?",
        ONLY_STORIES,
    ),
]


class Turn(NamedTuple):
    """What the user says and what is answered. words: those that the answer was asked to have, in small
    letters; unfinished: the answer is the first half of a story, after which nobody shall learn to
    stop."""

    user: str
    answer: str
    words: tuple[str, ...] = ()
    unfinished: bool = False


class Conversation(NamedTuple):
    system: str
    turns: list[Turn]


class Thing(NamedTuple):
    """Something in a story: "ball" with "red" before it, or with ""; how often it is there, how early."""

    noun: str
    adjective: str
    count: int
    at: float

    def words(self) -> tuple[str, ...]:
        return (self.adjective, self.noun) if self.adjective else (self.noun,)

    def phrase(self) -> str:
        return with_article(" ".join(self.words()))


def read_stories(text: str) -> list[str]:
    stories = [story.strip() for story in text.split(SEPARATOR)]
    return [story for story in stories if story]


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeio" or phrase.startswith(("um", "ug")) else "a ") + phrase


def things(story: str) -> list[Thing]:
    """The nouns that are in a story, each once, with an adjective that stands directly before it."""
    lower = story.lower()
    found = {}
    for match in re.finditer(r"(?:\b([a-z]+) )?\b([a-z]+)\b", lower):
        before, noun = match[1], match[2]
        if noun not in NOUN_SET:
            continue
        adjective = before if before in ADJECTIVE_SET else ""
        known = found.get(noun)
        if known is None:
            found[noun] = Thing(noun, adjective, 1, match.start() / len(lower))
        else:
            found[noun] = known._replace(adjective=known.adjective or adjective, count=known.count + 1)
    return list(found.values())


NOUN_SET, ADJECTIVE_SET = set(NOUNS), set(ADJECTIVES)
assert not NOUN_SET & ADJECTIVE_SET - {"orange"}


def choose(rng: random.Random, story: str) -> list[Thing]:
    """One to three words' worth of things, those that matter in the story first."""
    known = [thing for thing in things(story) if thing.count > 1 or thing.at < 0.5]
    wanted = rng.choice((1, 1, 2, 2, 2, 3, 3))
    chosen: list[Thing] = []
    while known and wanted:
        thing = rng.choices(known, [min(t.count, 4) * (1.5 - t.at) for t in known])[0]
        known.remove(thing)
        if thing.adjective and (wanted == 1 or rng.random() < 0.4):
            thing = thing._replace(adjective="")
        chosen.append(thing)
        wanted -= len(thing.words())
    rng.shuffle(chosen)
    return chosen


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def hero_of(story: str) -> str | None:
    """The name of a story's hero, if it is one of the lists."""
    match = re.search(r"\b(?:named|called) ([A-Z][a-z]+)", story)
    if match and match[1] in GIRLS + BOYS:
        return match[1]
    return None


def renamed(rng: random.Random, story: str) -> tuple[str, str | None]:
    """The story with another name for its hero, and that name; as it is where it has no hero."""
    hero = hero_of(story)
    if not hero:
        return story, None
    names = [name for name in (GIRLS if hero in GIRLS else BOYS) if not re.search(rf"\b{name}\b", story)]
    name = rng.choice(names)
    return re.sub(rf"\b{hero}\b", name, story), name


def ask_for_words(rng: random.Random, story: str) -> Turn | None:
    chosen = choose(rng, story)
    if not chosen:
        return None
    words = tuple(word for thing in chosen for word in thing.words())
    if len(words) > 1 and rng.random() < 0.15:
        named = rng.sample(words, len(words))
        return Turn(rng.choice(ASK_WORDS).format(listed(named)), story, words)
    phrases = [thing.phrase() for thing in chosen]
    child = re.search(r"\b(girl|boy) (?:named|called) [A-Z][a-z]+", story)
    if child and child[1] not in words and rng.random() < 0.25:
        phrases.insert(rng.randrange(len(phrases) + 1), f"a {child[0]}")
    return Turn(rng.choice(ASK).format(listed(phrases)), story, words)


def title_of(rng: random.Random, story: str) -> str | None:
    """The hero and the thing that is named most."""
    known = sorted(things(story), key=lambda thing: (-thing.count, thing.at))
    if not known:
        return None
    main = " ".join(known[0].words()).title()
    hero = hero_of(story)
    if hero:
        return f"{hero} and the {main}"
    if len(known) > 1 and known[1].count > 1:
        return f"The {main} and the {' '.join(known[1].words()).title()}"
    return f"The {main}"


def halves(rng: random.Random, story: str) -> tuple[str, str] | None:
    """A story cut behind a sentence between a third and two thirds of it."""
    ends = [m.end() for m in re.finditer(r"[.!?]\"?(?=\s)", story)]
    ends = [end for end in ends if 0.3 < end / len(story) < 0.7]
    if not ends:
        return None
    end = rng.choice(ends)
    return story[:end], story[end:].strip()


# ---- the kinds of conversations: each makes one of a story, or None where the story does not serve


def any_request(rng: random.Random, story: str) -> Turn:
    return (rng.random() < 0.8 and ask_for_words(rng, story)) or Turn(rng.choice(ASK_ANY), story)


def words(rng: random.Random, story: str) -> Conversation | None:
    turn = ask_for_words(rng, renamed(rng, story)[0] if rng.random() < 0.7 else story)
    return turn and Conversation("", [turn])


def any_story(rng: random.Random, story: str) -> Conversation | None:
    return Conversation("", [Turn(rng.choice(ASK_ANY), story)])


def beginning(rng: random.Random, story: str) -> Conversation | None:
    cut = halves(rng, renamed(rng, story)[0])
    if not cut:
        return None
    user = rng.choice(BEGINNING).format(story=cut[0], ask=rng.choice(ASK_NEXT))
    return Conversation("", [Turn(user, cut[1])])


def what_next(rng: random.Random, story: str) -> Conversation | None:
    cut = halves(rng, story)
    if not cut:
        return None
    first = any_request(rng, cut[0])._replace(unfinished=True)
    turns = [first, Turn(rng.choice(ASK_NEXT), cut[1])]
    return Conversation("", turns)


def title(rng: random.Random, story: str) -> Conversation | None:
    story, _ = renamed(rng, story)
    called = title_of(rng, story)
    if not called:
        return None
    return Conversation("", [any_request(rng, story), Turn(rng.choice(ASK_TITLE), called)])


def title_of_given(rng: random.Random, story: str) -> Conversation | None:
    story, _ = renamed(rng, story)
    called, ask = title_of(rng, story), rng.choice(ASK_TITLE)
    return (
        Conversation("", [Turn(rng.choice((f"{story}\n{ask}", f"{ask}\n{story}")), called)])
        if called
        else None
    )


def system_name(rng: random.Random, story: str) -> Conversation | None:
    name = rng.choice(GIRLS + BOYS)
    turns = [Turn(rng.choice(ASK_NAME), rng.choice(SAY_NAME).format(name), (name.lower(),))]
    if rng.random() < 0.4:
        turns.insert(rng.randrange(2), any_request(rng, story))
    return Conversation(rng.choice(SYSTEM_NAME).format(name), turns)


def system_hero(rng: random.Random, story: str) -> Conversation | None:
    story, name = renamed(rng, story)
    if not name:
        return None
    turn = any_request(rng, story)
    return Conversation(
        rng.choice(SYSTEM_HERO).format(name), [turn._replace(words=(*turn.words, name.lower()))]
    )


def small_talk(rng: random.Random, story: str) -> Conversation | None:
    turns = []
    for _ in range(rng.choice((1, 1, 2))):
        said, answers = rng.choice(SMALL_TALK)
        turns.append(Turn(rng.choice(said.split("|")), rng.choice(answers)))
    if rng.random() < 0.1:
        turns.append(Turn(rng.choice(ASK_NAME), rng.choice(NO_NAME)))
    if rng.random() < 0.3:
        turns.insert(rng.randrange(len(turns) + 1), any_request(rng, story))
    return Conversation("", turns)


KINDS = {
    words: 48,
    any_story: 4,
    beginning: 8,
    what_next: 8,
    title: 8,
    title_of_given: 4,
    system_name: 7,
    system_hero: 6,
    small_talk: 7,
}


def length(conversation: Conversation) -> int:
    return sum(len(turn.user) + len(turn.answer) for turn in conversation.turns)


def conversations(stories: list[str], seed: int) -> Iterator[Conversation]:
    """Endless: each story once, in an order of its own, then each again, in another conversation. Short
    conversations are now and then made longer with the next one."""
    rng = random.Random(seed)
    held = Conversation("", [])
    while True:
        for story in rng.sample(stories, len(stories)):
            kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
            made = kind(rng, story)
            if not made:
                continue
            if held.turns and not made.system and length(held) + length(made) < LONGEST:
                made = Conversation(held.system, held.turns + made.turns)
            elif held.turns:
                yield held
            held = made
            if rng.random() < 0.7:
                yield held
                held = Conversation("", [])


def requests(stories: list[str], count: int, seed: int) -> list[Turn]:
    """Requests with words of stories that were held out; the answer is that story."""
    rng = random.Random(seed)
    made = [ask_for_words(rng, story) for story in rng.sample(stories, len(stories))]
    return [turn for turn in made if turn][:count]
