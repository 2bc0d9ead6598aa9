"""What the doctor asks a target: sixteen questions of our own, in no evaluation and in no training text of ours.

Short answers to many questions cover more kinds of text than long ones to few; what is compared are stretches of them.
"""

from __future__ import annotations

_REPORT = (
    "The footbridge over the mill stream was closed on the second of March, after a cyclist had put a wheel through "
    "one of its planks. An engineer found that eleven of the forty planks were rotten, and that two of the four steel "
    "cables had lost strands. The council voted for a new bridge of galvanised steel, wide enough for a wheelchair, "
    "at sixty thousand, and asked the county for half of the money. Until the county has answered, a ferry, rowed by "
    "volunteers of the fire brigade, takes pupils across at eight in the morning and at four in the afternoon. In its "
    "first week it carried two hundred and six people, nine bicycles and a goat."
)

_CODE = """class Shelf:
    def __init__(self, width):
        self.width = width
        self.books = []

    def free(self):
        return self.width - sum(book["thickness"] for book in self.books)

    def put(self, title, author, thickness):
        if thickness > self.free():
            raise ValueError(f"{title} does not fit")
        self.books.append({"title": title, "author": author, "thickness": thickness})
"""

PROMPTS = (
    "Explain step by step how to repair a flat bicycle tyre.",
    "Write a short story about a clockmaker who finds a clock that runs backwards.",
    "What causes the tides?",
    "Give me a recipe for vegetable soup.",
    "Write a Python function that reverses the words of a sentence, and explain it.",
    "Name five animals that sleep in winter and say where they sleep.",
    "How does a sailing boat move against the wind?",
    "Write an email to a landlord about a broken window.",
    "What is the capital of Portugal, and what is it known for?",
    "Why do leaves turn red in autumn?",
    "Describe the life of a medieval farmer.",
    "A baker sells 18 loaves in the morning and twice as many in the afternoon, at 3 euros each. How much does she "
    "earn?",
    "Give three reasons to learn a musical instrument.",
    "Explain to a child what a bank does with money.",
    f"Summarise this report for the village paper.\n\n{_REPORT}",
    f"Explain what this Python class does, method by method.\n\n```python\n{_CODE}```",
)
