"""count_letters: How many r are in strawberry?  ->  3

A taskset is one function that yields the tasks of a split, and one that scores an answer.

Run:     the commands of examples/README.md, in this folder
They do: check the tasks without a model, practise with the built-in pocket model, measure.
Print:   whether every known-good answer scores 1; the lesson that the model wrote and the reward
         of the practice; the reward on holdout without the lesson and with it.
"""

from reflect.tasksets import taskset

# A word is in one split only: holdout measures the method, not known words.
PRACTICE = "badger beaver donkey falcon giraffe kangaroo leopard parrot penguin raccoon".split()
HOLDOUT = "apricot avocado banana blueberry coconut papaya pineapple strawberry tomato".split()


def count_is_right(text: str, answer: int) -> float | tuple[float, str]:
    """1 if the text after the last "answer:" is the count.

    The reflection reads the feedback: it names errors of form, never the right answer.
    """
    given = text.rpartition("answer:")[2].strip()
    if not given.isdigit():
        return 0.0, "the answer is not a whole number"
    return float(int(given) == answer)


@taskset(verify=count_is_right)
def count_letters(split: str):
    """Count a letter in a word."""
    for word in PRACTICE if split == "practice" else HOLDOUT:
        for letter in sorted(set(word)):
            yield f"How many {letter} are in {word}?", word.count(letter)
