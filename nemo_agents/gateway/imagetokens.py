"""The most tokens that one image becomes, by model, where its provider publishes a rule.

OpenAI ("Images and vision", calculating costs): a model that sees tiles scales an image into a square of 2,048 pixels
and its shorter side to 768, so that it has at most 2 x 4 tiles of 512 pixels, each at the model's tokens per tile,
beside the base, which alone is the cost of low detail. A model that sees patches has at most 1,536 of them, times a
factor of at most 2.46. Anthropic ("Vision"): width times height over 750, scaled to at most 1,568 pixels a side.
Every other model counts with the dearest of these rules, `IMAGE_TOKENS_MAX`.
"""

from __future__ import annotations

import re
from typing import Final

from nemo_agents.policy.pricing import IMAGE_TOKENS_MAX

__all__ = ["image_tokens"]

_TILES_MAX: Final = 8
_PATCH_TOKENS: Final = 3_779  # 1,536 patches at 2.46 tokens
_ANTHROPIC_TOKENS: Final = 3_279  # 1,568 x 1,568 / 750

# (provider, names, base, tokens of a tile); the first that fits counts. Only models whose rule is published by name.
_TILES: Final = (
    ("openai", re.compile(r"gpt-4o-mini(?!.*(?:audio|realtime|tts|transcribe|search))"), 2_833, 5_667),
    (
        "openai",
        re.compile(r"(?:chatgpt-4o|gpt-4o|gpt-4\.5|gpt-4-turbo|gpt-4\.1)(?!.*(?:mini|nano|audio|search))"),
        85,
        170,
    ),
    ("openai", re.compile(r"(?:o1|o3)(?:-pro)?(?:-\d{4}-\d\d-\d\d)?\Z"), 75, 150),
)
_PATCHES: Final = re.compile(r"gpt-4\.1-(?:mini|nano)|o4-mini(?!-deep)")
_CLAUDE_3: Final = re.compile(r"claude-3")


def image_tokens(provider: str, model: str) -> tuple[int, int]:
    """Return the most tokens of one image, at any detail and at low detail."""
    for whose, names, base, tile in _TILES:
        if provider == whose and names.match(model):
            return base + _TILES_MAX * tile, base
    if provider == "openai" and _PATCHES.match(model):
        return _PATCH_TOKENS, _PATCH_TOKENS
    if provider == "anthropic" and _CLAUDE_3.match(model):
        return _ANTHROPIC_TOKENS, _ANTHROPIC_TOKENS
    return IMAGE_TOKENS_MAX, IMAGE_TOKENS_MAX
