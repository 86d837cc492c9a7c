"""Answers of a server that many clients ask at once, beside those to one client that asks one thing at a time.

    python benchmarks/serving.py [--requests 1000] [--clients 64] [--prompts 20] [--rounds 3] [--quick] [--json FILE]

20 prompts of five methods on four tasks (two labels; three labels for pairs; six labels; a score) are made at random
and saved, `softprompts serve` is started on them in a process of its own, listening at the loopback address, and the
same requests, one row each for any of the prompts, go to it in each round twice:

- one by one: one client, which waits for each answer before it asks again;
- together: --clients clients, each of which does the same with its share.

Every answer, of either kind and in every round, must equal that of `softprompts.Predictor` for the row alone: the same
label, probabilities and values to 1e-5. Any other answer, or none, ends the benchmark. The ratio is the median over
rounds of (requests/s together / requests/s one by one) in the same round. Client and server share the cores. CPU ms is
what a request takes of the server's processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from common import config, finish, fresh, parse, parser, show

import softprompts as sp
from softprompts.tasks import Form

METHODS = ("prompt-tuning", "prefix-tuning", "multi-mask", "dept", "lora")
TASKS: dict[str, Form] = {
    "films": Form(labels=("bad", "good")),
    "claims": Form(labels=("follows", "open", "contradicts"), fields=("premise", "hypothesis")),
    "topics": Form(labels=("sports", "politics", "science", "money", "art", "other")),
    "stars": Form(kind="regression"),
}
WORDS = (
    *("the", "a", "film", "plot", "actor", "story", "was", "is", "seems", "too", "very", "quite", "never", "slow"),
    *("good", "bad", "dull", "bright", "long", "short", "and", "but", "with", "without", "any", "team", "won", "lost"),
    *("vote", "on", "money", "paint", "of", "science", "house", "river", "small", "new", "old", "again", "today"),
)
TOLERANCE = 1e-5
START_SECONDS, ANSWER_SECONDS = 120, 60

Request = tuple[str, tuple[str, ...]]


def main() -> None:
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--requests", type=int, default=1000)
    arguments.add_argument("--clients", type=int, default=64)
    arguments.add_argument("--prompts", type=int, default=20)
    options = parse(arguments, rounds=1, requests=200)
    busy: dict[str, list[float]] = {"one by one": [], "together": []}
    with tempfile.TemporaryDirectory() as folder:
        forms = save_prompts(Path(folder), options.model, options.prompts)
        requests = drawn(forms, options.requests)
        expected = alone(Path(folder), requests)
        rates: dict[str, list[float]] = {"one by one": [], "together": []}
        waits: dict[str, list[float]] = {"one by one": [], "together": []}
        with server(Path(folder), options.threads) as (port, process):
            asyncio.run(ask(port, requests[:50], expected, 8))  # what is only done once
            for _ in range(options.rounds):
                for name, clients in (("one by one", 1), ("together", options.clients)):
                    began, spent = time.perf_counter(), sum(process.cpu_times()[:2])
                    taken = asyncio.run(ask(port, requests, expected, clients))
                    rates[name].append(len(requests) / (time.perf_counter() - began))
                    waits[name] += taken
                    busy[name].append((sum(process.cpu_times()[:2]) - spent) / len(requests))
    ratio = statistics.median(many / one for one, many in zip(rates["one by one"], rates["together"], strict=True))
    rows, lines = [], []
    for name, clients in (("one by one", 1), ("together", options.clients)):
        cuts = statistics.quantiles(waits[name], n=100)
        row = {
            "variant": name,
            "clients": clients,
            "requests": len(requests) * options.rounds,
            "requests_per_second": statistics.median(rates[name]),
            "ratio": ratio if clients > 1 else 1.0,
            "cpu_seconds": statistics.median(busy[name]),
            "p50_seconds": cuts[49],
            "p95_seconds": cuts[94],
        }
        rows.append(row)
        times = [f"{1000 * row[f'{what}_seconds']:.1f}" for what in ("cpu", "p50", "p95")]
        lines.append((name, str(clients), f"{row['requests_per_second']:.0f}", f"{row['ratio']:.2f}", *times))
    show(
        f"{len(forms)} prompts of {len(METHODS)} methods, {len(requests)} requests, {options.model}; all answers equal",
        ["variant", "clients", "requests/s", "/ one by one", "CPU ms", "p50 ms", "p95 ms"],
        lines,
    )
    finish(options, rows)


# --- what is served ---------------------------------------------------------------------------------------------------


def save_prompts(folder: Path, name: str, count: int) -> dict[str, Form]:
    """Saves random prompts, and tells the task of each."""
    model = sp.attach(fresh(name))
    forms = {}
    for number in range(count):
        task = list(TASKS)[number // len(METHODS) % len(TASKS)]
        method, form = METHODS[number % len(METHODS)], TASKS[task]
        settings = sp.make_config(method) if method == "lora" else config(method, 5 + 5 * (number % 2))
        labels = list(form.labels) or None
        model.add_prompt("random", settings, labels=labels, num_labels=None if labels else 1, seed=number)
        draw = torch.Generator().manual_seed(number)
        for parameter in model.prompts["random"].parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        prompt = f"{method}-{task}-{number}"
        model.save_prompt("random", folder / prompt, {"task": task, "task_form": form.to_dict(), "max_length": 128})
        model.delete_prompt("random")
        forms[prompt] = form
    return forms


def drawn(forms: dict[str, Form], count: int) -> list[Request]:
    """Random texts of 3 to 12 words, each for a prompt."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 12)))

    names = draw.choices(list(forms), k=count)
    return [(name, tuple(text() for _ in forms[name].fields)) for name in names]


def alone(folder: Path, requests: Sequence[Request]) -> list[sp.predictor.Answer]:
    """The answer for each row by itself."""
    answers: list[Any] = [None] * len(requests)
    for name in dict.fromkeys(name for name, _ in requests):
        predictor = sp.Predictor(folder / name)
        for index, (other, texts) in enumerate(requests):
            if other == name:
                (answers[index],) = predictor([texts if len(texts) > 1 else texts[0]])
    return answers


@contextlib.contextmanager
def server(folder: Path, threads: int) -> Iterator[tuple[int, psutil.Process]]:
    """`softprompts serve` in a process of its own: its port, and the process."""
    command = [sys.executable, "-m", "softprompts", "serve", "--prompts", str(folder), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if address is None:
                raise SystemExit(f"the server did not start: {line!r}")
            yield int(address[1]), psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_SECONDS)


# --- clients ----------------------------------------------------------------------------------------------------------


async def ask(port: int, requests: Sequence[Request], expected: Sequence[Any], clients: int) -> list[float]:
    """Seconds that each request took; every answer is compared."""
    waiting = iter(range(len(requests)))
    taken: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for index in waiting:
                name, texts = requests[index]
                row: Any = list(texts) if len(texts) > 1 else texts[0]
                body = json.dumps({"prompt": name, "inputs": [row]}).encode()
                began = time.perf_counter()
                writer.write(
                    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)
                content = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                taken.append(time.perf_counter() - began)
                if not head.startswith(b"HTTP/1.1 200 "):
                    raise SystemExit(f"{name}: {content.decode()}")
                compare(name, json.loads(content)["answers"][0], expected[index])
        finally:
            writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    if len(taken) != len(requests):
        raise SystemExit(f"{len(taken)} answers to {len(requests)} requests")
    return taken


def compare(name: str, answer: dict[str, Any], expected: Any) -> None:
    """Ends the benchmark where an answer is another one."""
    pairs = [(answer["probabilities"][label], chance) for label, chance in expected.probabilities.items()]
    if expected.value is not None:
        pairs.append((answer["value"], expected.value))
    elif answer["label"] != expected.label:
        raise SystemExit(f"{name}: '{answer['label']}', alone '{expected.label}'")
    worst = max(abs(one - other) for one, other in pairs)
    if not worst <= TOLERANCE:
        raise SystemExit(f"{name}: differs by {worst:.2g} from the answer alone")


if __name__ == "__main__":
    main()
