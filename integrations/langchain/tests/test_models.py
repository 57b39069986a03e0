"""The models are LangChain's own, and every way to call them goes through the gateway in the right place."""

from __future__ import annotations

import asyncio
import warnings

import pytest
from langchain.agents import create_agent
from langchain_core.load import dumps, loads
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from nemo_agents_langchain import chat_model, embeddings
from pydantic import BaseModel, Field

from nemo_agents import BudgetExceeded
from nemo_agents.errors import AccessDenied, DeclarationError


class City(BaseModel):
    """A city."""

    name: str = Field(description="its name")
    people: int = Field(description="how many live there")


def places(world, run) -> list[tuple]:
    return [(call.role, call.step, call.state) for call in world.told(run).calls]


def test_a_model_is_langchains_own(world):
    assert type(chat_model(world.fleet["researcher"])) is ChatOpenAI
    assert type(embeddings(world.fleet["embedder"])) is OpenAIEmbeddings


def test_every_way_to_call_is_answered_in_its_step(world):
    model = chat_model(world.fleet["researcher"])  # made outside of any run
    with world.fleet.run("ways") as run:
        with run.step("plain", role="researcher"):
            assert model.invoke("hello").text
            assert len(model.batch(["one", "two"])) == 2
            assert "".join(chunk.text for chunk in model.stream("hello"))

        async def ways() -> None:
            async with run.step("async", role="researcher"):
                assert (await model.ainvoke("hello")).text
                assert len(await model.abatch(["one", "two"])) == 2
                assert [chunk async for chunk in model.astream("hello")]

        asyncio.run(ways())
        asyncio.run(ways())  # in another event loop
    assert places(world, run) == [
        *[("researcher", "plain", "ok")] * 4,
        *[("researcher", "async", "ok")] * 4,
        *[("researcher", "async#2", "ok")] * 4,
    ]


def test_a_stream_tells_its_usage(world):
    model = chat_model(world.fleet["researcher"])
    whole = None
    for chunk in model.stream("hello"):
        whole = chunk if whole is None else whole + chunk
    assert whole.usage_metadata["output_tokens"] > 0
    assert world.bodies()[-1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_answers(world, method):
    model = chat_model(world.fleet["researcher"]) if method == "json_schema" else chat_model(world.fleet["writer"])
    asked = model.with_structured_output(City, method=method)
    assert isinstance(asked.invoke("which city?"), City)
    assert isinstance(asyncio.run(asked.ainvoke("which city?")), City)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        chat_model(world.fleet["writer"])  # sets its filter for what its caller cannot mend
        assert isinstance(list(asked.stream("which city?"))[-1], City)
    assert not [warning for warning in said if "response headers" in str(warning.message)]


def test_names_that_langchain_sends_elsewhere_stay_on_chat_completions(world):
    assert chat_model(world.fleet["researcher"], model="gpt-5-pro").invoke("hello").text
    assert world.provider.requests[-1].path == "/v1/chat/completions"


def test_embeddings_are_of_text(world):
    maker = embeddings(world.fleet["embedder"])
    with world.fleet.run("index") as run, run.step("embed", role="embedder"):
        vectors = maker.embed_documents(["one text", "another"])
        again = asyncio.run(maker.aembed_query("one text"))
    assert vectors[0] == again != vectors[1]
    assert world.bodies()[0]["input"] == ["one text", "another"]
    assert places(world, run) == [("embedder", "embed", "ok")] * 2


def test_two_models_in_one_agent_each_speak_as_their_role(world):
    writer = chat_model(world.fleet["writer"])

    def ask_writer(text: str) -> str:
        """Have the writer put this into words."""
        return writer.invoke(text).text

    agent = create_agent(chat_model(world.fleet["researcher"]), tools=[ask_writer], name="lead")
    with world.fleet.run("two") as run, run.step("work", role="researcher"):
        agent.invoke({"messages": [("user", "write about boats")]})
    assert [call.role for call in world.told(run).calls] == ["researcher", "writer", "researcher"]


def test_the_published_snippet_works_as_it_is(world):
    member = world.fleet["researcher"]
    model = ChatOpenAI(
        model="gpt-4o-mini", openai_api_key=member.key.reveal(), openai_api_base=f"{world.gateway.url}/v1"
    )
    assert model.invoke("hello").text


def test_a_spent_budget_is_one_request_and_the_typed_error(world, web_search):
    agent = create_agent(chat_model(world.fleet["researcher"]), tools=[web_search])
    with world.fleet.run("poor", budget="$0.000001") as run, run.step("research", role="researcher"):
        with pytest.raises(BudgetExceeded) as refused:
            agent.invoke({"messages": [("user", "look for boats")]})
        assert refused.value.status == 402
    assert world.bodies() == []
    assert [call.code for call in world.told(run).calls] == ["request_exceeds_budget"]
    assert run.state == "stopped"


def test_a_tool_that_the_role_does_not_have_is_refused(world):
    def drop_table(name: str) -> str:
        """Drop a table."""
        raise AssertionError(name)

    agent = create_agent(chat_model(world.fleet["researcher"]), tools=[drop_table])
    with pytest.raises(AccessDenied):
        agent.invoke({"messages": [("user", "drop it")]})
    assert world.bodies() == []


@pytest.mark.parametrize(
    "option", ["api_key", "openai_api_base", "base_url", "http_client", "root_client", "openai_proxy", "model_name"]
)
@pytest.mark.parametrize("make", [chat_model, embeddings])
def test_options_that_lead_past_the_gateway_are_refused_without_their_value(world, make, option):
    role = "researcher" if make is chat_model else "embedder"
    with pytest.raises(DeclarationError, match=option) as refused:
        make(world.fleet[role], **{option: "sk-of-somebody"})
    assert "sk-of-somebody" not in str(refused.value)


def test_a_model_of_another_role_is_refused_before_any_request(world):
    with pytest.raises(DeclarationError, match="a-writers-model"):
        chat_model(world.fleet["researcher"], model="a-writers-model")
    assert world.bodies() == []


def test_options_are_langchains(world):
    model = chat_model(
        world.fleet["researcher"],
        temperature=0.1,
        max_tokens=7,
        timeout=20,
        max_retries=1,
        default_headers={"x-own": "1"},
    )
    with world.fleet.run("options") as run, run.step("ask", role="researcher"):
        assert model.bind(stop=["never"]).invoke("hello").text
        assert model.model_copy(update={"temperature": 0.2}).invoke("hello").text
    first, second = world.bodies()
    assert (first["temperature"], first["stop"], second["temperature"]) == (0.1, ["never"], 0.2)
    assert places(world, run) == [("researcher", "ask", "ok")] * 2
    assert (model.root_client.max_retries, model.root_client.timeout) == (1, 20)
    assert model.root_client.default_headers["x-own"] == "1"
    with pytest.raises(DeclarationError, match="timeout"):
        chat_model(world.fleet["researcher"], timeout=(1, 2))


def test_it_is_serialised_as_langchain_does_without_the_key(world):
    key = world.fleet["researcher"].key.reveal()
    model = chat_model(world.fleet["researcher"], temperature=0.3)
    text = dumps(model)
    assert key not in text + repr(model) + str(model) + repr(model.model_dump())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = loads(text, secrets_map={"OPENAI_API_KEY": key}, allowed_objects=[ChatOpenAI])
    assert isinstance(back, ChatOpenAI)
    assert (back.temperature, back.openai_api_base) == (0.3, f"{world.gateway.url}/v1")
