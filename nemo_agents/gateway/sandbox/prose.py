"""Text that reads like an answer: short paragraphs about what was asked, chosen by the request's digest."""

from __future__ import annotations

import re
from typing import Final

from nemo_agents.gateway.sandbox.tokens import take

__all__ = ["answer", "sized", "summary"]

_MARKER: Final = re.compile(r"\[sandbox [^\]]{1,100}\] ?")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s|\n")
_TOPIC_MAX: Final = 90
_RESULT_MAX: Final = 160

# The kind of answer is that of the word which comes first in the request.
_INTENTS: Final = {
    "critique": re.compile(r"\b(?:critiqu|critic|review|feedback|weakness|proofread)"),
    "plan": re.compile(r"\b(?:plan\b|plans\b|planner|planning|outline|break (?:it )?down|decompose)"),
    "research": re.compile(r"\b(?:research|find\b|search|look up|sources|investigat|gather|facts)"),
    "synthesis": re.compile(r"\b(?:synthes|summar|combine|write|draft|report|conclu)"),
}
_PARAGRAPHS: Final = {
    "plan": (
        (
            "A plan for “{topic}” in four steps. First, say what a good answer must contain and what it may leave "
            "out. Second, collect two independent sources for every claim and note their dates. Third, compare "
            "them and mark where they disagree. Fourth, write the answer in plain words, the most certain parts "
            "first, and list what is still open."
        ),
        (
            "For “{topic}” I would go in three rounds. Begin with a narrow question that can be settled today, "
            "and settle it. Then widen it by one assumption at a time, keeping a note of which one changed the "
            "picture. Close with a comparison of the two or three options that are left, their costs beside them, "
            "and one recommendation."
        ),
    ),
    "research": (
        (
            "Findings on “{topic}”. Three points come up in most sources: the basic idea is older than its name, "
            "the costs are lower than they were five years ago, and the results depend more on preparation than "
            "on tools. The sources differ on how far this carries over to small teams; two of them report it "
            "without numbers. The strongest evidence is a comparison over several years, the weakest a single "
            "case."
        ),
        (
            "What can be said about “{topic}”: the best documented effect is a moderate one and appears within "
            "weeks; larger claims rest on few cases. Two reviews agree on the direction and differ on the size. "
            "Open questions are how long it lasts and what it costs to maintain. Dates matter here, since "
            "practice has changed since the oldest source."
        ),
    ),
    "synthesis": (
        (
            "In short, on “{topic}”: the notes agree on the main line and differ in degree. What holds throughout "
            "is that a small, well prepared start beats a large one, that progress should be measured early, and "
            "that costs are easier to limit beforehand than to recover. Where the notes disagree, the more recent "
            "one is followed here. The recommendation is to begin with one case, measure it for a month, and "
            "decide then."
        ),
        (
            "Bringing “{topic}” together: first the part that is certain, namely that the effect is real and "
            "moderate; then the part that is likely, that most of it comes from preparation; and last the part "
            "that is open, how long it lasts. A reader who needs one sentence may take this: start small, measure "
            "early, and set the limit before the work begins."
        ),
    ),
    "critique": (
        (
            "Two strengths and three weaknesses of “{topic}”. It is clear about its aim, and its order is easy to "
            "follow. It gives no numbers for its strongest claim, it treats two sources as if they were "
            "independent, and its last step has no criterion for being done. I would add one measurement, name "
            "the exception, and shorten the opening by half; then it can be published."
        ),
        (
            "On “{topic}”: the argument holds, but its middle is thin. The second claim needs a source, the third "
            "repeats the first in other words, and a reader will ask what happens when the assumption fails. Keep "
            "the structure, replace the example by a more recent one, and state the limits in a sentence of their "
            "own."
        ),
    ),
    "other": (
        (
            "You asked: “{topic}”. A short answer: it depends on two things, how much is known beforehand and "
            "what a mistake would cost. Where little is known and mistakes are cheap, try the simplest thing "
            "first and look at what happens. Where they are dear, decide the limit before you begin and stop when "
            "it is reached. Either way, write down what you expected, so that the result can surprise you."
        ),
        (
            "About “{topic}”: there is a simple part and a hard part. The simple part is to name the goal and the "
            "first step, and that can be done at once. The hard part is to know when to stop; for that, agree on "
            "one sign of success and one of failure. With both in hand, most of what seems open turns out to be a "
            "matter of order."
        ),
    ),
}
_MORE: Final = (
    " A further point concerns the order of the work: what is cheap to check should be checked first.",
    " It also helps to write down which assumption would change the result if it were wrong.",
    " The same holds for the costs, which are easier to see when they are listed beside each step.",
    " Finally, a second reader should look at the part that seemed obvious.",
)


def answer(asked: str, system: str, digest: str) -> str:
    """Return a paragraph of 60 to 160 tokens that mentions what was asked."""
    variants = _PARAGRAPHS[_intent(asked[:400]) or _intent(system[:400]) or "other"]
    return variants[int(digest[:8], 16) % len(variants)].format(topic=_topic(asked))


def summary(results: list[tuple[str, str]], asked: str) -> str:
    """Return an answer made of tool results, given as (tool, result)."""
    told = " ".join(f"{tool} returned: “{_crop(_plain(result), _RESULT_MAX)}”." for tool, result in results[-4:])
    return f"{told} That answers “{_topic(asked)}”: the result above is what the tools found, and nothing was added."


def sized(text: str, tokens: int) -> str:
    """Return text of exactly so many tokens that begins like `text`."""
    number = 0
    size = len(text.encode())
    parts = [text]
    while size < tokens * 4:
        parts.append(_MORE[number % len(_MORE)])
        size += len(parts[-1].encode())
        number += 1
    cut = take("".join(parts), tokens)
    return cut + "." * (tokens * 4 - len(cut.encode()))


def _intent(text: str) -> str | None:
    low = text.lower()
    found = [(match.start(), name) for name, regex in _INTENTS.items() if (match := regex.search(low))]
    return min(found)[1] if found else None


def _topic(asked: str) -> str:
    first = _SENTENCE.split(_plain(asked), maxsplit=1)[0]
    return _crop(first.rstrip(" .:"), _TOPIC_MAX) or "nothing in particular"


def _plain(text: str) -> str:
    return " ".join(_MARKER.sub("", text[:2000]).replace("“", "'").replace("”", "'").split())


def _crop(text: str, size: int) -> str:
    return text if len(text) <= size else text[:size].rsplit(" ", 1)[0].rstrip(",;:") + "…"
