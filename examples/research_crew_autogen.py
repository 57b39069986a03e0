"""The research crew as a team of AutoGen: plan, research with tools, write, criticise, each with its role's key.

    nemo-agents gateway                                        # in one terminal
    nemo-agents provision examples/research_crew/fleet.py      # in another
    python examples/research_crew_autogen.py "What is a CRDT?"
    python examples/research_crew_autogen.py --budget          # a run that meets its budget, and keeps what it has

It needs `pip install 'nemo-agents-autogen[agentchat]'`. The tools answer from this file, so the crew needs no network
of its own; everything else is as it would be with real providers.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import BaseChatMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from nemo_agents_autogen import chat_model, run_task, tracer

from nemo_agents import Fleet, Run

FLEET = Fleet.from_file(Path(__file__).parent / "research_crew" / "fleet.py")
SMALL_BUDGET = "$0.005"  # enough for the plan and the research, not for the draft


def web_search(query: str) -> str:
    """Search the web for pages about a topic."""
    return f"Two pages about {query}: how replicas converge without a lock, and what that costs in metadata."


def fetch_url(url: str) -> str:
    """Fetch one page by its address."""
    return f"{url} says: use it where replicas must accept writes alone, avoid it where a limit must hold."


def agent(role: str, task: str, *tools: Callable[..., Any]) -> AssistantAgent:
    """Make an agent of a role: with its key, its first model, and inside its limits."""
    model = chat_model(FLEET[role], max_tokens=400)
    made = AssistantAgent(role, model, tools=list(tools) or None, system_message=task, reflect_on_tool_use=bool(tools))
    return tracer().agent(made)


async def answer(question: str, *, budget: str) -> Run:
    async with FLEET.run(f"answer: {question}", budget=budget, max_calls=40) as run:
        crew = [
            agent("orchestrator", "Plan how to answer, in three points."),
            agent("researcher", "Search the web, then summarise what matters for the plan.", web_search, fetch_url),
            agent("writer", "Write the answer."),
            agent("critic", "Name the weakest claim."),
        ]
        async with run.step("crew"):
            team = RoundRobinGroupChat(crew, max_turns=len(crew))
            done = await run_task(team, f"Search the web, then answer: {question}")
            said = [one for one in done.messages if isinstance(one, BaseChatMessage)]
            run.result = {"crew": [{"source": one.source, "content": one.to_text()} for one in said]}
    return run


def main(arguments: list[str]) -> int:
    small = "--budget" in arguments
    question = " ".join(word for word in arguments if word != "--budget") or "What is a CRDT, and when is it wrong?"
    run = asyncio.run(answer(question, budget=SMALL_BUDGET if small else "$0.50"))
    print(f"{run.state}: {run.calls} calls, {run.cost}")
    if run.stopped_by is not None:
        print(f"stopped by {run.stopped_by.kind}: {run.stopped_by.message}")
    for said in (run.result or {}).get("crew", []):
        print(f"{said['source']}: {said['content']}")
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "nemo_agents", "runs", "show", run.id], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
