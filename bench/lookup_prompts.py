"""What the benchmark of guessing ahead asks: answers that quote their prompt, and talk that does not."""

from __future__ import annotations

import inspect
import statistics
import textwrap

COAST = """The lighthouse at Skerry Point was built in 1857 by the engineer Thomas Alden, who had the granite brought \
by sea from a quarry forty miles to the north. It stands 41 metres above the high-water mark and its light can be seen \
for 24 nautical miles. For more than a century three keepers and their families lived beside the tower. They grew \
potatoes in the walled garden, kept two cows, and rowed to the village for flour and letters whenever the weather let \
them. The light was electrified in 1936 and made automatic in 1988, when the last keeper, Margaret Rowe, locked the \
door behind her and walked to the village for the last time."""

COUNCIL = """Members of the town council voted on Tuesday to close the Mill Street bridge to cars from the first of \
March. "The bridge was never meant for eleven thousand vehicles a day," said the council's engineer, Paul Osei. "Every \
winter that we wait adds about ninety thousand pounds to the cost of the repair." Shop owners on the north bank said \
that the closure would cost them a third of their trade. "Nobody has asked us what we need," said Ruth Hallam, who has \
run the bakery beside the bridge for nineteen years. The council will pay for a free bus every ten minutes until the \
bridge opens again, which is expected to be in the autumn of next year."""

BEES = """A honeybee that has found flowers returns to the hive and dances on the comb. If the flowers are near, it \
runs in a small circle, first to the left and then to the right. If they are more than about fifty metres \
away, it runs in a straight line while shaking its body from side to side, and then circles back to where \
it started. The angle between the straight line and the vertical is the angle between the flowers and the \
sun. The longer the bee shakes its body, the farther away the flowers are: one second means about one \
kilometre. Karl von Frisch, who worked this out in the 1940s, was given the Nobel Prize for it in 1973."""

ORDERS = """order 10418, Amelia Stone, 2 desk lamps, shipped on 3 May, tracking number GB-7714-2290-118
order 10419, Bernard Okafor, 1 office chair, waiting for stock, tracking number none
order 10420, Chiara Lombardi, 4 shelves, shipped on 4 May, tracking number IT-5502-8713-640
order 10421, Dmitri Petrov, 1 standing desk, delivered on 2 May, tracking number BG-9034-1178-226
order 10422, Elena Ruiz, 3 desk lamps, shipped on 5 May, tracking number ES-3381-4409-975"""

CODE = {
    "data": textwrap.dedent(inspect.getsource(statistics.harmonic_mean)),
    "lines": textwrap.dedent(inspect.getsource(textwrap.indent)),
    "text": textwrap.dedent(inspect.getsource(textwrap.dedent)),
}


def quoting() -> dict[str, str]:
    """Prompts by name whose answers repeat much of them."""
    prompts = {
        f"code {name}": f"Rewrite this code with the variable `{name}` renamed to `values`. Repeat all of the rest "
        f"unchanged.\n\n```python\n{code}```"
        for name, code in CODE.items()
    }
    for name, text in (("coast", COAST), ("council", COUNCIL), ("bees", BEES)):
        prompts[f"repeat {name}"] = f"Repeat the following text word for word.\n\n{text}"
        prompts[f"correct {name}"] = (
            "Correct the spelling of this text. Change nothing else.\n\n"
            f"{text.replace('the ', 'teh ', 2).replace('which', 'wich')}"
        )
    for name, text in (("coast", COAST), ("council", COUNCIL), ("bees", BEES)):
        prompts[f"summary {name}"] = (
            f"Here is an article.\n\n{text}\n\nGive the article a title, and then quote the article in full."
        )
    passages = "\n\n".join(f"Passage {i}: {text}" for i, text in enumerate((COUNCIL, BEES, COAST), 1))
    for question in ("How do bees say where flowers are?", "Who built the lighthouse?"):
        prompts[f"retrieval {question.split()[-1].rstrip('?.')}"] = (
            f"{passages}\n\n{question} Answer by copying the passage that says so, word for word."
        )
    prompts["retrieval orders"] = f"{ORDERS}\n\nWrite these orders as a numbered list."
    return prompts


def free() -> dict[str, str]:
    """Prompts by name whose answers are new text."""
    return {
        f"chat {i}": text
        for i, text in enumerate(
            (
                "Why is the sky blue?",
                "Write a short story about a cat who learns to sail.",
                "What should I see in Rome in two days?",
                "Explain how a refrigerator works to a ten-year-old.",
                "Write a poem about the first snow of winter.",
                "Give me five ideas for a birthday party at home.",
                "How does a bill become a law?",
                "Write an e-mail to my landlord about a broken heater.",
                "What are the advantages and disadvantages of working from home?",
                "Tell me about the history of tea.",
            ),
            1,
        )
    }
