"""The research crew as LangChain agents: plan, research with tools, write, criticise.

    nemo-agents gateway                                        # in one terminal
    nemo-agents provision examples/research_crew/fleet.py      # in another
    python examples/research_crew_langchain.py "What is a CRDT?"
    python examples/research_crew_langchain.py --budget        # a run that meets its budget, and keeps what it has

It needs `pip install nemo-agents-langchain langchain`. The tools answer from this file, so the crew needs no network of
its own; everything else is as it would be with real providers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from nemo_agents_langchain import chat_model

from nemo_agents import Fleet, Run

FLEET = Fleet.from_file(Path(__file__).parent / "research_crew" / "fleet.py")
SMALL_BUDGET = "$0.005"  # enough for the plan and the research, not for the draft


def web_search(query: str) -> str:
    """Search the web for pages about a topic."""
    return f"Two pages about {query}: how replicas converge without a lock, and what that costs in metadata."


def fetch_url(url: str) -> str:
    """Fetch one page by its address."""
    return f"{url} says: use it where replicas must accept writes alone, avoid it where a limit must hold."


def agent(role: str, task: str, *tools: Callable[..., Any]) -> Any:
    """Make an agent of a role: with its key, its first model, and inside its limits."""
    return create_agent(chat_model(FLEET[role], max_tokens=400), tools=list(tools), system_prompt=task, name=role)


def work(run: Run, step: str, role: str, task: str, text: str, *tools: Callable[..., Any]) -> str:
    with run.step(step, role=role) as current:
        messages = agent(role, task, *tools).invoke({"messages": [("user", text)]})["messages"]
        current.result = messages[-1].text
        return str(messages[-1].text)


def answer(question: str, *, budget: str) -> Run:
    with FLEET.run(f"answer: {question}", budget=budget, max_calls=40) as run:
        plan = work(run, "plan", "orchestrator", "Plan how to answer, in three points.", question)
        search = f"Search the web, then summarise what matters for this plan.\n{question}\n{plan}"
        facts = work(run, "research", "researcher", "You research.", search, web_search, fetch_url)
        draft = work(run, "write", "writer", "Write the answer.", f"{question}\nPlan: {plan}\nFacts: {facts}")
        critique = work(run, "critique", "critic", "Name the weakest claim.", draft)
        run.result = {"answer": draft, "critique": critique}
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
