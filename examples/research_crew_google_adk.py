"""The research crew as agents of Google's ADK: plan, research with tools, write, criticise.

    nemo-agents gateway                                        # in one terminal
    nemo-agents provision examples/research_crew/fleet.py      # in another
    python examples/research_crew_google_adk.py "What is a CRDT?"
    python examples/research_crew_google_adk.py --budget       # a run that meets its budget, and keeps what it has

It needs `pip install nemo-agents-google-adk`. The tools answer from this file, so the crew needs no network of its own;
everything else is as it would be with real providers.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from google.adk.agents import LlmAgent
from google.adk.apps import App
from google.adk.runners import InMemoryRunner
from nemo_agents_google_adk import chat_model, tracer

from nemo_agents import Fleet, Run

FLEET = Fleet.from_file(Path(__file__).parent / "research_crew" / "fleet.py")
SMALL_BUDGET = "$0.005"  # enough for the plan and the research, not for the draft


def web_search(query: str) -> str:
    """Search the web for pages about a topic."""
    return f"Two pages about {query}: how replicas converge without a lock, and what that costs in metadata."


def fetch_url(url: str) -> str:
    """Fetch one page by its address."""
    return f"{url} says: use it where replicas must accept writes alone, avoid it where a limit must hold."


async def work(run: Run, step: str, role: str, task: str, text: str, *tools: Callable[..., str]) -> str:
    """Let one agent work in a step of its own: with its role's key, its first model, and inside its limits."""
    agent = LlmAgent(name=role, model=chat_model(FLEET[role], max_tokens=400), instruction=task, tools=list(tools))
    async with run.step(step, role=role) as current:
        runner = InMemoryRunner(app=App(name="research_crew", root_agent=agent, plugins=[tracer()]))
        events = await runner.run_debug(text, quiet=True)
        current.result = "".join(part.text or "" for part in events[-1].content.parts)
        return str(current.result)


async def answer(question: str, *, budget: str) -> Run:
    async with FLEET.run(f"answer: {question}", budget=budget, max_calls=40) as run:
        plan = await work(run, "plan", "orchestrator", "Plan how to answer, in three points.", question)
        facts = await work(run, "research", "researcher", "Summarise.", f"Search: {question}", web_search, fetch_url)
        draft = await work(run, "write", "writer", "Write the answer.", f"{question}\nPlan: {plan}\nFacts: {facts}")
        critique = await work(run, "critique", "critic", "Name the weakest claim.", draft)
        run.result = {"answer": draft, "critique": critique}
    return run


def main(arguments: list[str]) -> int:
    logging.getLogger("google_adk").setLevel(logging.CRITICAL)  # it logs the traceback of a refusal, too
    small = "--budget" in arguments
    question = " ".join(word for word in arguments if word != "--budget") or "What is a CRDT, and when is it wrong?"
    run = asyncio.run(answer(question, budget=SMALL_BUDGET if small else "$0.50"))
    print(f"{run.state}: {run.calls} calls, {run.cost}")
    if run.stopped_by is not None:
        print(f"stopped by {run.stopped_by.kind}: {run.stopped_by.message}")
    for name, text in (run.result or {}).items():
        print(f"{name}: {text}")
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "nemo_agents", "runs", "show", run.id], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
