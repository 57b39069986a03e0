"""OpenAI's agents SDK against a gateway: agents with a tool, by Responses, which is its default, and by chat.

Run by `test_frameworks.py` in an environment of its own. NEMO_URL and NEMO_KEY say where the gateway is.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(disabled=True)  # traces would go to another host
ASKED = "What is the weather in Paris, and is it warmer than 7 degrees?"
ANSWER = "The tool says: 9 degrees in Paris"


@function_tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"9 degrees in {city}"


class Weather(BaseModel):
    """A final answer in a form."""

    city: str
    degrees: int


@pytest.fixture
async def client() -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{os.environ['NEMO_URL']}/v1", api_key=os.environ["NEMO_KEY"]) as made:
        yield made


@pytest.fixture(params=["responses", "translated", "chat"])
def model(request: pytest.FixtureRequest, client: AsyncOpenAI) -> OpenAIResponsesModel | OpenAIChatCompletionsModel:
    match request.param:
        case "responses":
            return OpenAIResponsesModel(model="native/sense", openai_client=client)
        case "translated":
            return OpenAIResponsesModel(model="chatonly/sense", openai_client=client)
        case _:
            return OpenAIChatCompletionsModel(model="native/sense", openai_client=client)


async def test_an_agent_with_a_tool(model: OpenAIResponsesModel | OpenAIChatCompletionsModel):
    agent = Agent(name="forecaster", instructions="Use your tool.", model=model, tools=[weather])
    result = await Runner.run(agent, ASKED)
    assert result.final_output == ANSWER
    assert result.context_wrapper.usage.requests == 2
    assert result.context_wrapper.usage.output_tokens > 0


async def test_a_streamed_agent_with_a_tool(model: OpenAIResponsesModel | OpenAIChatCompletionsModel):
    agent = Agent(name="forecaster", instructions="Use your tool.", model=model, tools=[weather])
    result = Runner.run_streamed(agent, ASKED)
    kinds = [event.type async for event in result.stream_events()]
    assert "raw_response_event" in kinds
    assert result.final_output == ANSWER


async def test_an_agent_with_a_form(model: OpenAIResponsesModel | OpenAIChatCompletionsModel):
    agent = Agent(name="forecaster", model=model, output_type=Weather)
    result = await Runner.run(agent, ASKED)
    assert result.final_output == Weather(city="Paris", degrees=7)


async def test_a_handoff(model: OpenAIResponsesModel | OpenAIChatCompletionsModel):
    """An agent hands over to another, whose turn begins with what the first has said."""
    clerk = Agent(name="clerk", model=model)
    agent = Agent(name="desk", model=model, handoffs=[clerk])
    result = await Runner.run(agent, "Hand this over, please.")
    assert result.last_agent.name == "clerk"
    assert isinstance(result.final_output, str)
    assert result.context_wrapper.usage.requests == 2
