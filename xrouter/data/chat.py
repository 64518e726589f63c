"""Small talk: messages that need no model at all, and short replies to them.

The right action for these tasks is to answer directly. Messages are composed from templates;
replies exist to warm-start the router in answering, and for the simulated fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from xrouter.data.procedural import Draft
from xrouter.episode import Task

_OPENERS = ("Hi", "Hello", "Hey", "Hi there", "Hello there", "Hey there", "Howdy", "Greetings")
_NAMES = ("", " Sam", " friend", " everyone", " buddy", " team", " again")
_TIMES = ("morning", "afternoon", "evening", "day")
_THINGS = ("help", "answer", "advice", "time", "quick reply", "explanation", "patience", "tips")
_TOPICS = (
    "music",
    "coffee",
    "tea",
    "cats",
    "dogs",
    "rain",
    "summer",
    "winter",
    "books",
    "movies",
    "pizza",
    "gardening",
    "travel",
    "football",
    "chess",
    "the sea",
    "mountains",
    "poetry",
    "space",
    "cooking",
)
_SUBJECTS = (*_TOPICS, "computers", "robots", "Mondays", "math", "teachers", "pirates", "penguins")
_MOODS = ("tired", "happy", "bored", "excited", "a bit sad", "stressed", "lonely", "proud", "lazy")
_EVENTS = (
    "my trip",
    "my exam",
    "my new job",
    "the weekend",
    "my birthday",
    "my first day at school",
)

CHAT_KINDS = ("greeting", "thanks", "identity", "joke", "opinion", "feeling", "goodbye")
#: kind -> (message templates with the lists that fill them, replies)
_KINDS: Mapping[str, tuple[Sequence[tuple[str, tuple[Sequence[str], ...]]], Sequence[str]]] = {
    "greeting": (
        (
            ("{}{}!", (_OPENERS, _NAMES)),
            ("{}{}, how are you?", (_OPENERS, _NAMES)),
            ("{}{}, how is it going?", (_OPENERS, _NAMES)),
            ("Good {}{}!", (_TIMES, _NAMES)),
            ("Good {}{}, how are you doing?", (_TIMES, _NAMES)),
            ("{}, nice to meet you.", (_OPENERS,)),
        ),
        (
            "Hello! How can I help you today?",
            "Hi! I am well, thank you. What can I do for you?",
            "Hey, nice to hear from you!",
        ),
    ),
    "thanks": (
        (
            ("Thanks for the {}!", (_THINGS,)),
            ("Thank you so much for your {}.", (_THINGS,)),
            ("Thanks a lot, your {} was great.", (_THINGS,)),
            ("I really appreciate the {}.", (_THINGS,)),
            ("{}, thanks for the {}!", (_OPENERS, _THINGS)),
        ),
        ("You are welcome!", "Glad I could help!", "Any time, happy to help."),
    ),
    "identity": (
        (
            ("Who are you{}?", (_NAMES,)),
            ("{}, what are you?", (_OPENERS,)),
            ("{}, are you a robot?", (_OPENERS,)),
            ("{}, what is your name?", (_OPENERS,)),
            ("{}, what can you do?", (_OPENERS,)),
            ("Do you like {}?", (_TOPICS,)),
            ("Have you ever tried {}?", (_TOPICS,)),
        ),
        (
            "I am an assistant that answers questions, alone or with the help of other models.",
            "I am a language model, here to help you.",
            "I am an AI assistant. Ask me anything!",
        ),
    ),
    "joke": (
        (
            ("Tell me a joke about {}.", (_SUBJECTS,)),
            ("Do you know a joke about {}?", (_SUBJECTS,)),
            ("Make me laugh with something about {}.", (_SUBJECTS,)),
        ),
        (
            "Why did the computer go to the doctor? It had a virus!",
            "I would tell you a joke about time, but you did not like it tomorrow.",
            "What do you call a fish without eyes? A fsh!",
        ),
    ),
    "opinion": (
        (
            ("What do you think about {}?", (_TOPICS,)),
            ("I love {}, do you?", (_TOPICS,)),
            ("Let us talk about {}.", (_TOPICS,)),
            ("I have been enjoying {} lately.", (_TOPICS,)),
            ("Is {} better than {}?", (_TOPICS, ("sleeping", "dancing", "ice cream"))),
        ),
        (
            "Many people love it, and I can see why. What do you like about it?",
            "That sounds lovely! Tell me more.",
            "Tastes differ, and that is the fun of it. What is your view?",
        ),
    ),
    "feeling": (
        (
            ("I feel {} today.", (_MOODS,)),
            ("I am {} about {}.", (_MOODS, _EVENTS)),
            ("Wish me luck for {}!", (_EVENTS,)),
            ("Guess what, I am {} right now.", (_MOODS,)),
        ),
        (
            "Thank you for telling me. How did that come about?",
            "I hear you, and I wish you all the best!",
            "That is quite understandable. I am here if you want to talk.",
        ),
    ),
    "goodbye": (
        (
            ("Bye{}!", (_NAMES,)),
            ("Goodbye{}, talk to you later.", (_NAMES,)),
            ("See you tomorrow{}.", (_NAMES,)),
            ("Have a nice {}{}!", (_TIMES, _NAMES)),
            ("I have to go because of {}, bye!", (_EVENTS,)),
        ),
        ("Goodbye, and take care!", "See you soon!", "Bye, have a great day!"),
    ),
}


def chat_drafts(kind: str) -> list[Draft]:
    """All distinct messages of one kind, the plain ones and those behind a greeting."""
    templates, _ = _KINDS[kind]
    plain = [t.format(*words) for t, lists in templates for words in product(*lists)]
    greeted = [
        f"{opener}, {text if text.startswith('I ') else text[0].lower() + text[1:]}"
        for text in plain
        for opener in _OPENERS
        if kind != "greeting" and not text.startswith(_OPENERS)
    ]
    return [Draft(q, "", "chat", {"kind": kind}) for q in dict.fromkeys([*plain, *greeted])]


def chat_reply(task: Task) -> str:
    """A short friendly reply to a chat task; always the same one for the same task."""
    kind = str(task.metadata.get("kind") or guess_kind(task.query))
    replies = _KINDS[kind][1] if kind in _KINDS else _KINDS["greeting"][1]
    return replies[sum(task.query.encode()) % len(replies)]


def guess_kind(message: str) -> str:
    """The kind of a message whose metadata is hidden, by its key words."""
    text = message.lower()
    for kind, marks in (
        ("thanks", ("thank", "appreciate")),
        ("joke", ("joke", "laugh")),
        ("goodbye", ("bye", "see you", "have a nice")),
        (
            "identity",
            (
                "who are you",
                "what are you",
                "your name",
                "robot",
                "what can you",
                "have you",
                "do you like",
            ),
        ),
        ("opinion", ("do you think", "i love", "let us talk", "enjoying", "better than")),
        ("feeling", ("i feel", "i am ", "wish me")),
    ):
        if any(mark in text for mark in marks):
            return kind
    return "greeting"
