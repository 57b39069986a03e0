"""AG2 Classic and pyautogen 0.2: replies of a model and executions of functions as spans.

Through what an agent offers for it: its reply functions can be replaced, its functions registered anew, and hooks see
each message before it is sent.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from autogen import ConversableAgent

if TYPE_CHECKING:
    from nemo_agents_autogen.tracing import Tracer

__all__ = ["trace_agent"]

_Reply = tuple[bool, Any]


def trace_agent(agent: ConversableAgent, tracer: Tracer) -> None:
    """Have an agent tell its replies, its functions and its messages to the run."""
    reply, areply = _replies(tracer)
    agent.replace_reply_func(ConversableAgent.generate_oai_reply, reply)
    agent.replace_reply_func(ConversableAgent.a_generate_oai_reply, areply)
    traced = {name: _traced(name, function, tracer) for name, function in agent.function_map.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Function '.*' is being overridden")
        agent.register_function(traced)
    agent.register_hook("process_message_before_send", _Kept(tracer))


def _replies(tracer: Tracer) -> tuple[Callable[..., _Reply], Callable[..., Any]]:
    def generate_oai_reply(
        recipient: ConversableAgent, messages: Any = None, sender: Any = None, config: Any = None
    ) -> _Reply:
        with tracer.span("agent", recipient.name, input=_last(recipient, messages, sender)) as span:
            final, reply = recipient.generate_oai_reply(messages=messages, sender=sender, config=config)
            if span is not None:
                span.output = reply
            return final, reply

    async def a_generate_oai_reply(
        recipient: ConversableAgent, messages: Any = None, sender: Any = None, config: Any = None
    ) -> _Reply:
        # As the framework does it, in a thread; but in one that has the context, so that the call is in its place.
        return await asyncio.to_thread(generate_oai_reply, recipient, messages, sender, config)

    return generate_oai_reply, a_generate_oai_reply


def _traced(name: str, function: Callable[..., Any], tracer: Tracer) -> Callable[..., Any]:
    """Return a function that does the same inside a span; a coroutine function stays one."""
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with tracer.span("tool", name, input=_arguments(args, kwargs)) as span:
                result = await function(*args, **kwargs)
                if span is not None:
                    span.output = result
                return result

        return call_async

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with tracer.span("tool", name, input=_arguments(args, kwargs)) as span:
            result = function(*args, **kwargs)
            if span is not None:
                span.output = result
            return result

    return call


class _Kept:
    """A hook that keeps the messages of an agent as the partial result of the run."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, sender: ConversableAgent, message: Any, recipient: Any, silent: Any) -> Any:  # noqa: ARG002 - the hook's signature
        said = message if isinstance(message, str) else message.get("content")
        if isinstance(said, str) and said:
            self._tracer.said(sender.name, said)
        return message


def _last(recipient: ConversableAgent, messages: Sequence[Any] | None, sender: Any) -> Any:
    if messages is None:
        messages = recipient.chat_messages.get(sender, [])
    last = messages[-1] if messages else None
    return last.get("content") if isinstance(last, Mapping) else last


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return dict(kwargs) if not args else {"args": list(args), **kwargs}
