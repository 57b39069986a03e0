"""One pipeline, one run, four frameworks: LangChain plans, CrewAI researches, AutoGen writes, Google's ADK criticises.

    nemo-agents gateway                                        # in one terminal
    nemo-agents provision examples/research_crew/fleet.py      # in another
    python examples/mixed_pipeline.py "What is a CRDT?"
    python examples/mixed_pipeline.py --budget                 # a run that meets its budget, and keeps what it has

It needs nemo-agents-langchain, nemo-agents-crewai, nemo-agents-autogen[agentchat] and nemo-agents-google-adk.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import nemo_agents_autogen
import nemo_agents_crewai
import nemo_agents_google_adk
import nemo_agents_langchain
from autogen_agentchat.agents import AssistantAgent
from crewai import Agent, Crew, Task
from google.adk.agents import LlmAgent
from google.adk.apps import App
from google.adk.runners import InMemoryRunner

from nemo_agents import Fleet, Run, Step

FLEET = Fleet.from_file(Path(__file__).parent / "research_crew" / "fleet.py")
SMALL_BUDGET = "$0.005"  # enough for the plan and the research, not for the draft


async def langchain(step: Step, text: str) -> str:
    model = nemo_agents_langchain.chat_model(step.member, max_tokens=400)
    return str((await model.ainvoke([("system", "Plan how to answer, in three points."), ("user", text)])).text)


async def crewai(step: Step, text: str) -> str:
    nemo_agents_crewai.tracer()
    llm = nemo_agents_crewai.chat_model(step.member, max_tokens=400)
    agent = Agent(role="Researcher", goal="Find facts", backstory="You name your sources.", llm=llm)
    task = Task(name="find facts", description=text, expected_output="Facts with their sources", agent=agent)
    return str((await Crew(agents=[agent], tasks=[task]).kickoff_async()).raw)


async def autogen(step: Step, text: str) -> str:
    client = nemo_agents_autogen.chat_model(step.member, max_tokens=400)
    agent = nemo_agents_autogen.tracer().agent(AssistantAgent("writer", client, system_message="Write the answer."))
    return str((await nemo_agents_autogen.run_task(agent, text)).messages[-1].content)


async def google_adk(step: Step, text: str) -> str:
    model = nemo_agents_google_adk.chat_model(step.member, max_tokens=400)
    agent = LlmAgent(name="critic", model=model, instruction="Name the weakest claim.")
    runner = InMemoryRunner(app=App(name="mixed", root_agent=agent, plugins=[nemo_agents_google_adk.tracer()]))
    return "".join(part.text or "" for part in (await runner.run_debug(text, quiet=True))[-1].content.parts)


STEPS = {"plan": "orchestrator", "research": "researcher", "write": "writer", "critique": "critic"}
WORK = dict(zip(STEPS, (langchain, crewai, autogen, google_adk), strict=True))


async def answer(question: str, *, budget: str) -> Run:
    async with FLEET.run(f"answer: {question}", budget=budget, max_calls=40) as run:
        text = question
        for name, role in STEPS.items():
            async with run.step(name, role=role) as step:
                step.result = await WORK[name](step, text)
            text = f"{question}\n{name}: {step.result}"
    return run


if __name__ == "__main__":
    question = " ".join(word for word in sys.argv[1:] if word != "--budget") or "What is a CRDT, and when is it wrong?"
    run = asyncio.run(answer(question, budget=SMALL_BUDGET if "--budget" in sys.argv else "$0.50"))
    print(f"{run.state}: {run.calls} calls, {run.cost}")
    print("" if run.stopped_by is None else f"stopped by {run.stopped_by.kind}: {run.stopped_by.message}")
    print("\n".join(f"{step.label}: {step.result}" for step in run.steps if step.result), flush=True)
    sys.exit(subprocess.run([sys.executable, "-m", "nemo_agents", "runs", "show", run.id], check=False).returncode)
