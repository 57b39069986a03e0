"""ADK's runners in a line, as its documentation uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.adk.agents import BaseAgent
from google.adk.agents.run_config import RunConfig
from google.adk.apps import App
from google.adk.events.event import Event
from google.adk.runners import InMemoryRunner
from google.genai import types


def runner_of(agent: BaseAgent, plugins: list[Any] | None) -> InMemoryRunner:
    return InMemoryRunner(app=App(name="tests", root_agent=agent, plugins=plugins or []))


def message(text: str) -> types.Content:
    return types.Content(role="user", parts=[types.Part(text=text)])


async def events_of(
    agent: BaseAgent, text: str, *, plugins: list[Any] | None = None, run_config: RunConfig | None = None
) -> AsyncIterator[Event]:
    """Run an agent as its documentation says, and give its events."""
    runner = runner_of(agent, plugins)
    session = await runner.session_service.create_session(app_name=runner.app_name, user_id="someone")
    async for event in runner.run_async(
        user_id="someone", session_id=session.id, new_message=message(text), run_config=run_config or RunConfig()
    ):
        yield event


async def said_by(agent: BaseAgent, text: str, **options: Any) -> str:
    """Run an agent and return the last whole text that anyone said."""
    said = ""
    async for event in events_of(agent, text, **options):
        if not event.partial and event.content and event.content.parts:
            said = "".join(part.text or "" for part in event.content.parts) or said
    return said


def in_a_thread(agent: BaseAgent, text: str, *, plugins: list[Any] | None = None) -> str:
    """Run an agent through `runner.run`, which gives each pass a thread of its own."""
    runner = runner_of(agent, plugins)
    session = asyncio.run(runner.session_service.create_session(app_name=runner.app_name, user_id="someone"))
    said = ""
    for event in runner.run(user_id="someone", session_id=session.id, new_message=message(text)):
        if event.content and event.content.parts:
            said = "".join(part.text or "" for part in event.content.parts) or said
    return said
