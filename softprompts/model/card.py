"""Model cards: what a saved prompt is, its scores, the command that trained it and how to use it.

The words stand in ``cards/``, as Jinja templates. What they are filled with comes from the prompt's config, whose texts
(labels, names of tasks, paths) may be anybody's. They are put on one line each, escaped in Markdown, and quoted by the
YAML writer in the front matter.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from softprompts.backbones import packaged
from softprompts.methods.registry import methods
from softprompts.storage.names import JOINT
from softprompts.tasks.catalog import task_names
from softprompts.tasks.hub_rows import on_hub

HERE = "this folder"  # where a prompt is, if it is not on the hub
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MARKS = re.compile(r"[\\`*\[\]<>#|!~&{}$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_FRONT = ["library_name", "base_model", "base_model_relation", "tags", "license", "language", "datasets", "metrics"]
# The hub's names of metrics and of kinds of tasks, where they differ from ours.
_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "em": "exact_match",
    "token_f1": "f1",
    "macro_f1": "f1",
    "f1a": "f1",
    "question_em": "exact_match",
    "seqeval_f1": "seqeval",
    "tag_accuracy": "accuracy",
    **dict.fromkeys(("rouge1", "rouge2", "rougeL"), "rouge"),
}
_KINDS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "choice": "multiple-choice",
    "span": "question-answering",
    "tagging": "token-classification",
    "text": "text-generation",
    "chat": "text-generation",
}
_SPLITS = {"validation": ("metrics", "eval_rows"), "test": ("test_metrics", "test_rows")}
_NOT_IN_TABLE = ("license", "max_length_asked", "method", "command")


def card(config: Mapping[str, Any], place: str = HERE, subfolder: str | None = None) -> str:
    """Returns the model card of a saved prompt.

    Args:
        config: the content of ``softprompt_config.json``.
        place: the hub id that it is loaded by, or `HERE`.
        subfolder: its folder within a hub repository.
    """
    command = _meta(config).get("command")
    # Any other text could end the code block, for instance.
    shows_command = isinstance(command, str) and command.startswith("softprompts ") and len(command.splitlines()) == 1
    config = _one_line(config)
    meta, backbone, method = _meta(config), config["backbone"], config["method"]
    trained, frozen = count_parameters(config)
    name = place if _HUB_ID.fullmatch(place) else str(config.get("name") or method)
    results = _results(meta)
    index: dict[str, Any] = {"model_name": name, "eval_results": results} if results else {}
    plain = {key: value for key, value in meta.items() if isinstance(value, str | int | float)}
    plain |= {"model": _shown(backbone)} if "model" in plain else {}
    facts = [("method", method), *_settings(config["config"])]
    facts += [("labels", ", ".join(config["labels"]))] if config.get("labels") else []
    facts += [fact for fact in plain.items() if fact[0] not in _NOT_IN_TABLE]
    facts += {"softprompts": config.get("softprompts_version", ""), **_mapping(meta.get("versions"))}.items()
    return _TEMPLATES.get_template("prompt.md.jinja").render(
        _about(config),
        front=_front("softprompts", backbone, [method], **_about_task(meta), **index),
        model_class=backbone.get("class"),
        trained=f"{trained:,}",
        frozen=f"{frozen:,}" if frozen else "",
        place=place,
        subfolder=subfolder,
        predicts=isinstance(meta.get("task_form"), Mapping) and subfolder is None,
        folder=shlex.quote(place) if place != HERE else "FOLDER",
        command=command if shows_command else "",
        facts=facts,
    )


def index_card(configs: Mapping[str, Mapping[str, Any]], place: str) -> str:
    """Returns the card of a hub repository of several prompts, given the config of each by the name of its folder."""
    configs, rows = _one_line(configs), []
    for folder, config in configs.items():
        meta = _meta(config)
        score = f"{meta['score']:.4f}" if isinstance(meta.get("score"), int | float) else ""
        rows.append((folder, config["method"], meta.get("task", ""), score, f"{count_parameters(config)[0]:,}"))
    name, first = next(iter(configs.items()))
    front = _front("softprompts", first["backbone"], [config["method"] for config in configs.values()])
    return _TEMPLATES.get_template("index.md.jinja").render(front=front, rows=rows, place=place, subfolder=name)


def materialized_card(config: Mapping[str, Any]) -> str:
    """Returns the card of a model directory that a prompt was built into, given the config of the prompt."""
    config = _one_line(config)
    front = _front("transformers", config["backbone"], [config["method"]], "finetune", **_about_task(_meta(config)))
    version, has_tokens = config.get("softprompts_version", ""), any(map(_has_tokens, _parts(config)))
    template = _TEMPLATES.get_template("materialized.md.jinja")
    return template.render(_about(config), front=front, version=version, has_tokens=has_tokens)


def adapter_card(kind: str, backbone: Mapping[str, Any], method: str) -> str:
    """Returns the card of a prompt that was written as an adapter of the PEFT library, of the ``peft_type`` `kind`."""
    front = _front("peft", backbone, [method])
    template = _TEMPLATES.get_template("adapter.md.jinja")
    return template.render(front=front, kind=kind, base=_shown(backbone), method=method)


def count_parameters(config: Mapping[str, Any]) -> tuple[int, int]:
    """Counts the numbers of a saved prompt that train, its head included, and those that do not (frozen sources)."""
    frozen = set(config.get("frozen") or ())
    sizes = {key: torch.Size(shape).numel() for key, (_, shape) in config["tensors"].items()}
    fixed = sum(size for key, size in sizes.items() if key in frozen)
    return sum(sizes.values()) - fixed, fixed


# --- front matter ---------------------------------------------------------------------------------------------------


def _front(library: str, backbone: Mapping[str, Any], names: list[str], relation: str = "adapter", **more: Any) -> str:
    base = str(backbone.get("name") or "")
    base = packaged.HUB_NAME if packaged.is_alias(base) else base
    if _HUB_ID.fullmatch(base):
        more |= {"base_model": base, "base_model_relation": relation}
    tags = ["soft-prompt", *(part for name in names for part in str(name).split(JOINT))]
    text = ModelCardData(library_name=library, tags=tags, **more).to_yaml(original_order=_FRONT)
    return f"---\n{text}\n---\n"


def _about_task(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the licence and the task's language, data set and metrics for the front matter, None if unknown."""
    dataset = _dataset(meta)
    metrics = [_METRICS.get(name, name) for name in _metrics(meta, "metrics") or _metrics(meta, "test_metrics")]
    return {
        "license": _stated_licence(meta),
        "language": "en" if meta.get("task") in dict(task_names()) else None,  # of all built-in tasks
        "datasets": None if dataset is None else [dataset],
        "metrics": list(dict.fromkeys(metrics)) or None,
    }


def _results(meta: Mapping[str, Any]) -> list[EvalResult]:
    kind = str(_mapping(meta.get("task_form")).get("kind"))
    return [
        EvalResult(
            task_type=_KINDS.get(kind, "text-classification"),
            dataset_type=_dataset(meta) or "own-data",
            dataset_name=str(meta.get("task") or "own data"),
            dataset_split=split,
            metric_type=_METRICS.get(name, name),
            metric_name=name,
            metric_value=value,
        )
        for split, (metrics, _) in _SPLITS.items()
        for name, value in _metrics(meta, metrics).items()
    ]


def _dataset(meta: Mapping[str, Any]) -> str | None:
    task = meta.get("task")
    place = on_hub(task) if isinstance(task, str) else None
    return None if place is None else place[0]


def _metrics(meta: Mapping[str, Any], key: str) -> dict[str, float]:
    """Returns the finite numbers among the metrics under a key."""
    values = _mapping(meta.get(key)).items()
    numbers = {name: value for name, value in values if isinstance(value, int | float) and not isinstance(value, bool)}
    return {str(name): float(value) for name, value in numbers.items() if abs(value) < float("inf")}


# --- sections -------------------------------------------------------------------------------------------------------


def _parts(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of each method of a prompt, with the method's name."""
    parts = config["config"].get("parts")
    return parts if isinstance(parts, list) else [{**config["config"], "method": config["method"]}]


def _has_tokens(part: Mapping[str, Any]) -> bool:
    cls = methods().get(part["method"])
    tokens = part.get("has_tokens", cls is not None and cls.uses_tokens)
    return bool(tokens and part["num_virtual_tokens"])


def _about(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the templates tell of a prompt: its methods with their papers, its task, scores and licence."""
    meta, known, parts = _meta(config), methods(), []
    for part in _parts(config):
        source = part.get("source") if part["method"] == "folded" else None
        names = [name for name in str(source or part["method"]).split(JOINT) if name in known]
        parts.append((source, [(name, known[name].about) for name in names if known[name].about is not None]))
    task, form = meta.get("task"), _mapping(meta.get("task_form"))
    # Labels are those of a head, which only encoders have.
    template = form.get("source") if config.get("labels") is None else form.get("reading")
    pieces = [str(piece) for piece in (template if isinstance(template, list) else [template]) if piece]
    values = {split: _metrics(meta, key) for split, (key, _) in _SPLITS.items()}
    metrics = list(dict.fromkeys(name for numbers in values.values() for name in numbers))
    scores = []
    for split, numbers in values.items():
        cells = [f"{numbers[name]:.4f}" if name in numbers else "" for name in metrics]
        scores += [(split, meta.get(_SPLITS[split][1]) or "", meta.get("seed", ""), *cells)] if numbers else []
    return {
        "method": config["method"],
        "base": _shown(config["backbone"]),
        "parts": parts,
        "task": task,
        "template": pieces if task else [],
        "metrics": metrics,
        "scores": scores,
        "licence": _stated_licence(meta),
    }


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the settings of a method that are not None; those of a composition's parts behind the part's name."""
    for key, value in settings.items():
        if key == "parts" and isinstance(value, list):
            for part in map(_mapping, value):
                yield from ((f"{part.get('method')}.{name}", one) for name, one in _settings(part) if name != "method")
        elif value is not None:
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def _stated_licence(meta: Mapping[str, Any]) -> str | None:
    licence = meta.get("license")
    return licence if isinstance(licence, str) and licence else None


def _shown(backbone: Mapping[str, Any]) -> str:
    """Returns the backbone's name; of a local folder only the last part, as a card is for others."""
    name = str(backbone.get("name") or backbone.get("model_type") or "")
    return name if _HUB_ID.fullmatch(name) or not name else PurePath(name).name or name


# --- texts ----------------------------------------------------------------------------------------------------------


def _meta(config: Mapping[str, Any]) -> dict[str, Any]:
    return _mapping(config.get("metadata"))


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _one_line(value: Any) -> Any:
    """Returns a JSON value with each of its texts on one line."""
    if isinstance(value, Mapping):
        return {_one_line(key): _one_line(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_one_line(inner) for inner in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def _text(value: Any) -> str:
    """Escapes a value for a line of Markdown text."""
    return _MARKS.sub(r"\\\g<0>", str(value))


def _code(value: Any) -> str:
    """Returns a value as code within a line of Markdown."""
    return f"`{str(value).replace('`', chr(39))}`"


def _paper(text: str) -> str:
    """Returns a paper as Markdown, with a link where the text ends with an address."""
    paper, _, address = text.rpartition(", http")
    return f"{_text(paper)}, <http{address}>" if paper else _text(text)


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("cards")),
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"text": _text, "code": _code, "paper": _paper, "json": json.dumps}
