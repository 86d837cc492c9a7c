"""OpenAI's interface, asked by OpenAI's own client."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import model_folder

import softprompts as sp
from softprompts.serving.engine import Engine
from softprompts.serving.prompt_store import PromptStore
from softprompts.serving.service import Service
from softprompts.serving.settings import ServerSettings
from tests.serving.servers import Running, held, running, save, service_of, wait_until

openai = pytest.importorskip("openai", reason="OpenAI's client asks: pip install openai")

TEMPLATE = """{% for m in messages %}\
{% if m.role == 'assistant' %}answer : {{ m.content }} . {% elif m.role == 'user' %}\
{{ m.content }} . {% elif m.content == 'refuse' %}{{ raise_exception('no such role') }}{% elif m.content != 'lost' %}\
first {{ m.content }} . {% endif %}{% endfor %}{% if add_generation_prompt %}answer :{% endif %}"""
NAMES = ("prefix", "prompt", "lora")


@pytest.fixture(scope="module", params=["llama", "t5"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server of three prompts on a model whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("openai")
    save(request.param, folder / "prompts", "prefix", "two", sp.PrefixTuningConfig(num_virtual_tokens=3), 0)
    save(request.param, folder / "prompts", "prompt", "two", sp.PromptTuningConfig(num_virtual_tokens=2), 1)
    save(request.param, folder / "prompts", "lora", "two", sp.LoraConfig(rank=2), 2)
    model = shutil.copytree(model_folder(request.param), folder / request.param)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    service = Service(Engine(str(model)), PromptStore(folder / "prompts"), ServerSettings(max_new_tokens=30))
    service.load_all(strict=True)
    with running(service) as made:
        yield made, folder / "prompts"


@pytest.fixture(scope="module")
def client(served: tuple[Running, Path]) -> Iterator[Any]:
    with client_of(served[0]) as made:
        yield made


def client_of(server: Running, key: str = "any") -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0, timeout=60)


def models_of(server: Running) -> list[str]:
    return [*NAMES, server.service.engine.model_name]


def generated_alone(server: Running, folder: Path, model: str, ids: list[int], count: int) -> str:
    """Greedy text, each token from a whole pass of a model with nothing but this prompt, or of the plain model."""
    engine = server.service.engine
    kind, plain = engine.kind, model == engine.model_name
    predictor = sp.Predictor(folder / (NAMES[0] if plain else model))
    if plain:
        predictor.model.set_prompt(None)
    found: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            if kind == "decoder":
                logits = predictor.model(input_ids=torch.tensor([ids + found])).logits[0, -1]
            else:
                given = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([[0, *found]])}
                logits = predictor.model(**given).logits[0, -1]
            token = int(logits.argmax())
            if token == predictor.tokenizer.eos_token_id:
                break
            found.append(token)
    before = ids if kind == "decoder" else []
    decode = predictor.tokenizer.decode
    return str(decode([*before, *found], skip_special_tokens=True)[len(decode(before, skip_special_tokens=True)) :])


def ids_of(server: Running, text: str, chat: bool = False) -> list[int]:
    tokenizer = server.service.engine.tokenizer
    return list(tokenizer(text, add_special_tokens=not chat)["input_ids"])


def streamed(chunks: Any) -> tuple[str, list[Any]]:
    """The joined text of a stream's first choice, and all chunks."""
    found = list(chunks)
    choices = [chunk.choices[0] for chunk in found if chunk.choices and chunk.choices[0].index == 0]
    return "".join((c.text if hasattr(c, "text") else c.delta.content) or "" for c in choices), found


def test_each_prompt_and_the_bare_model_are_models(served: tuple[Running, Path], client: Any) -> None:
    server, _ = served
    listed = {model.id: model for model in client.models.list()}
    bare = server.service.engine.model_name
    assert list(listed) == [*sorted(NAMES), bare]
    assert listed["lora"].parent == bare and listed[bare].parent is None
    assert client.models.retrieve("prompt") == listed["prompt"] and client.models.retrieve(bare) == listed[bare]
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("a/b")
    assert error.value.code == "model_not_found" and "'a/b'" in error.value.message


def test_prompts_and_the_bare_model_at_once_are_written_as_alone(served: tuple[Running, Path], client: Any) -> None:
    """Completions and chat, streamed and not, for four models at once: one pass of the model for all."""
    server, folder = served
    text, messages = "the film was", [{"role": "system", "content": "a"}, {"role": "user", "content": "very good"}]
    chat_text = "first a . very good . answer :"
    sizes: list[int] = []
    engine = server.service.engine
    generate = engine.generate

    def noted(rows: Any, between_steps: Any) -> Any:
        sizes.append(len(rows))
        return generate(rows, between_steps)

    def ask(model: str, kind: str) -> str:
        options = {"model": model, "temperature": 0, "max_tokens": 6, "stream": kind.endswith("stream")}
        if kind.startswith("text"):
            answer = client.completions.create(prompt=text, **options)
            return streamed(answer)[0] if options["stream"] else str(answer.choices[0].text)
        answer = client.chat.completions.create(messages=messages, **options)
        return streamed(answer)[0] if options["stream"] else str(answer.choices[0].message.content)

    asked = [(model, kind) for model in models_of(server) for kind in ("text", "text-stream", "chat", "chat-stream")]
    engine.generate = noted  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(len(asked)) as pool, held(server.service) as go:
            answers = [pool.submit(ask, *each) for each in asked]
            wait_until(lambda: len(server.service._batcher._generation) == len(asked))
            go.set()
            found = {each: answer.result() for each, answer in zip(asked, answers, strict=True)}
    finally:
        del engine.generate
    assert sizes == [16]  # all in one batch
    for model in models_of(server):
        wanted = generated_alone(server, folder, model, ids_of(server, text), 6)
        assert found[model, "text"] == found[model, "text-stream"] == wanted
        wanted = generated_alone(server, folder, model, ids_of(server, chat_text, chat=True), 6)
        assert found[model, "chat"] == found[model, "chat-stream"] == wanted
    assert len(set(found.values())) > 3


def test_streams_end_with_their_reason_and_usage(served: tuple[Running, Path], client: Any) -> None:
    options = {"model": "prefix", "max_tokens": 5, "temperature": 1.5, "seed": 3, "n": 2}
    whole = client.completions.create(prompt=["the film", "a"], **options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3] and len({c.text for c in whole.choices}) > 2
    usage = whole.usage
    lengths = [len(choice.text.split()) for choice in whole.choices]
    assert usage.prompt_tokens == sum(len(ids_of(served[0], text)) for text in ("the film", "a"))
    assert usage.completion_tokens >= sum(lengths) and usage.total_tokens == sum(
        (usage.prompt_tokens, usage.completion_tokens)
    )
    _, chunks = streamed(
        client.completions.create(
            prompt=["the film", "a"], stream=True, stream_options={"include_usage": True}, **options
        )
    )
    assert chunks[-1].usage == usage and chunks[-1].choices == [] and chunks[0].usage is None
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [part.finish_reason for part in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert len(own) > len(choice.text.split())  # token by token
    messages = [{"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "text", "text": "film"}]}]
    answer = client.chat.completions.create(messages=messages, **options)
    _, chunks = streamed(client.chat.completions.create(messages=messages, stream=True, **options))
    assert chunks[0].choices[0].delta.role == "assistant" and answer.choices[0].message.role == "assistant"
    for choice in answer.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(part.delta.content or "" for part in own) == choice.message.content


def test_a_seed_makes_draws_repeatable(client: Any) -> None:
    def ask(**more: Any) -> list[str]:
        options = {"model": "prompt", "prompt": "the film", "max_tokens": 8, "temperature": 2, **more}
        return [choice.text for choice in client.completions.create(**options).choices]

    alone = ask(seed=-5)
    assert ask(seed=-5, n=3)[0] == alone[0] and ask(seed=-4) == ask(seed=-5, n=2)[1:]
    assert len({ask(seed=seed)[0] for seed in range(6)}) > 2
    assert ask(seed=1, top_p=0) == ask(temperature=0)
    assert ask(seed=1, temperature=None) == ask(seed=1, temperature=1)


def test_a_text_ends_at_a_stop_string(client: Any) -> None:
    options = {"model": "prefix", "prompt": "the film", "max_tokens": 16, "temperature": 2}
    for seed in range(50):  # a text whose third and fourth word are not in it before
        whole = client.completions.create(seed=seed, **options)
        words = whole.choices[0].text.split()
        if len(words) > 5 and len(set(words[:4])) == 4:
            break
    text, stop = whole.choices[0].text, f" {words[2]} {words[3]}"
    for given in (stop, ["never", stop]):
        answer = client.completions.create(stop=given, seed=seed, **options)
        assert answer.choices[0].text == text[: text.index(stop)] and answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < whole.usage.completion_tokens  # the model stops there
        found, chunks = streamed(client.completions.create(stop=given, stream=True, seed=seed, **options))
        assert found == answer.choices[0].text and chunks[-1].choices[0].finish_reason == "stop"
    cut = client.completions.create(stop=stop, seed=seed, logprobs=0, **options).choices[0]
    assert [token for token in cut.logprobs.tokens if token in words] == words[:2]
    assert all(offset < len(cut.text) for offset in cut.logprobs.text_offset)


def test_a_stop_string_that_is_a_token_ends_a_text(served: tuple[Running, Path], client: Any) -> None:
    engine = served[0].service.engine
    options = {"model": "prefix", "prompt": "the film", "max_tokens": 16, "temperature": 2, "logprobs": 0}
    for seed in range(50):
        whole = client.completions.create(seed=seed, **options).choices[0]
        if "<unk>" in whole.logprobs.tokens[1:]:
            break
    at = whole.logprobs.tokens.index("<unk>")
    cut = client.completions.create(seed=seed, stop="<unk>", **options).choices[0]
    assert engine.tokenizer.unk_token == "<unk>" and "<unk>" not in whole.text
    assert cut.logprobs.tokens == whole.logprobs.tokens[:at] and cut.finish_reason == "stop"


def test_log_probabilities_are_those_of_the_model(served: tuple[Running, Path], client: Any) -> None:
    server, folder = served
    options = {"model": "prefix", "prompt": "the film", "max_tokens": 6, "temperature": 1.5, "seed": 5, "logprobs": 3}
    choice = client.completions.create(**options).choices[0]
    logprobs = choice.logprobs
    predictor, ids = sp.Predictor(folder / "prefix"), ids_of(server, "the film")
    made: list[int] = []
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        given = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([[0, *made]])}
        if predictor.kind == "decoder":
            given = {"input_ids": torch.tensor([ids + made])}
        with torch.no_grad():
            wanted = predictor.model(**given).logits[0, -1].log_softmax(-1)
        made.append(int((wanted - value).abs().argmin()))
        assert value == pytest.approx(float(wanted[made[-1]]), abs=1e-4)
        for found in top.values():
            assert float((wanted.topk(3).values - found).abs().min()) < 1e-4
        assert max(top.values()) == pytest.approx(float(wanted.max()), abs=1e-4)
    tokenizer = server.service.engine.tokenizer
    assert made and logprobs.tokens == [tokenizer.decode([token]) for token in made]
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token in tokenizer.all_special_tokens or choice.text[offset:].strip().startswith(token)
    parts = list(client.completions.create(stream=True, **options))
    assert [value for part in parts for value in part.choices[0].logprobs.token_logprobs] == logprobs.token_logprobs
    messages = [{"role": "user", "content": "film"}]
    asked = {"model": "lora", "messages": messages, "max_completion_tokens": 4, "temperature": 0, "logprobs": True}
    answer = client.chat.completions.create(top_logprobs=2, **asked).choices[0]
    for entry in answer.logprobs.content:
        assert entry.token == entry.top_logprobs[0].token and entry.logprob == entry.top_logprobs[0].logprob
        assert bytes(entry.bytes).decode() == entry.token and len(entry.top_logprobs) == 2
    assert client.chat.completions.create(**asked).choices[0].logprobs.content[0].top_logprobs == []
    parts = list(client.chat.completions.create(stream=True, top_logprobs=2, **asked))
    told = [entry for part in parts for entry in (part.choices[0].logprobs.content if part.choices[0].logprobs else [])]
    assert told == answer.logprobs.content


def test_token_ids_and_templates(served: tuple[Running, Path], client: Any) -> None:
    options = {"model": "prompt", "max_tokens": 4, "temperature": 0}

    def ask(prompt: Any, **more: Any) -> list[str]:
        return [choice.text for choice in client.completions.create(prompt=prompt, **options, **more).choices]

    ids = ids_of(served[0], "the film was good")
    assert ask(ids) == ask("the film was good") and ask([ids, ids]) == ask(ids) * 2
    (written,) = ask("the film was good", extra_body={"template": True})
    body = {"prompt": "prompt", "inputs": ["the film was good"], "max_new_tokens": 4}
    assert written.strip() == served[0].post("/v1/generate", body)["answers"][0]["text"].strip()


def test_what_is_not_supported_is_refused_by_name(served: tuple[Running, Path], client: Any) -> None:
    text = {"model": "prefix", "prompt": "the film"}
    chat = {"model": "prefix", "messages": [{"role": "user", "content": "film"}]}
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "user": "me", "n": 1, "stop": None}
    client.completions.create(**text, **neutral, best_of=1, echo=False, suffix=None, max_tokens=1)
    answer = client.chat.completions.create(
        **chat, **neutral, max_tokens=1, response_format={"type": "text"}, tools=[], tool_choice="none", store=False
    )
    again = [*chat["messages"], answer.choices[0].message.model_dump(), chat["messages"][0]]
    client.chat.completions.create(model="prefix", messages=again, max_tokens=1)

    def refused(body: dict[str, Any], param: str, code: str | None = None, status: int = 400) -> None:
        create = client.chat.completions.create if "messages" in body else client.completions.create
        with pytest.raises(openai.APIStatusError) as error:
            create(**body)
        found = error.value
        assert (found.status_code, found.param) == (status, param), found
        assert param.partition("[")[0] in found.message and "\n" not in found.message
        assert code is None or found.code == code

    for name, value in (
        *(("best_of", 3), ("echo", True), ("suffix", "x"), ("frequency_penalty", 0.5), ("presence_penalty", -1)),
        ("logit_bias", {"5": 1}),
    ):
        refused({**text, name: value}, name, "unsupported_parameter")
    for name, value in (
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("store", True),
    ):
        refused({**chat, name: value}, name, "unsupported_parameter")
    refused({**text, "extra_body": {"top_k": 5}}, "top_k", "unknown_parameter")
    refused({**chat, "reasoning_effort": "low"}, "reasoning_effort", "unknown_parameter")
    for name, value in (
        *(("temperature", 2.5), ("top_p", 2), ("n", 0), ("max_tokens", 0), ("max_tokens", 31), ("logprobs", 21)),
        *(("n", 300), ("stop", [""]), ("stream_options", {"include_usage": True}), ("prompt", [10**6])),
    ):
        refused({**text, name: value}, name if name != "stop" else "stop[0]")
    refused({**chat, "top_logprobs": 2}, "top_logprobs")
    refused({**chat, "max_tokens": 2, "max_completion_tokens": 3}, "max_tokens")
    for content, param in (
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].role"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": "x", "name": "me"}, "messages[0].name"),
        ({"role": "system", "content": "lost"}, "messages[0]"),
        ({"role": "system", "content": "refuse"}, "messages"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="prefix", messages=[content])
        assert str(error.value.param).startswith(param), error.value
    refused({**text, "model": "nobody"}, "model", "model_not_found", 404)
    if served[0].service.engine.kind == "decoder":  # no table of positions in a T5
        refused({**text, "prompt": "film " * 30, "max_tokens": 20}, "prompt", "context_length_exceeded")
        refused(
            {**chat, "messages": [{"role": "user", "content": "film " * 60}]}, "messages", "context_length_exceeded"
        )
        answer = client.chat.completions.create(**chat, temperature=0)  # as much as there is room for
        assert answer.usage.completion_tokens <= 30


def test_what_goes_wrong_in_a_stream_is_told(served: tuple[Running, Path], client: Any, monkeypatch: Any) -> None:
    engine = served[0].service.engine
    generate, begun = engine.generate, threading.Event()

    def broken(rows: Any, between_steps: Any) -> Any:
        def fail() -> None:
            assert begun.wait(60)
            raise RuntimeError("no")

        return generate(rows, fail)

    monkeypatch.setattr(engine, "generate", broken)
    messages = [{"role": "user", "content": "film"}]
    stream = client.chat.completions.create(model="prefix", messages=messages, stream=True, max_tokens=5, temperature=0)
    assert next(stream).choices[0].delta.role == "assistant"
    begun.set()
    with pytest.raises(openai.APIError, match="the model failed on a row of 'prefix'"):
        list(stream)


def test_keys_errors_and_models_that_label(tmp_path: Path) -> None:
    save("bert", tmp_path, "reviews", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    with running(service_of("bert", tmp_path, api_key="secret")) as server, client_of(server, "secret") as client:
        with client_of(server, "other") as wrong, pytest.raises(openai.AuthenticationError) as refused:
            wrong.models.list()
        assert refused.value.code == "invalid_api_key"
        assert list(client.models.list()) == []
        with pytest.raises(openai.BadRequestError, match="'reviews' labels texts .* /v1/predict"):
            client.completions.create(model="reviews", prompt="x")
        status, content, _ = server.ask(
            "POST", "/v1/completions", b"{", {"Authorization": "Bearer secret", "Content-Type": "text/plain"}
        )
        assert status == 415 and set(content["error"]) == {"message", "type", "param", "code"}


def test_without_a_chat_template(tmp_path: Path) -> None:
    save("llama", tmp_path, "llama", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    with running(service_of("llama", tmp_path)) as server, client_of(server) as client:
        # A prompt with its model's name.
        assert [model.id for model in client.models.list()] == ["llama", "base/llama"]
        one, other = (
            client.completions.create(model=name, prompt="the film", temperature=0, max_tokens=8).choices[0].text
            for name in ("llama", "base/llama")
        )
        assert one != other
        with pytest.raises(openai.BadRequestError, match="has no chat template; use /v1/completions"):
            client.chat.completions.create(model="llama", messages=[{"role": "user", "content": "x"}])
