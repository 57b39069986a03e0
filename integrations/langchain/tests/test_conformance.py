"""LangChain passes the suite that every adapter passes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from nemo_agents_langchain import chat_model, tracer

from nemo_agents.testing.conformance import Adapter, ConformanceSuite


def traced(run) -> dict[str, list[BaseCallbackHandler]]:
    """The configuration of a call; without a run the handler of the process is attached by itself."""
    return {} if run is None else {"callbacks": [tracer(run)]}


class LangChainUnderTest(Adapter):
    name = "LangChain"
    framework = "langchain-openai"
    shapes = frozenset({"sync", "async", "stream", "tools", "structured", "threads", "spans"})

    def model(self, member, *, run=None, **options):
        return chat_model(member, run=run, **options)

    def ask(self, member, text, *, run=None):
        return chat_model(member, run=run).invoke(text, config=traced(run)).text

    async def ask_async(self, member, text, *, run=None):
        return (await chat_model(member, run=run).ainvoke(text, config=traced(run))).text

    def stream(self, member, text, *, run=None):
        return "".join(chunk.text for chunk in chat_model(member, run=run).stream(text, config=traced(run)))

    def use_tool(self, member, text, tool, *, run=None):
        agent = create_agent(chat_model(member, run=run), tools=[tool], name=member.name)
        return agent.invoke({"messages": [("user", text)]}, config=traced(run))["messages"][-1].text

    def structured(self, member, text, schema, *, run=None):
        return chat_model(member, run=run).with_structured_output(schema).invoke(text, config=traced(run))

    def in_thread(self, member, text, *, run):
        """LangChain's batches copy the context into their threads; a pool of the user's own does not."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()  # its thread is there before the model is
            model = chat_model(member, run=run)
            return pool.submit(model.batch, [text], config=traced(run)).result()[0].text


class TestLangChain(ConformanceSuite):
    adapter = LangChainUnderTest()
