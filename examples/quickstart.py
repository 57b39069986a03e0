"""Declare a fleet and run it: the example of the README, in one file."""

from nemo_agents import AgentRole, Fleet

fleet = Fleet(
    "quickstart",
    budget="$10/day",
    roles=[
        AgentRole("planner", models=["o3-mini"], rpm=30, budget="$5/day"),
        AgentRole("writer", models=["gpt-4o-mini"], rpm=60, tpm="100k", budget="$2/day", guardrails=["pii-filter"]),
    ],
)

if __name__ == "__main__":
    ask = [{"role": "user", "content": "What is a CRDT, and when is it the wrong choice?"}]
    with fleet.run("answer one question", budget="$0.50", max_calls=20) as run:
        with run.step("plan", role="planner") as step:
            plan = step.openai().chat.completions.create(model="o3-mini", messages=ask, max_tokens=300)
            ask.append({"role": "assistant", "content": plan.choices[0].message.content})
        with run.step("write", role="writer") as step:
            answer = step.openai().chat.completions.create(model="gpt-4o-mini", messages=ask, max_tokens=300)
            run.result = answer.choices[0].message.content
    print(run.state, run.calls, "calls", run.cost, run.url)
