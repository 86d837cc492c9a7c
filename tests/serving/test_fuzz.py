"""Whatever is sent, by the schema or past it: no answer of 5xx, no traceback, no hang."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import softprompts as sp
from tests.serving.servers import Running, running, save, service_of

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis sends the requests: pip install schemathesis")

EXAMPLES = 40
QUIET = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", params=["bert", "llama"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    save(request.param, folder, "reviews", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    save(request.param, folder, "mrpc", "pair", sp.PromptTuningConfig(num_virtual_tokens=2))
    with running(service_of(request.param, folder, timeout=10, max_new_tokens=8)) as made:
        yield made


def check(status: int, content: Any) -> None:
    assert status < 500, content
    assert "Traceback" not in str(content)
    if status >= 400:
        assert set(content) == {"error"} and "\n" not in content["error"] and len(content["error"]) < 1000


@pytest.mark.filterwarnings("ignore")
def test_the_schema_is_kept(fuzzed: Running) -> None:
    """Requests made from the OpenAPI schema are answered as it says."""
    base = f"http://127.0.0.1:{fuzzed.port}"
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    seen, sent = set(), 0
    for result in schema.get_all_operations():
        operation = result.ok()
        seen.add(operation.label)

        @QUIET
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            nonlocal sent
            sent += 1
            answer = case.call(base_url=base, timeout=20)
            status = answer.status_code
            assert status < 500 and "Traceback" not in answer.text, answer.text
            case.validate_response(answer, excluded_checks=EXCLUDED)

        send()
    assert {"POST /v1/predict", "POST /v1/generate", "POST /v1/score", "PUT /v1/prompts/{name}"} <= seen
    assert sent > 150
    assert fuzzed.service.ready and fuzzed.service.waiting == 0


# What the schema allows may still be refused, such as a prompt that is not there.
_OTHERS = ("positive_data_acceptance", "unsupported_method", "use_after_free", "ensure_resource_availability")
EXCLUDED = [getattr(schemathesis.checks, name) for name in _OTHERS if hasattr(schemathesis.checks, name)]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["reviews", "mrpc", "", "..", "x"]) | st.text(max_size=5)
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["good film", "\x00", "\u200b", "a" * 5000, "🙂" * 50, "[SEP]", "<pad> </s>"]
)
ROWS = (
    TEXTS
    | st.lists(TEXTS, min_size=2, max_size=2)
    | st.fixed_dictionaries(
        {},
        optional={
            "prompt": NAMES,
            "text": TEXTS,
            "text_pair": TEXTS,
            "fields": st.dictionaries(st.sampled_from(["text", "first", "second"]), TEXTS, max_size=3),
            "words": st.lists(TEXTS, max_size=4),
            "choices": st.lists(TEXTS, max_size=4),
            "continuations": st.lists(TEXTS, max_size=3),
        },
    )
)
BODIES = JSON | st.fixed_dictionaries(
    {"inputs": st.lists(ROWS | JSON, max_size=4)},
    optional={
        "prompt": NAMES,
        "max_new_tokens": st.integers(-1, 8) | st.just(10**20),
        "temperature": st.floats(0, 200, allow_nan=False),
        "top_p": st.floats(-1, 2, allow_nan=False),
        "seed": st.integers(-5, 2**40),
        "stream": st.booleans(),
        "template": st.booleans(),
        "end": st.booleans(),
    },
)


@settings(QUIET, max_examples=300)
@given(path=st.sampled_from(["predict", "score", "generate"]), body=BODIES)
def test_anything_is_answered(fuzzed: Running, path: str, body: Any) -> None:
    status, content, _ = fuzzed.ask("POST", f"/v1/{path}", body)
    check(status, content)


@settings(QUIET, max_examples=40)
@given(path=st.sampled_from(["predict", "score", "generate"]), body=st.binary(max_size=60))
def test_any_bytes_are_answered(fuzzed: Running, path: str, body: bytes) -> None:
    status, content, _ = fuzzed.ask("POST", f"/v1/{path}", body)
    check(status, content)
    assert status == 422
