"""OpenAI's own client, unmodified: embeddings, legacy completions and the list of models."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from clients_bench import ClientsBench

from nemo_agents.testing.replies import TEXT

UPSTREAM = {"native": "/v1/completions", "chatonly": "/v1/chat/completions"}


def test_embeddings(bench: ClientsBench, speaker: str):
    """The client asks for base64 and decodes it; asked for numbers, it gets the same ones."""
    client = bench.openai()
    texts = ["one two", "three"]
    packed = client.embeddings.create(model=f"{speaker}/embedder", input=texts, dimensions=4)
    plain = client.embeddings.create(model=f"{speaker}/embedder", input=texts, dimensions=4, encoding_format="float")
    assert [each.embedding for each in packed.data] == [each.embedding for each in plain.data]
    assert [len(each.embedding) for each in packed.data] == [4, 4]
    assert packed.usage.total_tokens == 3
    rows = bench.rows()
    assert [(row["endpoint"], row["input_tokens"], row["output_tokens"]) for row in rows] == [
        ("/v1/embeddings", 3, 0)
    ] * 2
    assert bench.content(rows[0])["prompt"] == [texts]


def test_embeddings_of_tokens(bench: ClientsBench):
    """Frameworks send texts that they have turned into tokens themselves."""
    answer = bench.openai().embeddings.create(model="native/embedder", input=[[11, 12], [13]])
    assert len(answer.data) == 2
    assert bench.sent()["body"]["input"] == [[11, 12], [13]]
    assert bench.row()["input_tokens"] == 3


async def test_the_asynchronous_client_embeds(bench: ClientsBench):
    async with bench.async_openai() as client:
        answer = await client.embeddings.create(model="native/embedder", input="one two")
    assert len(answer.data[0].embedding) == 8


def test_a_legacy_completion(bench: ClientsBench, speaker: str):
    answer = bench.openai().completions.create(model=f"{speaker}/sense", prompt="Once upon a time", max_tokens=3)
    assert (answer.choices[0].text.strip(), answer.choices[0].finish_reason) == ("The answer is", "length")
    assert answer.object == "text_completion"
    assert bench.sent()["path"] == UPSTREAM[speaker]
    row = bench.row()
    assert (row["endpoint"], row["output_tokens"]) == ("/v1/completions", 3)
    assert bench.content(row)["prompt"] == ["Once upon a time"]


def test_a_legacy_stream(bench: ClientsBench, speaker: str):
    with bench.openai().completions.create(model=f"{speaker}/sense", prompt="Once", stream=True) as chunks:
        heard = list(chunks)
    assert "".join(each.choices[0].text for each in heard if each.choices) == TEXT
    assert [each.usage for each in heard if each.usage is not None] == []
    assert bench.row()["stream"] is True


def test_a_legacy_completion_passes_as_it_is(bench: ClientsBench):
    raw = bench.openai().completions.with_raw_response.create(
        model="native/sense", prompt="Once", suffix="the end", n=2, stop=["two"], seed=3, extra_body={"x_vendor": [1]}
    )
    assert bench.sent()["body"] == {**json.loads(raw.http_request.content), "model": "sense", "max_tokens": 4096}
    assert [choice.text for choice in raw.parse().choices] == ["The answer is forty "] * 2


def test_several_translated_completions(bench: ClientsBench):
    answer = bench.openai().completions.create(model="chatonly/sense", prompt="Once", n=2, stop=["two"])
    assert [choice.text.strip() for choice in answer.choices] == ["The answer is forty"] * 2


@pytest.mark.parametrize("asked", [{"suffix": "the end"}, {"echo": True}, {"best_of": 3}])
def test_what_cannot_be_translated_is_refused_with_the_field(bench: ClientsBench, asked: dict[str, Any]):
    with pytest.raises(openai.BadRequestError) as caught:
        bench.openai().completions.create(model="chatonly/sense", prompt="Once", **asked)
    assert (caught.value.code, caught.value.param) == ("invalid_request", next(iter(asked)))
    assert bench.provider.requests() == []


def test_models(bench: ClientsBench):
    """A key sees the models that it may use, by name, and no other."""
    client = bench.openai(bench.key(models=["native/sense", "chatonly/thinker"]))
    assert [model.id for model in client.models.list()] == ["native/sense", "chatonly/thinker"]
    assert client.models.retrieve("native/sense").id == "native/sense"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("native/parallel")
    assert caught.value.code == "model_not_found"
    assert {"native/sense", "native/errs", "chatonly/sense"} <= {model.id for model in bench.openai().models.list()}


async def test_the_asynchronous_client_lists_models(bench: ClientsBench):
    async with bench.async_openai(bench.key(models=["native/sense"])) as client:
        assert [model.id async for model in client.models.list()] == ["native/sense"]
