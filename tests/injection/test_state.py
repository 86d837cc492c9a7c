"""The pass under way belongs to the call: threads on one model do not meet, and scopes end with their calls."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import thread_calls
import tiny
import torch
from torch import Tensor

import softprompts as sp
from softprompts.injection.state import state_of


def logits_in_threads(model: Any, names: list[str | None], inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    """The logits of one pass a name, all of them inside the model at the same time."""
    meeting, outputs = threading.Barrier(len(names), timeout=60), {}
    entry = state_of(model).backbone.entry
    # Every thread waits inside the model until all are there.
    handle = entry.register_forward_pre_hook(lambda *_: [meeting.wait(), None][1])

    def run(number: int, name: str | None) -> None:
        with torch.no_grad():
            outputs[number] = model(**inputs, prompt_names=None if name is None else name).logits

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    return outputs


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_threads_on_one_model_keep_their_prompts(family: str) -> None:
    methods = ["prefix-tuning", "prompt-tuning", "multi-mask"]
    model, inputs = tiny.attached(family, *methods), tiny.batch(family)
    inputs.pop("labels", None)
    if family == "t5":
        inputs["decoder_input_ids"] = torch.ones(3, 4, dtype=torch.long)
    with torch.no_grad():
        alone = [model(**inputs, prompt_names=name).logits for name in methods]
    together = logits_in_threads(model, methods * 2, inputs)
    assert len(together) == 6
    for number, logits in together.items():
        torch.testing.assert_close(logits, alone[number % 3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_many_calls_of_all_methods_in_eight_threads(family: str) -> None:
    """benchmarks/threads.py makes a thousand of them."""
    names = list(tiny.METHODS)
    model = tiny.attached(family, *names)
    assert thread_calls.wrong(model, thread_calls.calls(family, names), 80) == 0
    assert model.active_prompt == names[0]


@pytest.mark.parametrize("loss", ["three labels", "two labels"])
def test_losses_without_a_prompt_are_the_plain_models_whatever_is_active(loss: str) -> None:
    for tokens in (False, True):
        plain, inputs = tiny.model("bert", tokens=tokens), tiny.batch("bert")
        if tokens:
            inputs["labels"] = torch.randint(0, 3, inputs["input_ids"].shape)
        wanted = plain(**inputs)
        model = sp.attach(tiny.model("bert", tokens=tokens))
        model.add_prompt("x", tiny.METHODS["prefix-tuning"], num_labels=3 if loss == "three labels" else 2)
        before = model.config.problem_type
        given = model(**inputs, prompt_names=[None] * 3)
        torch.testing.assert_close(given.loss, wanted.loss, rtol=1e-12, atol=0)
        assert torch.equal(given.logits, wanted.logits) and next(iter(given)) == "loss"
        assert model.config.problem_type == before and model.config.num_labels == len(model.prompts["x"].labels)


def test_explicit_names_count_in_a_call_within_a_generation() -> None:
    """As in contrastive decoding between a prompt and another, or none."""
    model, inputs = tiny.attached("llama", "prefix-tuning", "multi-mask"), tiny.batch("llama", rows=1)
    inputs.pop("labels")
    seen: list[Tensor] = []

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        for names in ("multi-mask", [None], "prefix-tuning"):
            seen.append(model(ids, prompt_names=names).logits[:, -1])
        return scores

    settings = {"max_new_tokens": 2, "do_sample": False, "logits_processor": [note], "eos_token_id": None}
    sequence = model.generate(**inputs, **settings, prompt_names="prefix-tuning")
    with torch.no_grad():
        for step in range(2):
            ids = sequence[:, : 7 + step]
            for logits, names in zip(seen[3 * step :], ("multi-mask", [None], "prefix-tuning"), strict=False):
                torch.testing.assert_close(logits, model(ids, prompt_names=names).logits[:, -1])


def test_a_call_that_fails_leaves_the_next_alone() -> None:
    model, inputs = tiny.attached("llama", "prefix-tuning", "prompt-tuning"), tiny.batch("llama")
    del inputs["labels"]
    wanted = model(**inputs, prompt_names="prompt-tuning").logits

    def fail(*_: Any) -> None:
        raise KeyError("a hook of the user's")

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    for call in (model, model.generate, model.model):
        more: dict[str, Any] = {} if call is model.model else {"prompt_names": "prefix-tuning"}
        more |= {"max_new_tokens": 2} if call == model.generate else {}
        with pytest.raises(KeyError, match="hook of the user's"):
            call(**inputs, **more)
        assert state_of(model).scope is None
    handle.remove()
    assert torch.equal(model(**inputs, prompt_names="prompt-tuning").logits, wanted)


def test_copies_under_data_parallel_are_refused() -> None:
    model = tiny.attached("bert", "prefix-tuning")
    with pytest.raises(sp.SoftPromptError, match="DataParallel copies a model without"):
        model._replicate_for_data_parallel()


def test_scopes_end_with_their_calls() -> None:
    model, inputs = tiny.attached("bert", "prefix-tuning"), tiny.batch("bert")
    state = state_of(model)
    model(**inputs)
    assert state.scope is None
    with pytest.raises(sp.SoftPromptError):
        model(**inputs, prompt_names=["prefix-tuning"])
    with pytest.raises(sp.SoftPromptError, match="without input_ids"):
        model(attention_mask=inputs["attention_mask"])
    assert state.scope is None and state.current is None


def test_a_scope_is_that_of_its_model() -> None:
    one, other = tiny.attached("bert", "prefix-tuning"), tiny.attached("bert", "prompt-tuning")
    with state_of(one).under("prefix-tuning"), state_of(other).under("prompt-tuning"):
        assert list(state_of(one).surrounding.prompts) == ["prefix-tuning"]
        assert list(state_of(other).surrounding.prompts) == ["prompt-tuning"]
        assert state_of(copy.deepcopy(one)).surrounding is None
        with state_of(one).activate(None):
            assert state_of(one).current is None and list(state_of(other).scope.pass_.prompts) == ["prompt-tuning"]


def test_calls_past_the_forward_use_the_active_prompt_and_end_with_it() -> None:
    model, inputs = tiny.attached("t5", "prompt-tuning"), tiny.batch("t5")
    del inputs["labels"]
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
    assert list(encoded._softprompt_pass.prompts) == ["prompt-tuning"] and state_of(model).scope is None
    with pytest.raises(sp.SoftPromptError, match="without input_ids"):
        model.get_encoder()(attention_mask=inputs["attention_mask"])
    assert state_of(model).scope is None
