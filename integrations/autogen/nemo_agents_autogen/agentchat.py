"""AutoGen 0.7: the model client of a role."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self

from autogen_core import CancellationToken, FunctionCall, Image
from autogen_core.models import (
    CreateResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    ModelFamily,
    ModelInfo,
)
from autogen_core.tools import Tool, ToolSchema
from autogen_ext.models.openai import (
    BaseOpenAIChatCompletionClient,
    CreateArgumentsConfigModel,
    OpenAIChatCompletionClient,
)
from pydantic import BaseModel, Field

from nemo_agents import AgentRole
from nemo_agents.adapters import ModelFacts, member_of, model_facts, model_of
from nemo_agents.errors import DeclarationError
from nemo_agents_autogen.options import refuse_connection_options, take_timing
from nemo_agents_autogen.refused import noting

if TYPE_CHECKING:
    from nemo_agents import Run, Step
    from nemo_agents.trace.member import Member

__all__ = ["GatewayChatCompletionClient", "GatewayClientConfig", "estimate_tokens", "make_client"]

_CONTEXT_TOKENS: Final = 128_000  # of a model that nobody knows: what the providers of today have at least
_BYTES_PER_TOKEN: Final = 3  # on the safe side: English prose has about four
_TOKENS_PER_MESSAGE: Final = 4  # role and separators, as OpenAI's cookbook counts them
_TOKENS_PER_IMAGE: Final = 1_000  # a megapixel at OpenAI's high detail, rounded up

_ToolChoice = Tool | Literal["auto", "required", "none"]


class GatewayClientConfig(BaseModel):
    """What a client is dumped as: the names of role and model, and no key.

    Loading it takes the role's key and the gateway's address from the environment: `NEMO_KEY_<ROLE>`,
    `NEMO_GATEWAY_URL`.
    """

    role: str
    model: str
    options: dict[str, Any] = Field(default_factory=dict)


class GatewayChatCompletionClient(OpenAIChatCompletionClient):
    """The model client of a role behind the gateway of nemo-agents.

    An `OpenAIChatCompletionClient` whose inner client raises the errors of `nemo_agents.errors` and is the one place
    that retries. A stream always asks for its usage. Tokens are estimated from the length of texts: the exact count
    would need the files of a tokenizer from the network.
    """

    component_type = "model"
    component_config_schema = GatewayClientConfig  # type: ignore[assignment] # narrower than the parent's on purpose
    component_provider_override = "nemo_agents_autogen.agentchat.GatewayChatCompletionClient"

    def __init__(
        self,
        member: Member,
        *,
        model: str,
        facts: ModelFacts,
        run: Run | Step | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(options or {})
        retries, timeout_s = take_timing(given)
        self.__config = GatewayClientConfig(role=member.name, model=model, options=dict(options or {}))
        self.__context_tokens = facts.context_tokens or _CONTEXT_TOKENS
        self.__stream_options = given.pop("stream_options", {"include_usage": True})
        named = {name: given.pop(name) for name in ("add_name_prefixes", "include_name_in_message") if name in given}
        info = given.pop("model_info", None) or info_of(facts)
        _refuse_unknown(given)
        # The parent's own constructor would make an openai client of its own; the one above it takes ours. The model's
        # name goes with each call: in `create_args` the parent would look it up in a table of its own.
        BaseOpenAIChatCompletionClient.__init__(
            self,
            client=member.async_openai(max_retries=retries, timeout_s=timeout_s, run=run),
            create_args=given,
            model_info=info,
            **named,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(role={self.__config.role!r}, model={self.__config.model!r})"

    async def create(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: _ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
    ) -> CreateResult:
        """Ask the model. Raises the errors of `nemo_agents.errors`."""
        with noting():
            return await super().create(
                messages,
                tools=tools,
                tool_choice=tool_choice,
                json_output=json_output,
                extra_create_args={"model": self.__config.model, **(extra_create_args or {})},
                cancellation_token=cancellation_token,
            )

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: _ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        max_consecutive_empty_chunk_tolerance: int = 0,
        include_usage: bool | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        """Ask the model and give its answer as it comes. Raises the errors of `nemo_agents.errors`."""
        asked = {} if include_usage is not None else {"stream_options": self.__stream_options}
        stream = super().create_stream(
            messages,
            tools=tools,
            tool_choice=tool_choice,
            json_output=json_output,
            extra_create_args={"model": self.__config.model, **asked, **(extra_create_args or {})},
            cancellation_token=cancellation_token,
            max_consecutive_empty_chunk_tolerance=max_consecutive_empty_chunk_tolerance,
            include_usage=include_usage,
        )
        with noting():
            async for item in stream:
                yield item

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Return an estimate of the tokens of a prompt, on the safe side."""
        return estimate_tokens(messages, tools)

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Return how many tokens of the model's context a prompt leaves, by the same estimate."""
        return self.__context_tokens - self.count_tokens(messages, tools=tools)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it holds connections and a run, and no state that a copy could change

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} holds connections and cannot be pickled. "
            "Use dump_component(), or make one with chat_model(...) in the other process."
        )

    def _to_config(self) -> GatewayClientConfig:  # type: ignore[override] # AutoGen's public hook, with our schema
        return self.__config

    @classmethod
    def _from_config(cls, config: GatewayClientConfig) -> Self:  # type: ignore[override] # likewise
        role = AgentRole(config.role, models=[config.model])
        return cls._of(role, model=config.model, run=None, options=config.options)

    @classmethod
    def _of(
        cls, role: Member | AgentRole, *, model: str | None, run: Run | Step | None, options: Mapping[str, Any]
    ) -> Self:
        refuse_connection_options("chat_model", options)
        member = member_of(role)
        chosen = model_of(member, model)
        return cls(member, model=chosen, facts=model_facts(member, chosen), run=run, options=options)


def make_client(
    role: Member | AgentRole, *, model: str | None, run: Run | Step | None, options: Mapping[str, Any]
) -> GatewayChatCompletionClient:
    """Return the model client of a role; see `nemo_agents_autogen.chat_model`."""
    return GatewayChatCompletionClient._of(  # noqa: SLF001 - of this module
        role, model=model, run=run, options=options
    )


def info_of(facts: ModelFacts) -> ModelInfo:
    """Return what AutoGen wants to know about a model. The gateway takes system messages wherever they stand."""
    return ModelInfo(
        vision=facts.vision,
        function_calling=facts.function_calling,
        json_output=facts.json_output,
        family=ModelFamily.UNKNOWN,
        structured_output=facts.structured_output,
        multiple_system_messages=True,
    )


def estimate_tokens(messages: Sequence[LLMMessage], tools: Sequence[Tool | ToolSchema] = ()) -> int:
    """Return an estimate of the tokens of a prompt: a token for each three bytes of text, and a constant per image."""
    size, images = 0, 0
    for message in messages:
        for part in _parts(message):
            if isinstance(part, Image):
                images += 1
            else:
                size += len(part.encode())
    for tool in tools:
        size += len(json.dumps(tool.schema if isinstance(tool, Tool) else tool, default=str).encode())
    return -(-size // _BYTES_PER_TOKEN) + len(messages) * _TOKENS_PER_MESSAGE + images * _TOKENS_PER_IMAGE


def _parts(message: LLMMessage) -> list[str | Image]:
    if isinstance(message, FunctionExecutionResultMessage):
        return [result.content for result in message.content]
    if isinstance(message.content, str):
        return [message.content]
    return [part.name + part.arguments if isinstance(part, FunctionCall) else part for part in message.content]


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    known = CreateArgumentsConfigModel.model_fields.keys() | _of_a_request()
    for name, value in options.items():
        if name not in known:
            raise DeclarationError(
                "a model client of AutoGen takes no such option",
                field=name,
                value=value,
                remedy="Look at autogen_ext.models.openai.OpenAIChatCompletionClient.",
            )


def _of_a_request() -> set[str]:
    from openai.types.chat.completion_create_params import (  # noqa: PLC0415 - openai is imported by now
        CompletionCreateParamsBase,
    )

    of_the_call = {"messages", "model", "tools", "tool_choice", "stream"}
    return set(CompletionCreateParamsBase.__annotations__) - of_the_call | {"extra_body"}
