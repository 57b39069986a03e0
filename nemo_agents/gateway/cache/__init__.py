"""Answers that are given again to the same request, for roles that ask for it (`cache="10m"`)."""

from nemo_agents.gateway.cache.base import AnswerCache, CachedAnswer
from nemo_agents.gateway.cache.memory import MemoryCache

__all__ = ["AnswerCache", "CachedAnswer", "MemoryCache"]
