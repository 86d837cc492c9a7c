"""Makes rows for the model from requests of OpenAI's interface; runs in the one thread that uses the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jinja2 import TemplateError

from softprompts.errors import SoftPromptError
from softprompts.serving.engine import Engine
from softprompts.serving.errors import RequestError
from softprompts.serving.jobs import Answers, GenerationRow, Job, RequestRow
from softprompts.serving.openai.choices import ChoiceWriter
from softprompts.serving.openai.schemas import CompletionRequest, Message, TextRequest
from softprompts.serving.requests import plain_ids, task_ids
from softprompts.serving.sampling import Sampler


def text_jobs(
    options: TextRequest,
    most: int,
    engine: Engine,
    rows: Sequence[RequestRow],
    emit: Callable[[int, int], None] | None = None,
) -> list[Job]:
    """Jobs that generate text, one for each row; the choices of a prompt are neighbouring rows of the same content.

    Args:
        options: the request.
        most: limit for tokens of a choice, where the request has none.
        engine: the model.
        rows: with a text, token ids or messages as their content.
        emit: called in the model's thread with the number of a row and each of its tokens.
    """
    jobs = []
    for index, row in enumerate(rows):
        if index % options.choices == 0:
            input_ids = _input_ids(engine, row, options)
            count = _most_tokens(engine, row, len(input_ids), options, most)
        job = _job(engine, row, index, input_ids, count, options)
        if emit is not None:
            job.generation[0].emit = partial(emit, index)
        jobs.append(job)
    return jobs


def _job(engine: Engine, row: RequestRow, index: int, input_ids: list[int], count: int, options: TextRequest) -> Job:
    temperature, top_p = (1.0 if value is None else value for value in (options.temperature, options.top_p))
    seed = None if options.seed is None else (options.seed + index % options.choices) % 2**63
    tokenizer = engine.tokenizer
    # A stop string that is a token of its own, such as the end of a turn, is not part of any text.
    special = {
        text: tokenizer.convert_tokens_to_ids(text) for text in options.stops if text in tokenizer.all_special_tokens
    }
    stops = [text for text in options.stops if text not in special]
    generated = GenerationRow(
        row.prompt,
        input_ids,
        count,
        Sampler(temperature, top_p, seed) if temperature else None,
        ends=frozenset(token for token in (tokenizer.eos_token_id, *special.values()) if token is not None),
        stops=stops,
        # Its blanks depend on the input that it continues; a decoder behind an encoder begins anew.
        before=input_ids[-8:] if engine.kind == "decoder" else (),
        top_logprobs=options.top_count,
    )

    def read(_: list[Any]) -> Answers:
        choice = ChoiceWriter(tokenizer, generated).whole()
        return [{"choice": choice, "input_tokens": len(input_ids), "tokens": len(generated.tokens)}]

    return Job([index], read, generation=[generated])


def _most_tokens(engine: Engine, row: RequestRow, length: int, options: TextRequest, most: int) -> int:
    """The limit for the tokens of a choice, which must fit behind an input of a length."""
    limit, wanted = row.prompt.max_input_tokens, options.most_tokens
    if limit is None:
        return wanted or most
    room = limit - length if engine.kind == "decoder" else limit
    if length > limit or room < (wanted or 1):
        param = "prompt" if isinstance(options, CompletionRequest) else "messages"
        text = (
            f"{param}: {length} tokens and {wanted or 1} to be written are too long for '{row.prompt.name}' ({limit})"
        )
        raise RequestError(text, param=param, code="context_length_exceeded")
    return wanted or min(most, room)


def _input_ids(engine: Engine, row: RequestRow, options: TextRequest) -> list[int]:
    content, name = row.content, row.prompt.name
    if not isinstance(options, CompletionRequest):
        return _chat_ids(engine, content)
    if not isinstance(content, str):
        size = row.prompt.model.get_input_embeddings().num_embeddings
        if max(content) >= size:
            raise RequestError(f"prompt: token id {max(content)}; '{name}' has {size} tokens", param="prompt")
        return list(content)
    if not options.template:
        ids = plain_ids(engine, content)
    elif not row.prompt.reader.knows_task:
        raise RequestError(
            f"'{name}' does not say how its texts are written out; leave 'template' out", param="template"
        )
    else:
        try:
            ids = task_ids(row)
        except SoftPromptError as error:
            raise RequestError(f"prompt: {error}", param="prompt") from error
    if not ids:
        raise RequestError("prompt: an empty text cannot be continued", param="prompt")
    return ids


def _chat_ids(engine: Engine, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat by the tokenizer's template, up to where the answer begins."""
    tokenizer = engine.tokenizer
    if not tokenizer.chat_template:
        reason = f"the tokenizer of {engine.model_name} has no chat template; use /v1/completions"
        raise RequestError(reason, param="messages", code="no_chat_template")
    roles = {"developer": "system"}
    chat = [{"role": roles.get(message.role, message.role), "content": message.text} for message in messages]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError) as error:
        raise RequestError(f"messages: the chat template refuses them ({error})", param="messages") from error
    for number, message in enumerate(chat):  # an answer may lose its thoughts; nothing else may be lost
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise RequestError(
                f"messages[{number}]: the chat template leaves out what is said as '{messages[number].role}'",
                param=f"messages[{number}]",
            )
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if not ids:
        raise RequestError("messages: an empty chat cannot be answered", param="messages")
    return ids
