"""The research crew at work: plan, research two angles at once, write, criticise, revise.

    nemo-agents gateway                                        # in one terminal
    nemo-agents provision examples/research_crew/fleet.py      # in another
    python examples/research_crew/crew.py "What is a CRDT?"

The tools read a few notes in this file, so that the crew needs no network of its own. Everything else is as it would
be with real providers: each step speaks with its role's key, and the gateway holds it to what the fleet declares.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fleet import fleet

from nemo_agents import RateLimited, Run, Step

NOTES = {
    "web_search": "Two pages: one on how replicas converge without a lock, one on what that costs in metadata.",
    "fetch_url": "The page says: use it where replicas must accept writes alone, avoid it where a limit must hold.",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }
    for name, description, argument in (
        ("web_search", "Search the web for pages about a topic", "query"),
        ("fetch_url", "Fetch one page by its address", "url"),
    )
]
TOOL_ROUNDS_MAX = 4
REVISIONS_MAX = 2


def say(step: Step, model: str, prompt: str, *, max_tokens: int = 500) -> str:
    answer = step.openai().chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens
    )
    return answer.choices[0].message.content or ""


def research(step: Step, angle: str) -> str:
    """Let the model use the tools until it answers in words, for a bounded number of rounds."""
    messages: list[Any] = [{"role": "user", "content": f"Search the web, then summarise: {angle}"}]
    for _ in range(TOOL_ROUNDS_MAX):
        answer = step.openai().chat.completions.create(
            model="gpt-4o-mini", messages=messages, tools=TOOLS, max_tokens=500
        )
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            found = NOTES.get(call.function.name, "no such tool")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps({"found": found})})
    return f"no answer after {TOOL_ROUNDS_MAX} rounds of tools"


def both_angles(run: Run, question: str) -> list[str]:
    """Research from two sides at once; `bind` carries the step into the threads."""
    with run.step("research", role="researcher") as step, ThreadPoolExecutor(2) as pool:
        angles = (f"when to use it: {question}", f"when not to use it: {question}")
        step.result = list(pool.map(step.bind(lambda angle: research(step, angle)), angles))
        return step.result


def answer(question: str) -> Run:
    with fleet.run(f"answer: {question}", budget="$0.50", max_calls=40) as run:
        with run.step("plan", role="orchestrator") as step:
            plan = say(step, "fast-reasoning", f"Plan how to answer: {question}")
        facts = both_angles(run, question)
        critique = "none yet"
        for _ in range(REVISIONS_MAX):
            with run.step("write", role="writer") as step:
                ask = f"{question}\nPlan: {plan}\nFacts: {facts}\nCritique of the last draft: {critique}"
                run.result = say(step, "claude-3-5-sonnet-20241022", ask)  # a run that is stopped keeps what it has
            with run.step("critique", role="critic") as step:
                critique = say(step, "gpt-4o-mini", f"Name the weakest claim: {run.result}")
    return run


def main() -> int:
    question = " ".join(sys.argv[1:]) or "What is a CRDT, and when is it the wrong choice?"
    try:
        run = answer(question)
    except RateLimited as refused:
        print(f"too fast: {refused}")
        return 1
    print(f"{run.state}: {run.calls} calls, {run.cost}")
    if run.stopped_by is not None:
        print(f"stopped by {run.stopped_by.kind}: {run.stopped_by.message}")
    print(run.result)
    print(run.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
