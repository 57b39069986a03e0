"""The research crew as a CrewAI crew: plan, research with tools, write, criticise.

    nemo-agents gateway                                        # in one terminal
    nemo-agents provision examples/research_crew/fleet.py      # in another
    python examples/research_crew_crewai.py "What is a CRDT?"
    python examples/research_crew_crewai.py --budget           # a run that meets its budget, and keeps what it has

It needs `pip install nemo-agents-crewai`. The tools read notes in this file, so that the crew needs no network of its
own; everything else is as it would be with real providers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from crewai import Agent, Crew, Task
from crewai.tools import tool
from nemo_agents_crewai import chat_model, check_crew, tracer

from nemo_agents import Fleet, Run

FLEET = Fleet.from_file(Path(__file__).parent / "research_crew" / "fleet.py")
SMALL_BUDGET = "$0.005"  # enough for the plan and the research, not for the draft


@tool("web_search")
def web_search(query: str) -> str:
    """Search the web for pages about a topic."""
    return f"Two pages about {query}: how replicas converge without a lock, and what that costs in metadata."


@tool("fetch_url")
def fetch_url(url: str) -> str:
    """Fetch one page by its address."""
    return f"{url} says: use it where replicas must accept writes alone, avoid it where a limit must hold."


def task(name: str, role: str, text: str, *tools: Any) -> Task:
    """Make a task with an agent of a role: with its key, its first model, and inside its limits."""
    llm = chat_model(FLEET[role], max_tokens=400)
    agent = Agent(role=role, goal="Do your part of the answer", backstory="One of a crew.", llm=llm, tools=list(tools))
    return Task(
        name=name, description=f"{text} The question: {{question}}", expected_output="A few sentences.", agent=agent
    )


def answer(question: str, *, budget: str) -> Run:
    tasks = [
        task("plan", "orchestrator", "Plan how to answer, in three points."),
        task("research", "researcher", "Search, then summarise.", web_search, fetch_url),
        task("write", "writer", "Write the answer from the plan and the facts."),
        task("critique", "critic", "Name the weakest claim of the answer."),
    ]
    crew = Crew(name="research crew", agents=[each.agent for each in tasks], tasks=tasks)
    check_crew(crew)
    tracer()
    with FLEET.run(f"answer: {question}", budget=budget, max_calls=40) as run, run.step("crew") as step:
        step.result = crew.kickoff(inputs={"question": question}).tasks_output
    return run


def main(arguments: list[str]) -> int:
    small = "--budget" in arguments
    question = " ".join(word for word in arguments if word != "--budget") or "What is a CRDT, and when is it wrong?"
    run = answer(question, budget=SMALL_BUDGET if small else "$0.50")
    print(f"{run.state}: {run.calls} calls, {run.cost}")
    if run.stopped_by is not None:
        print(f"stopped by {run.stopped_by.kind}: {run.stopped_by.message}")
    for output in run.steps[0].result or []:
        print(f"{output.name}: {output.raw}")
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "nemo_agents", "runs", "show", run.id], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
