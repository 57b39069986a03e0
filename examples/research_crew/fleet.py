"""The research crew: five roles, one model group, one budget above them all.

nemo-agents provision examples/research_crew/fleet.py
"""

from nemo_agents import AgentRole, Budget, Fleet, ModelGroup

fleet = Fleet(
    "research-crew",
    budget="$170/day",
    models=[
        ModelGroup(
            "fast-reasoning",
            ["openai/o3-mini", "anthropic/claude-3-5-sonnet-20241022", "gemini/gemini-1.5-pro"],
        ),
    ],
    roles=[
        AgentRole("orchestrator", models=["fast-reasoning"], rpm=30, budget="$20/day"),
        AgentRole(
            "researcher",
            models=["gpt-4o-mini"],
            rpm=120,
            tpm=100_000,
            budget=Budget("$80/day", alert_at=0.8),
            guardrails=["pii-filter", "prompt-injection-detect"],
            tools=["web_search", "fetch_url"],
        ),
        AgentRole("writer", models=["claude-3-5-sonnet-20241022"], rpm=30, budget="$20/day"),
        AgentRole("critic", models=["gpt-4o-mini"], rpm=60, budget="$10/day"),
        AgentRole("embeddings", models=["text-embedding-3-small"], rpm=500, budget="$5/day"),
    ],
)
