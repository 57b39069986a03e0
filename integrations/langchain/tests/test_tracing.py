"""What LangChain does is drawn into the run as a tree that can be read."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from conftest import spans_by_name
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph
from nemo_agents_langchain import chat_model, tracer
from nemo_agents_langchain.shapes import plain
from nemo_agents_langchain.tracing import RunTracer, Seen, is_drawn

ASK = {"messages": [("user", "look for boats")]}


def researcher(world, *tools, **options):
    return create_agent(chat_model(world.fleet["researcher"], **options), tools=list(tools), name="researcher")


def check_tree(world, run) -> None:
    """An agent with a tool, and its two model calls under it."""
    detail = world.told(run)
    spans = spans_by_name(detail)
    agent, tool = spans["researcher"], spans["web_search"]
    assert sorted(spans) == ["researcher", "web_search"]
    assert (agent.kind, agent.state, agent.step) == ("agent", "ok", "research")
    assert (tool.kind, tool.state, tool.parent_id) == ("tool", "ok", agent.span_id)
    assert "two pages about" in (tool.output or "")
    assert [call.parent_span for call in detail.calls] == [agent.span_id] * 2


def test_an_agent_its_tool_and_its_calls(world, web_search):
    with world.fleet.run("agent") as run, run.step("research", role="researcher"):
        researcher(world, web_search).invoke(ASK)
    check_tree(world, run)


def test_the_same_when_it_is_awaited(world, web_search):
    async def work():
        async with world.fleet.run("agent") as run, run.step("research", role="researcher"):
            await researcher(world, web_search).ainvoke(ASK)
        return run

    check_tree(world, asyncio.run(work()))


@pytest.mark.parametrize("mode", ["values", "messages"])
def test_the_same_when_it_is_streamed(world, web_search, mode):
    with world.fleet.run("agent") as run, run.step("research", role="researcher"):
        assert list(researcher(world, web_search).stream(ASK, stream_mode=mode))
    check_tree(world, run)


def test_a_thread_without_the_context_is_given_its_run(world, web_search):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # its thread exists before the run
        with world.fleet.run("thread") as run, run.step("research", role="researcher") as step:
            agent = researcher(world, web_search)
            pool.submit(agent.invoke, ASK, config={"callbacks": [tracer(step)]}).result()
    check_tree(world, run)


def test_runs_side_by_side_do_not_mix(world, web_search):
    async def work(number: int):
        async with world.fleet.run(f"run {number}") as run, run.step("research", role="researcher"):
            await researcher(world, web_search).ainvoke(ASK)
        return run

    async def all_at_once():
        return await asyncio.gather(*(work(number) for number in range(4)))

    for run in asyncio.run(all_at_once()):
        check_tree(world, run)


def test_a_batch_runs_in_threads_of_one_step(world, web_search):
    with world.fleet.run("batch") as run, run.step("research", role="researcher"):
        researcher(world, web_search).batch([ASK, ASK, ASK])
    detail = world.told(run)
    agents = {span.span_id for span in detail.spans if span.kind == "agent"}
    assert len(agents) == 3
    assert {span.parent_id for span in detail.spans if span.kind == "tool"} == agents
    assert {call.parent_span for call in detail.calls} == agents
    assert {call.step for call in detail.calls} == {"research"}


def test_an_agent_as_a_tool_of_another_lies_under_the_tool(world, web_search):
    inner = researcher(world, web_search)

    def ask_writer(text: str) -> str:
        """Have somebody look."""
        return inner.invoke({"messages": [("user", text)]})["messages"][-1].text

    outer = create_agent(chat_model(world.fleet["researcher"]), tools=[ask_writer], name="lead")
    with world.fleet.run("nested") as run, run.step("research", role="researcher"):
        outer.invoke(ASK)
    spans = spans_by_name(world.told(run))
    assert spans["ask_writer"].parent_id == spans["lead"].span_id
    assert spans["researcher"].parent_id == spans["ask_writer"].span_id
    assert spans["web_search"].parent_id == spans["researcher"].span_id


def test_nodes_of_a_graph_are_drawn_and_its_plumbing_is_not(world):
    model = chat_model(world.fleet["writer"])

    def draft(state):
        return {"messages": [model.invoke(state["messages"])]}

    def choose(_state):
        return END

    graph = StateGraph(MessagesState)
    graph.add_node("draft", draft)
    graph.add_edge(START, "draft")
    graph.add_conditional_edges("draft", choose, [END])
    with world.fleet.run("graph") as run, run.step("write", role="writer"):
        graph.compile(name="newsroom").invoke(ASK)
    detail = world.told(run)
    spans = spans_by_name(detail)
    assert {name: span.kind for name, span in spans.items()} == {"newsroom": "agent", "draft": "chain"}
    assert detail.calls[0].parent_span == spans["draft"].span_id


def test_a_chain_is_drawn_by_the_name_it_was_given(world):
    model = chat_model(world.fleet["writer"])
    chain = ChatPromptTemplate.from_template("{topic}") | model | StrOutputParser() | (lambda text: text.upper())
    with world.fleet.run("chain") as run, run.step("write", role="writer"):
        chain.with_config(run_name="headline").invoke({"topic": "boats"})
        chain.invoke({"topic": "boats"})
    detail = world.told(run)
    assert list(spans_by_name(detail)) == ["headline"]
    assert detail.spans[0].output == detail.spans[0].output.upper()
    assert detail.calls[0].parent_span == detail.spans[0].span_id != detail.calls[1].parent_span


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str) -> list[Document]:
        return [Document(page_content=f"a book about {query}")]


def test_a_retriever_is_drawn_with_what_it_found(world):
    with world.fleet.run("retriever") as run, run.step("read", role="writer"):
        Shelf().invoke("boats")
    (span,) = world.told(run).spans
    assert (span.kind, span.name, span.input) == ("retriever", "Shelf", "boats")
    assert "a book about boats" in span.output


def test_a_tool_that_fails_is_drawn_as_failed_and_the_run_goes_on_failing(world):
    def web_search(query: str) -> str:
        """Search the web for pages about a topic."""
        raise OSError(f"no way to look for {query[:0]}anything")

    with (
        pytest.raises(OSError, match="no way"),
        world.fleet.run("fails") as run,
        run.step("research", role="researcher"),
    ):
        researcher(world, web_search).invoke(ASK)
    spans = spans_by_name(world.told(run))
    assert {span.state for span in spans.values()} == {"failed"}
    assert "no way to look for anything" in spans["web_search"].error


def test_a_stream_that_nobody_reads_to_its_end_has_not_failed(world, web_search):
    with world.fleet.run("left") as run, run.step("research", role="researcher"):
        stream = researcher(world, web_search).stream(ASK, stream_mode="values")
        next(stream)
        stream.close()
    assert spans_by_name(world.told(run))["researcher"].state == "ok"


def test_a_stopped_run_has_the_messages_so_far(world, web_search):
    with world.fleet.run("capped", max_calls=1) as run, run.step("research", role="researcher"):
        researcher(world, web_search).invoke(ASK)
    assert run.state == "stopped"
    kept = run.result["research"] if isinstance(run.result, dict) else run.result
    assert [type(message) for message in kept] == [HumanMessage, AIMessage, ToolMessage]
    assert "two pages about" in kept[-1].text


def test_the_call_that_was_refused_lies_under_its_agent(world, web_search):
    with world.fleet.run("capped", max_calls=1) as run, run.step("research", role="researcher"):
        researcher(world, web_search).invoke(ASK)
    detail = world.told(run)
    agent = spans_by_name(detail)["researcher"]
    assert agent.state == "failed"
    assert [(call.state, call.parent_span) for call in detail.calls] == [
        ("ok", agent.span_id),
        ("refused", agent.span_id),
    ]


def test_outside_of_a_run_nothing_is_drawn_and_nothing_is_said(world, web_search, caplog):
    with caplog.at_level(logging.WARNING):
        assert researcher(world, web_search).invoke(ASK)["messages"]
    assert caplog.records == []
    assert tracer() is tracer()
    assert tracer()._open == {}


def test_nothing_is_kept_of_what_has_ended(world, web_search):
    with world.fleet.run("kept") as run, run.step("research", role="researcher"):
        researcher(world, web_search).invoke(ASK)
        handler = tracer(run)
        RunnableLambda(str).invoke(1, config={"callbacks": [handler]})
    assert tracer()._open == {}
    assert handler._open == {}


def seen(name: str, **fields) -> Seen:
    defaults = {"run_type": None, "tags": (), "metadata": {}, "in_node": False, "has_messages": False}
    return Seen(name=name, **{**defaults, **fields})


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (seen("RunnableSequence"), None),
        (seen("RunnableParallel<a,b>"), None),
        (seen("StrOutputParser", run_type="parser"), None),
        (seen("ChatPromptTemplate", run_type="prompt"), None),
        (seen("_write"), None),
        (seen(""), None),
        (seen("hidden", tags=["langsmith:hidden"]), None),
        (seen("headline"), "chain"),
        (seen("headline", tags=["seq:step:2"]), "chain"),
        (seen("LangGraph"), "agent"),
        (seen("crew", metadata={"lc_agent_name": "crew", "langgraph_node": "tools"}), "agent"),
        (seen("crew", metadata={"ls_integration": "langgraph"}), "agent"),
        (seen("crew", has_messages=True), "agent"),
        (seen("model", metadata={"langgraph_node": "model"}, tags=["graph:step:1"], has_messages=True), None),
        (seen("X.before_model", metadata={"langgraph_node": "X.before_model"}, tags=["graph:step:1"]), None),
        (seen("draft", metadata={"langgraph_node": "draft"}, tags=["graph:step:1"], has_messages=True), "chain"),
        (seen("route", metadata={"langgraph_node": "draft"}, tags=["seq:step:3"], in_node=True), None),
        (seen("outline", metadata={"langgraph_node": "draft"}, tags=["seq:step:1"], in_node=True), "chain"),
    ],
)
def test_what_is_drawn(what: Seen, kind: str | None):
    assert is_drawn(what) == kind


def test_values_are_drawn_as_plain_data():
    call = {"name": "web_search", "args": {"query": "boats"}, "id": "1"}
    loop: list = []
    loop.append(loop)
    assert plain([HumanMessage("hello"), AIMessage("", tool_calls=[call])]) == [
        {"role": "human", "content": "hello"},
        {"role": "ai", "content": "", "tool_calls": [{"name": "web_search", "arguments": {"query": "boats"}}]},
    ]
    assert plain({1: Document(page_content="text"), "n": 1.5, "none": None}) == {"1": "text", "n": 1.5, "none": None}
    assert "…" in repr(plain(loop))


def test_a_handler_forgets_the_oldest_when_ends_never_come(world, monkeypatch):
    monkeypatch.setattr("nemo_agents_langchain.tracing._OPEN_MAX", 2)
    with world.fleet.run("many") as run:
        handler = RunTracer(run)
        ids = [uuid4() for _ in range(3)]
        for each in ids:
            handler.on_chain_start(None, {}, run_id=each, name="RunnableLambda")
    assert list(handler._open) == ids[1:]
