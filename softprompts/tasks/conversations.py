"""Conversations as rows have them: messages with a role and a text. In an example they are one field, as JSON."""

from __future__ import annotations

import json
from typing import Any

from softprompts.errors import SoftPromptError, shown
from softprompts.tasks.example import Row

MESSAGES = "messages"  # the field of a row of a chat
ANSWERER = "assistant"  # the role that a model is trained to play
Messages = list[dict[str, Any]]


def messages_in(place: str, column: str, row: Row, answered: bool) -> Messages:
    """The messages in a column: a list of objects, or such a list as JSON; without those behind the last answer.

    Args:
        place: begins errors.
        column: their column.
        row: the row.
        answered: whether a message of the assistant that answers another is needed.

    Raises:
        SoftPromptError: they are something else.
    """
    value = row[column]
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SoftPromptError(f"{place}: '{column}' is broken JSON ({error})") from error
    if not isinstance(value, list | tuple) or not value:
        raise SoftPromptError(f"{place}: '{column}' is {shown(value)}, not a list of messages")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise SoftPromptError(
                f"{place}: message {number} of '{column}' is {shown(message)}, not a role and a content that are texts"
            )
    messages = list(value)
    if not answered:
        return messages
    last = max((index for index, message in enumerate(messages) if message["role"] == ANSWERER), default=0)
    if not last:
        raise SoftPromptError(f"{place}: '{column}' has no message of the {ANSWERER} that answers another")
    if not messages[last]["content"].strip():
        raise SoftPromptError(f"{place}: the last message of the {ANSWERER} in '{column}' is empty")
    return messages[: last + 1]


def asked(place: str, column: str, row: Row) -> str:
    """The messages in a column to be answered, as the text of an example's field; a text is one of the user.

    Raises:
        SoftPromptError: it holds none.
    """
    value = row[column]
    if isinstance(value, str):
        if not value.strip():
            raise SoftPromptError(f"{place}: '{column}' is empty")
        value = unpacked(value)
    return packed(messages_in(place, column, {column: value}, answered=False))


def packed(messages: Messages) -> str:
    """Messages as the text of an example's field."""
    return json.dumps(messages, ensure_ascii=False)


def unpacked(text: str) -> Messages:
    """The messages in an example's field; a text that holds none is a message of the user."""
    messages: Any = None
    if text.lstrip().startswith("["):
        try:
            messages = json.loads(text)
        except ValueError:
            messages = None
    whole = (
        isinstance(messages, list) and messages and all(isinstance(each, dict) and "role" in each for each in messages)
    )
    return messages if whole else [{"role": "user", "content": text}]


def question_of(messages: Messages) -> Messages:
    """The messages that the last answer answers: all of them where it is not there yet."""
    return messages[:-1] if messages[-1]["role"] == ANSWERER else messages


def readable(messages: Messages) -> str:
    """Messages to be read by people, a line for each."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
