"""The research crew with nothing but OpenAI's client: plan, research with a tool, write, criticise.

    nemo-agents gateway                                        # in one terminal
    nemo-agents provision examples/research_crew/fleet.py      # in another
    python examples/research_crew_openai.py "What is a CRDT?"
    python examples/research_crew_openai.py --budget           # a run that meets its budget, and keeps what it has

It needs `pip install 'nemo-agents[openai]'`. `step.openai()` is the real `openai.OpenAI`, with the role's key.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from nemo_agents import Fleet, Run, Step

FLEET = Fleet.from_file(Path(__file__).parent / "research_crew" / "fleet.py")
SMALL_BUDGET = "$0.005"  # enough for the plan and the research, not for the draft
QUERY = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOL = {"type": "function", "function": {"name": "web_search", "description": "Search the web", "parameters": QUERY}}
ROUNDS_MAX = 4


def web_search(query: str) -> str:
    return f"Two pages about {query}: how replicas converge without a lock, and what that costs in metadata."


def say(step: Step, prompt: str, **options: Any) -> str:
    """Ask the role's first model, and let it search until it answers in words."""
    messages: list[Any] = [{"role": "user", "content": prompt}]
    model = step.member.role.models[0]
    for _ in range(ROUNDS_MAX):
        answer = step.openai().chat.completions.create(model=model, messages=messages, max_tokens=400, **options)
        message = answer.choices[0].message
        if not message.tool_calls:
            break
        messages.append(message)
        for call in message.tool_calls:
            query = json.loads(call.function.arguments).get("query", prompt)
            with step.run.span("tool", call.function.name, input=query) as span:
                span.output = web_search(query)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": span.output})
    step.result = message.content or ""
    return step.result


def answer(question: str, *, budget: str) -> Run:
    with FLEET.run(f"answer: {question}", budget=budget, max_calls=40) as run:
        with run.step("plan", role="orchestrator") as step:
            plan = say(step, f"Plan how to answer, in three points: {question}")
        with run.step("research", role="researcher") as step:
            facts = say(step, f"Search the web, then summarise what matters.\n{question}\n{plan}", tools=[TOOL])
        with run.step("write", role="writer") as step:
            draft = say(step, f"Write the answer.\n{question}\nPlan: {plan}\nFacts: {facts}")
        with run.step("critique", role="critic") as step:
            run.result = {"answer": draft, "critique": say(step, f"Name the weakest claim.\n{draft}")}
    return run


def main(arguments: list[str]) -> int:
    small = "--budget" in arguments
    question = " ".join(word for word in arguments if word != "--budget") or "What is a CRDT, and when is it wrong?"
    run = answer(question, budget=SMALL_BUDGET if small else "$0.50")
    print(f"{run.state}: {run.calls} calls, {run.cost}")
    if run.stopped_by is not None:
        print(f"stopped by {run.stopped_by.kind}: {run.stopped_by.message}")
    for name, text in (run.result or {}).items():
        print(f"{name}: {text}")
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "nemo_agents", "runs", "show", run.id], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
