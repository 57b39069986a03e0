"""Every wire by its path, and how those that not every provider speaks are told as Chat Completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nemo_agents.policy.wires.base import Translation, Wire, WireName
from nemo_agents.policy.wires.chat import CHAT
from nemo_agents.policy.wires.completions import COMPLETIONS
from nemo_agents.policy.wires.completions_chat import COMPLETIONS_AS_CHAT
from nemo_agents.policy.wires.embeddings import EMBEDDINGS
from nemo_agents.policy.wires.messages import MESSAGES
from nemo_agents.policy.wires.messages_chat import MESSAGES_AS_CHAT
from nemo_agents.policy.wires.responses import RESPONSES
from nemo_agents.policy.wires.responses_chat import RESPONSES_AS_CHAT

__all__ = ["TRANSLATIONS", "WIRES"]

WIRES: Final[Mapping[str, Wire]] = {wire.path: wire for wire in (CHAT, RESPONSES, MESSAGES, COMPLETIONS, EMBEDDINGS)}
TRANSLATIONS: Final[Mapping[WireName, Translation]] = {
    "responses": RESPONSES_AS_CHAT,
    "messages": MESSAGES_AS_CHAT,
    "completions": COMPLETIONS_AS_CHAT,
}
