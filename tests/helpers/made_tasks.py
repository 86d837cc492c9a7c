"""The made tasks, by the method that each is about. Their words are ids without meaning, as the models are random."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from typing import Any

import torch
from made import FIRST, Arm, MadeTask, Outcome, Row, bert

import softprompts as sp
from softprompts.injection.prompt import Prompt
from softprompts.methods.contract import Method, Rows
from softprompts.methods.selective_prefix import mean_cosine
from softprompts.soft_prompt import SoftPrompt

GOOD, BAD, FILL = range(10, 12), range(14, 16), range(20, 60)
SEARCH = (1 / 3, 1.0, 3.0)
KINDS = (2, 3)  # the tokens that say of which kind a row is


def rewire(method: Method, **cut: Any) -> None:
    """Changes what a method hands over."""
    made = method.forward

    def forward(rows: Rows | None = None) -> SoftPrompt:
        return dataclasses.replace(made(rows), **cut)

    method.forward = forward  # type: ignore[method-assign]


# --- Rows of two kinds, that need opposite answers to the same words --------------------------------------------------


def blind() -> Any:
    """A model whose layers do not read which kind a row is of: it stands in two dimensions that no weight is for."""
    model = bert(seed=1)
    inputs = model.bert.embeddings
    words = inputs.word_embeddings.weight.data
    for table in (words, inputs.position_embeddings.weight.data, inputs.token_type_embeddings.weight.data):
        table[:, :2] = 0
    words[list(KINDS)] = 0
    words[KINDS[0], :2] = torch.tensor([20.0, -20.0])  # of mean zero, so that normalising moves no other dimension
    words[KINDS[1], :2] = torch.tensor([-20.0, 20.0])
    for layer in model.bert.encoder.layer:
        attention = layer.attention
        for reads in (attention.self.query, attention.self.key, attention.self.value, layer.intermediate.dense):
            reads.weight.data[:, :2] = 0
        for writes in (attention.output.dense, layer.output.dense):
            writes.weight.data[:2] = 0
            writes.bias.data[:2] = 0
    return model


def two_kinds(draw: random.Random) -> Row:
    """A good or a bad word, the kind, and others; the label is whether the word is good, or the opposite."""
    kind, good = draw.randrange(2), draw.randrange(2)
    ids = [KINDS[kind], draw.choice(GOOD if good else BAD), *draw.choices(FILL, k=3)]
    draw.shuffle(ids)
    return ids, good ^ kind


def multi_mask(masks: int, routes: str = "learned") -> Arm:
    config = sp.MultiMaskConfig(num_virtual_tokens=8, num_masks=masks, router_dropout=0.0, routes=routes)
    return Arm(config, 0.1, {"masks": 0.3, "router": 0.003})


MULTI_MASK = MadeTask(
    "two kinds of rows with opposite answers, which the frozen layers cannot tell apart",
    blind,
    two_kinds,
    {
        "on": multi_mask(2),
        "off": multi_mask(1),
        "disconnected": multi_mask(2, "uniform"),
        "shuffled": multi_mask(2, "shuffled"),
    },
    steps=200,
)


def without_input(prompt: Prompt) -> None:
    """Lets a method see nothing of its rows."""
    made = prompt.method.forward

    def forward(rows: Rows | None = None) -> SoftPrompt:
        assert rows is not None
        return made(dataclasses.replace(rows, embeddings=torch.zeros_like(rows.embeddings)))

    prompt.method.forward = forward  # type: ignore[method-assign]


def without_states(prompt: Prompt) -> None:
    """Lets a prefix's gates see nothing of what sites are called with."""
    made = prompt.method.forward

    def forward(rows: Rows | None = None) -> SoftPrompt:
        result = made(rows)
        gate_of = result.gate_of
        assert gate_of is not None
        return dataclasses.replace(
            result, gate_of=lambda place, states, mask: gate_of(place, torch.zeros_like(states), mask)
        )

    prompt.method.forward = forward  # type: ignore[method-assign]


def smop() -> sp.MethodConfig:
    return sp.SMoPConfig(num_virtual_tokens=8, num_prompts=2, router_noise=False, router_dropout=0.0)


def adaptive(hidden_state: bool) -> sp.MethodConfig:
    summary = "mean" if hidden_state else None
    return sp.AdaptivePrefixConfig(num_virtual_tokens=8, hidden_state=hidden_state, summary=summary)


_SMOP_RATES = {"router": 0.03}
SMOP = MadeTask(
    "the same",
    blind,
    two_kinds,
    {
        "on": Arm(smop(), 0.1, _SMOP_RATES),
        "off": Arm(sp.PromptTuningConfig(num_virtual_tokens=16), 0.1),
        "disconnected": Arm(smop(), 0.1, _SMOP_RATES, without_input),
    },
    steps=200,
)
ADAPTIVE = MadeTask(
    "the same",
    blind,
    two_kinds,
    {
        "on": Arm(adaptive(True), 0.1, {"token_gates": 0.1}),
        "off": Arm(adaptive(False), 0.1, {"token_gates": 0.1}),
        "disconnected": Arm(adaptive(True), 0.1, {"token_gates": 0.1}, without_states),
    },
    steps=200,
)


# --- Several different tokens, and tokens that queries leave out ------------------------------------------------------


def same(draw: random.Random) -> Row:
    """Two words, each good or bad, and others; the label is whether both are of one sort: no sum of words says it."""
    first, second = draw.randrange(2), draw.randrange(2)
    ids = [*(draw.choice(GOOD if good else BAD) for good in (first, second)), *draw.choices(FILL, k=2)]
    draw.shuffle(ids)
    return ids, int(first == second)


def short_queries() -> Any:
    """A model whose queries are short, so that all scores are near zero and a softmax looks at all tokens alike."""
    model = bert(seed=1)
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.weight.data *= 0.1
    return model


def collapsed(prompt: Prompt) -> None:
    """Lets all tokens of a prefix start from nearly the same values."""
    table: torch.Tensor = prompt.method.prefix.data  # type: ignore[union-attr, assignment]
    table.copy_(table[:1] + 0.005 * table)


def collapsed_without_loss(prompt: Prompt) -> None:
    """The same, and its term is kept from the loss."""
    collapsed(prompt)
    rewire(prompt.method, penalty=None)


def without_mask(prompt: Prompt) -> None:
    """Keeps the mask from the attention."""
    rewire(prompt.method, selectivity=None)


def alike(result: Outcome) -> float:
    """Mean |cos| between the tokens of an arm's prefixes."""
    prompts = [prompt.method() for prompt in result.prompts]
    cosines = [torch.cat([mean_cosine(p.keys), mean_cosine(p.values)]) for p in prompts]
    return torch.stack(cosines).mean().item()


def selective(alpha: float | None, loss: float) -> sp.MethodConfig:
    return sp.SelectivePrefixConfig(num_virtual_tokens=8, alpha=alpha, selective_loss=loss)


SELECTIVE_LOSS = MadeTask(
    "whether two words are of one sort; all tokens start nearly equal",
    lambda: bert(seed=1),
    same,
    {
        "on": Arm(selective(None, 0.3), 0.1, change=collapsed),
        "off": Arm(selective(None, 0.0), 0.1, change=collapsed),
        "disconnected": Arm(selective(None, 0.3), 0.1, change=collapsed_without_loss),
        "one token": Arm(sp.PrefixTuningConfig(num_virtual_tokens=1), 0.1),
        "not collapsed": Arm(selective(None, 0.0), 0.1),
    },
    steps=250,
    search=SEARCH,
    also={"|cos|": alike},
)
SELECTIVE_MASK = MadeTask(
    "the same, where all scores are near zero",
    short_queries,
    same,
    {
        "on": Arm(selective(16.0, 0.0), 0.1),
        "off": Arm(selective(None, 0.0), 0.1),
        "disconnected": Arm(selective(16.0, 0.0), 0.1, change=without_mask),
    },
    steps=250,
    search=SEARCH,
)


# --- An answer that depends on where a word stands --------------------------------------------------------------------


def placeless() -> Any:
    """A model that does not see where a token stands."""
    model = bert()
    model.bert.embeddings.position_embeddings.weight.data.zero_()
    return model


def word_at_a_place(draw: random.Random) -> Row:
    """Good and bad words; the label is whether the third is a good one."""
    ids = [draw.choice(GOOD if draw.randrange(2) else BAD) for _ in range(6)]
    return ids, int(ids[2] in GOOD)


def without_update(prompt: Prompt) -> None:
    """Keeps a method's change of the input embeddings from the model."""
    rewire(prompt.method, update=None)


_RATES = {"low_rank": 0.02}
_LOW_RANK: dict[str, Any] = {"num_virtual_tokens": 3, "rank": 2, "max_length": 8}
_EPT = sp.EPTConfig(**_LOW_RANK, source_tokens=8, num_spaces=2, space_hidden_size=16)
# 6 * 32 numbers are more than the 3 * 32 + (8 + 32) * 2 of the others, spaces apart.
_AS_MANY = sp.PromptTuningConfig(num_virtual_tokens=6)


def place_task(title: str, config: sp.MethodConfig, **more: Arm) -> MadeTask:
    arms = {
        "on": Arm(config, 0.03, _RATES),
        "off": Arm(_AS_MANY, 0.03),
        "disconnected": Arm(config, 0.03, _RATES, change=without_update),
    }
    return MadeTask(title, placeless, word_at_a_place, {**arms, **more}, steps=150)


DEPT = place_task("the answer is the third word's, to a model that sees no positions", sp.DePTConfig(**_LOW_RANK))
EPT = place_task(
    "the same",
    _EPT,
    **{
        "without fusion": Arm(dataclasses.replace(_EPT, fusion=False), 0.03, _RATES),
        "without spaces": Arm(dataclasses.replace(_EPT, multi_space=False), 0.03, _RATES),
        "without both": Arm(dataclasses.replace(_EPT, fusion=False, multi_space=False), 0.03, _RATES),
    },
)

# --- A prompt of known words, in a model whose words lie in few directions --------------------------------------------

SECRET = (5, 17, 29, 41)


@functools.cache
def few_directions() -> Any:
    """A model whose words lie in 4 of 64 directions, and whose first layer is twice as steep in the others.

    Its head is moved so that with the secret words behind the first token half of the rows get either answer.
    """
    model = bert(width=64, seed=1).eval()
    words = model.bert.embeddings.word_embeddings.weight.data
    basis = torch.linalg.qr(torch.randn(64, 4))[0].T
    words.copy_(torch.randn(len(words), 4) @ basis * 0.8)
    attention = model.bert.encoder.layer[0].attention.self
    steep = 2 * torch.eye(64) - basis.T @ basis
    for layer in (attention.query, attention.key, attention.value):
        layer.weight.data = layer.weight.data @ steep
    draw = random.Random(9)
    model.classifier.bias.data[0] += torch.tensor([margin(model, some_words(draw)) for _ in range(200)]).median()
    return model


def some_words(draw: random.Random) -> list[int]:
    """Five words of the whole vocabulary."""
    return draw.choices(range(4, 64), k=5)


@torch.no_grad()
def margin(model: Any, ids: list[int]) -> float:
    """By how much the model prefers label 1 where the secret words stand in front of the input's."""
    logits = model(torch.tensor([[FIRST, *SECRET, *ids]])).logits[0]
    return float(logits[1] - logits[0])


def answered_by_the_model(draw: random.Random) -> Row:
    """Words, and what the model itself says of them where the secret words stand in front."""
    ids = some_words(draw)
    return ids, int(margin(few_directions(), ids) > 0)


def weights_stay(prompt: Prompt) -> None:
    """Keeps the weights of a superposition where they start."""
    prompt.method.get_parameter("weights").requires_grad_(False)


def superpos(tokens: int) -> sp.MethodConfig:
    return sp.SuperPosConfig(num_virtual_tokens=4, num_sampled_tokens=tokens)


_FIXED_HEAD = {"head": 1e-9}
SUPERPOS = MadeTask(
    "what the model says itself under four words that are to be found; words lie in 4 of 64 directions",
    lambda: copy.deepcopy(few_directions()),
    answered_by_the_model,
    {
        "on": Arm(superpos(16), 1e-4, {"weights": 0.02, **_FIXED_HEAD}),
        "off": Arm(superpos(1), 4e-3, {"weights": 0.02, **_FIXED_HEAD}),
        "disconnected": Arm(superpos(16), 1e-3, _FIXED_HEAD, weights_stay),
        "prompt tuning": Arm(sp.PromptTuningConfig(num_virtual_tokens=4), 4e-3, _FIXED_HEAD),
    },
    steps=200,
    batch_size=16,
    search=(1 / 4, 1.0, 4.0),
)

MADE = {
    "multi-mask": MULTI_MASK,
    "smop": SMOP,
    "adaptive-prefix": ADAPTIVE,
    "selective-prefix (loss)": SELECTIVE_LOSS,
    "selective-prefix (mask)": SELECTIVE_MASK,
    "superpos": SUPERPOS,
    "dept": DEPT,
    "ept": EPT,
}
