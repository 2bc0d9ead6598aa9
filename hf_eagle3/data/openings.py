"""Openings of user turns: what the target is given so that it asks many different things of itself.

Each `Kind` has a weight, a hint that stands in the system block while the user turn is sampled (and is stripped before
the answer), and openings filled from word lists. All texts are our own; none comes from a benchmark.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

# fmt: off
WORDS: dict[str, tuple[str, ...]] = {
    "name": tuple(
        "Maria Tom Aisha Ben Clara David Elena Farid Grace Hugo Ines Jack Kenji Lucy Marco Nina Omar Paula Quinn Rosa "
        "Sam Tara Victor Wendy Yusuf Zoe Alice Carlos Diana Ethan Fatima George Hannah Ivan Julia Leo".split()
    ),
    "thing": tuple(
        "apples marbles books stickers pencils cookies tickets eggs oranges stamps flowers balloons cards bottles "
        "toys chairs shirts cupcakes coins pages bricks candles notebooks muffins".split()
    ),
    "topic": (
        "climate change", "the French Revolution", "photosynthesis", "black holes", "renewable energy", "jazz music",
        "the Roman Empire", "artificial intelligence", "healthy eating", "time management", "ocean life", "vaccines",
        "the water cycle", "inflation", "volcanoes", "the Silk Road", "dreams", "public speaking", "bees", "chess",
        "electric cars", "the human heart", "remote work", "the Renaissance", "earthquakes", "sleep", "coffee",
        "social media", "space travel", "gardening", "the stock market", "dinosaurs", "friendship", "poetry", "DNA",
        "recycling", "football", "the Great Wall of China", "cooking pasta", "computer security", "the moon landing",
        "evolution", "democracy", "job interviews", "learning a language", "dogs", "mountain climbing", "magnets",
        "personal finance", "robots", "rain forests", "the Second World War", "music theory", "bridges",
        "antibiotics",
    ),
    "form": (
        "a short story", "a poem", "a blog post", "an email", "a haiku", "a speech", "a product description",
        "a song", "a letter", "a short essay", "a dialogue", "a tweet", "a news report", "a paragraph", "a review",
        "an outline", "a tagline", "a travel guide", "a diary entry", "a recipe", "a joke", "a limerick",
        "a cover letter",
    ),
    "role": (
        "a pirate captain", "a doctor", "a history teacher", "a detective", "a chef", "a wise old wizard",
        "a lawyer", "an astronaut", "a football coach", "a museum guide", "a tree", "a medieval knight",
        "a therapist", "a farmer", "a job interviewer", "a travel agent", "a scientist from the future", "a cat",
        "a stand-up comedian",
    ),
    "lang": ("French", "Spanish", "German", "Italian", "Portuguese"),
    "place": (
        "Japan", "Brazil", "Canada", "Egypt", "Paris", "India", "Kenya", "Iceland", "New York", "Greece",
        "Australia", "Peru", "London", "Vietnam", "Norway", "Rome", "Texas", "Morocco", "China", "Mexico",
    ),
    "code": (
        "numbers: list[int]) -> int:", "s: str) -> str:", "s: str) -> bool:", "n: int) -> int:", "n: int) -> bool:",
        "a: int, b: int) -> int:", "words: List[str]) -> List[str]:", "lst):", "text):", "x, y):", "arr, k):",
        "numbers: List[float]) -> float:", "matrix):", "d: dict, key: str):", "n):", "string: str) -> int:",
    ),
    "verb": tuple(
        "count find is_valid remove sort reverse sum max_of check split merge convert filter get compute encode "
        "decode rotate parse replace select make group index compare flatten unique longest shortest even odd "
        "prime common factorial average median vowel digit palindrome".split()
    ),
    "noun": tuple("list word string number items pairs digits letters tree prefix value elements score path".split()),
    "task": (
        "reverses a string", "finds the largest number in a list", "checks if a word is a palindrome",
        "sorts a list", "counts the vowels in a string", "computes the factorial of a number",
        "removes duplicates from a list", "merges two dictionaries", "reads a CSV file",
        "checks whether a number is prime", "flattens a nested list", "finds the common elements of two lists",
        "converts Celsius to Fahrenheit", "counts words in a text",
    ),
}

# fmt: on


@dataclass(frozen=True)
class Kind:
    """A kind of user turn: sampling `weight`, system `hint`, `openings`, and the longest turn in new tokens."""

    name: str
    weight: float
    hint: str
    openings: tuple[str, ...]
    max_new_tokens: int = 72
    uses_passage: bool = False


# fmt: off
KINDS: tuple[Kind, ...] = (
    Kind(
        "maths",
        0.15,
        "The user asks a grade school maths word problem with numbers, ending in a question.",
        (
            "{name} has {n} {thing}.", "{name} buys {n} {thing} for ${m} each.",
            "A shop sells {thing} for ${m} each.", "{name} and {name} have {n} {thing} together.",
            "A train travels {n} miles", "{name} earns ${n} an hour", "There are {n} students in a class.",
            "{name} reads {m} pages a day.", "A farmer has {n} {thing}", "{name} is {m} years older than {name}.",
            "In a box there are {n} {thing}.", "Every day {name} ", "A recipe needs {m} cups of flour",
            "If {name} saves ${m} every week,", "{name} baked {n} {thing}", "A rectangle has a length of {n}",
            "{name} walks {m} miles", "How much ", "What is {n} ", "Half of the {n} ",
        ),
        80,
    ),
    Kind(
        "code",
        0.16,
        "The user asks for help with a short Python function.",
        (
            'def {verb}_{noun}({code}\n    """', 'def {verb}_{noun}({code}\n    """ ',
            'from typing import List\n\n\ndef {verb}_{noun}({code}\n    """ ',
            'Complete the following Python function:\n\ndef {verb}_{noun}({code}\n    """',
            'Complete this code:\n```python\ndef {verb}_{noun}({code}\n    """',
            "Write a Python function that {task}", "Write a Python function to ", "Write a Python program that ",
            "Implement a function `{verb}_{noun}` in Python that ", "How do I ",
            "Explain the following Python code:\n\n", "Fix the bug in this code:\n\ndef {verb}_{noun}({code}\n",
            "Write a JavaScript function that ", "Write a SQL query ", "Write a class in Python ",
            "Write a C++ program that ", "Write a function that {task} in ",
        ),
        128,
    ),
    Kind(
        "writing",
        0.12,
        "The user asks for a piece of creative or practical writing about {topic}.",
        (
            "Write {form} about {topic}", "Write {form} ", "Compose {form} ", "Draft an email to ",
            "Create {form} for ", "Write {form} in which ", "Imagine you are ", "Describe a ", "Rewrite ",
            "Give me a catchy title for ", "Write a persuasive ", "Compose an engaging ",
            "Write a descriptive paragraph about {place}", "Help me write ",
        ),
    ),
    Kind(
        "roleplay",
        0.05,
        "The user asks the assistant to play a role.",
        (
            "Pretend you are {role}.", "You are {role}.", "Act as {role} and ", "Imagine yourself as {role}.",
            "I want you to act as ", "Take on the role of {role}.", "Embrace the role of {role}.",
        ),
    ),
    Kind(
        "reasoning",
        0.07,
        "The user asks a reasoning question or a puzzle.",
        (
            "If ", "Imagine you are ", "Which word does not belong", "{name} is taller than ", "A man ", "Suppose ",
            "Why might ", "What would happen if ", "Is it true that ", "Determine whether ",
            "Which of the following ", "Think step by step: ", "Three friends ", "Compare ",
            "What is the next number in the sequence {m}, ",
        ),
    ),
    Kind(
        "advice",
        0.17,
        "The user gives a short instruction or asks for help about {topic}.",
        (
            "How can I ", "What are the best ways to ", "Give three tips for ", "List five ", "Explain ",
            "Describe ", "Suggest ", "Generate a list of ", "Create a ", "Identify ", "Classify the following ",
            "Edit the following sentence: ", "Name ", "Provide an example of ", "Summarize ", "Give me advice on ",
            "What should I ", "Come up with ", "Design a ", "Construct a ", "Find the synonym of ",
            "Rewrite the sentence ", "Convert ", "Translate the following sentence into {lang}: ", "Generate a ",
            "Brainstorm ", "Tell me how to ", "Categorize ", "Arrange the words ", "Outline ",
            "Compare and contrast ",
        ),
    ),
    Kind(
        "facts",
        0.16,
        "The user asks a factual question about {topic}.",
        (
            "What is {topic}", "What is ", "Who was ", "Who ", "When did ", "Where is ", "Why is ", "Why do ",
            "How does ", "How many ", "What are the ", "Which ", "When was ", "who wrote ", "what is the ",
            "where does ", "when did the ", "who is the ", "Explain {topic}", "What causes ",
            "Describe the history of ", "Explain the concept of ", "What was ", "Tell me about ", "how many ",
            "who won ", "what does ", "What is the capital of {place}", "What is the difference between ",
        ),
        48,
    ),
    Kind(
        "summary",
        0.07,
        "The user asks for a summary of a passage.",
        (
            "Summarize the following passage:\n\n{passage}",
            "{passage}\n\nSummarize the text above in a few sentences.", "Summarize: {passage}",
            "Summarize the article below.\n\n{passage}", "TL;DR of this:\n\n{passage}",
            "Write a brief summary of this text:\n\n{passage}", "Summarize this article:\n\n{passage}\n\nSummary:",
        ),
        0,
        True,
    ),
    Kind(
        "passage",
        0.05,
        "The user asks about a passage.",
        (
            "{passage}\n\nQuestion: ", "Read the passage and answer.\n\n{passage}\n\nWhat ",
            "Given the text below, ", "Extract the main points from this text:\n\n{passage}\n\n",
            "{passage}\n\nBased on the text, ",
            "Use the following passages to answer the question.\n\n{passage}\n\nQuestion: ",
            "Context: {passage}\n\nQuestion: What ", "Extract the names in the following text:\n\n{passage}\n\n",
            "Rewrite this more simply: {passage}\n\n",
        ),
        40,
        True,
    ),
)

SYSTEM_PROMPTS: tuple[str, ...] = (
    "You are a helpful assistant.", "You are an expert programmer who writes clear code.",
    "You are a patient teacher. Explain your reasoning step by step.", "You answer briefly and precisely.",
    "You are a creative writer with a vivid style.", "You are a careful assistant who gives detailed answers.",
)
# fmt: on


def pick_kind(rng: random.Random, passages: bool) -> Kind:
    """A kind by weight; the ones that need a passage only when there is one."""
    kinds = [kind for kind in KINDS if passages or not kind.uses_passage]
    return rng.choices(kinds, [kind.weight for kind in kinds])[0]


def fill(text: str, rng: random.Random) -> str:
    """Fill every `{word}` of a text from the word lists, `{n}` and `{m}` with numbers; `{passage}` stays."""

    def word(match: re.Match[str]) -> str:
        key = match.group(1)
        if key == "passage":
            return match.group(0)
        if key == "n":
            return str(rng.randrange(3, 400))
        if key == "m":
            return str(rng.randrange(2, 16))
        return rng.choice(WORDS[key])

    return re.sub(r"\{(\w+)\}", word, text)
