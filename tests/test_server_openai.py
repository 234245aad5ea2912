"""OpenAI's own client, unchanged, against the service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import openai
import pytest

from serving import KEY, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import adventures as adv

QUESTION = "How do I get past a dragon that is sleeping on its gold?"
MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def server(stock: adv.Library) -> Iterator[Server]:
    with Server("--library", stock.path, env={"ADVENTURES_API_KEY": KEY}) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model=MODEL, messages=messages)
    text = whole.choices[0].message.content
    assert text
    assert "[1]" in text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.sources[0]["metadata"]["item"] in text
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[0].sources == whole.sources
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_options(client: openai.OpenAI) -> None:
    def create(**options: object) -> object:
        messages = [{"role": "user", "content": "Tell me of the sea."}]
        return client.chat.completions.create(
            model=MODEL, messages=messages, extra_body={"retrieval": False}, max_completion_tokens=24, n=1, **options
        )

    first = create(temperature=0.9, seed=7)
    assert first.choices[0].message.content == create(temperature=0.9, seed=7).choices[0].message.content
    assert first.choices[0].message.content != create(temperature=0.9, seed=8).choices[0].message.content
    assert first.choices[0].finish_reason == "length"
    greedy = create().choices[0].message.content
    word = greedy.split()[3]
    stopped = create(stop=[word])
    assert stopped.choices[0].message.content == greedy[: greedy.index(word)]
    assert stopped.choices[0].finish_reason == "stop"
    told = create(logprobs=True, top_logprobs=3)
    content = told.choices[0].logprobs.content
    assert len(content) == 24
    assert b"".join(bytes(token.bytes) for token in content).decode() == told.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)
    streamed = list(create(logprobs=True, stream=True))
    tokens = [t.token for c in streamed if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert tokens == [token.token for token in content]
    shaped = create(response_format={"type": "json_object"}, user="somebody")
    assert shaped.choices[0].message.content.startswith("{")


def test_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=6)
    pieces = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=6, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert whole.usage.completion_tokens == 6


def test_embeddings(client: openai.OpenAI, minilm: adv.Embedder) -> None:
    texts = ["a rope of elven hair", "boots", "what keeps a cellar dry?"]
    # The client asks for base64 unless told otherwise.
    for options in ({}, {"encoding_format": "float"}, {"dimensions": 384}):
        found = client.embeddings.create(model="all-minilm-l6-v2", input=texts, **options)
        assert np.allclose([item.embedding for item in found.data], minilm.embed(texts), atol=1e-6)
    one = client.embeddings.create(model="all-minilm-l6-v2", input=texts[0])
    assert np.allclose(one.data[0].embedding, minilm.embed(texts[:1])[0], atol=1e-6)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "all-minilm-l6-v2"]
    assert client.models.retrieve(MODEL).owned_by == "adventures"


def test_errors_are_the_clients_own(client: openai.OpenAI, server: Server) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.chat.completions.create(model="gpt-4o", messages=messages)
    with pytest.raises(openai.BadRequestError, match="n must be 1") as error:
        client.chat.completions.create(model=MODEL, messages=messages, n=2)
    assert error.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model=MODEL, messages=messages, tools=[])
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong" * 5, max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_async(server: Server) -> None:
    async def answers() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:

            async def one() -> str:
                messages = [{"role": "user", "content": QUESTION}]
                stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

            return await asyncio.gather(*(one() for _ in range(6)))

    texts = asyncio.run(answers())
    assert len(set(texts)) == 1
    assert "[1]" in texts[0]
