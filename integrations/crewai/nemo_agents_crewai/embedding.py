"""crewAI's memory and knowledge, embedding with a role's key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction

if TYPE_CHECKING:
    from nemo_agents import Run, Step
    from nemo_agents.trace.member import Member

__all__ = ["config"]


def config(member: Member, model: str, run: Run | Step | None) -> dict[str, Any]:
    """Return crewAI's declaration of an embedder: a class that it makes one of. It holds no key."""
    client = member.openai(run=run)

    class GatewayEmbedding(CustomEmbeddingFunction):
        """Embeds documents through the gateway."""

        def __init__(self, **_options: Any) -> None:  # crewAI passes what its settings class finds in the environment
            pass

        def __call__(self, input: Any) -> Any:  # noqa: A002 - crewAI's name
            texts = [input] if isinstance(input, str) else list(input)
            answer = client.embeddings.create(model=model, input=texts, encoding_format="float")
            return [np.array(item.embedding, dtype=np.float32) for item in answer.data]

        @staticmethod
        def name() -> str:
            """Return the name that a collection keeps of its embedder."""
            return f"nemo-agents-{model}"

    return {"provider": "custom", "config": {"embedding_callable": GatewayEmbedding}}
