"""Model cards: what a saved prompt is, its scores, the command that trained it and how to use it.

Everything in a card comes from the prompt's config, whose texts (labels, names of tasks, paths) may be anybody's. They
are put on one line each, escaped in Markdown, and quoted by the YAML writer in the front matter.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData

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
}
_KINDS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "choice": "multiple-choice",
    "span": "question-answering",
    "tagging": "token-classification",
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
    config = _one_line(config)
    meta, backbone = _meta(config), config["backbone"]
    base, method = _shown(backbone), config["method"]
    trained, frozen = count_parameters(config)
    sizes = f"{trained:,} parameters" + (f" (and {frozen:,} numbers that stay as they are)" if frozen else "")
    name = place if _HUB_ID.fullmatch(place) else str(config.get("name") or method)
    results = _results(meta)
    index: dict[str, Any] = {"model_name": name, "eval_results": results} if results else {}
    plain = {key: value for key, value in meta.items() if isinstance(value, str | int | float)}
    plain = {key: base if key == "model" else value for key, value in plain.items() if key not in _NOT_IN_TABLE}
    versions = {"softprompts": config.get("softprompts_version", ""), **_mapping(meta.get("versions"))}
    facts = [("method", method), *_settings(config["config"])]
    facts += [("labels", ", ".join(config["labels"]))] if config.get("labels") else []
    facts += [*plain.items(), *versions.items()]
    lines = [
        _front("softprompts", backbone, [method], **_about_task(meta), **index),
        f"# {_text(method)} for {_text(base)}",
        "",
        f"A soft prompt of {sizes} for the frozen {_code(base)} ({_code(backbone.get('class'))}).",
        "",
        *_about_methods(config),
        *_scores(config),
        *_use(meta, place, subfolder),
        *_training(command),
        *("## Settings", "", "| | |", "|---|---|", *(_row(*fact) for fact in facts), ""),
        *_licence(meta, base),
    ]
    return "\n".join(lines)


def index_card(configs: Mapping[str, Mapping[str, Any]], place: str) -> str:
    """Returns the card of a hub repository of several prompts, given the config of each by the name of its folder."""
    configs = _one_line(configs)
    name, first = next(iter(configs.items()))
    front = _front("softprompts", first["backbone"], [config["method"] for config in configs.values()])
    lines = [
        front,
        "# Soft prompts",
        "",
        _row("folder", "method", "task", "score", "parameters"),
        "|---|---|---|---|---|",
    ]
    for folder, config in configs.items():
        meta = _meta(config)
        score = f"{meta['score']:.4f}" if isinstance(meta.get("score"), int | float) else ""
        lines.append(_row(folder, config["method"], meta.get("task", ""), score, f"{count_parameters(config)[0]:,}"))
    load = f"model = sp.load({json.dumps(place)}, subfolder={json.dumps(name)})"
    return "\n".join([*lines, "", "```python", "import softprompts as sp", "", load, "```", ""])


def materialized_card(config: Mapping[str, Any]) -> str:
    """Returns the card of a model directory that a prompt was built into, given the config of the prompt."""
    config = _one_line(config)
    meta, base = _meta(config), _shown(config["backbone"])
    lines = [
        _front("transformers", config["backbone"], [config["method"]], "finetune", **_about_task(meta)),
        f"# {_text(base)} with a prompt ({_text(config['method'])})",
        "",
        f"A prompt that was trained with softprompts {_text(config.get('softprompts_version', ''))} is part of this "
        "model and its tokenizer: load both with plain transformers.",
        "",
        *_about_methods(config),
        *_scores(config),
    ]
    if any(_has_tokens(part) for part in _parts(config)):
        lines += [
            "The tokenizer puts the prompt into every text, as special tokens of the vocabulary; it must be this "
            "directory's own. Text that is to be predicted, as a sequence-to-sequence model's targets, is encoded with "
            "`add_special_tokens=False`. `generate` never writes these tokens.",
            "",
        ]
    return "\n".join([*lines, *_licence(meta, base)])


def adapter_card(kind: str, backbone: Mapping[str, Any], method: str) -> str:
    """Returns the card of a prompt that was written as an adapter of the PEFT library, of the ``peft_type`` `kind`."""
    lines = [
        _front("peft", backbone, [method]),
        f"# {kind} for {_text(_shown(backbone) or 'a frozen model')}",
        *("", f"Trained with softprompts ({_text(method)}), written for PEFT:", "", "```python"),
        "from peft import PeftModel",
        'model = PeftModel.from_pretrained(base_model, "this folder")',
        *("```", ""),
    ]
    return "\n".join(lines)


def count_parameters(config: Mapping[str, Any]) -> tuple[int, int]:
    """Counts the numbers of a saved prompt that train, its head included, and those that do not (frozen sources)."""
    frozen = set(config.get("frozen") or ())
    sizes = {key: torch.Size(shape).numel() for key, (_, shape) in config["tensors"].items()}
    fixed = sum(size for key, size in sizes.items() if key in frozen)
    return sum(sizes.values()) - fixed, fixed


# --- front matter ---------------------------------------------------------------------------------------------------


def _front(
    library: str, backbone: Mapping[str, Any], names: Iterable[str], relation: str = "adapter", **more: Any
) -> str:
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


def _about_methods(config: Mapping[str, Any]) -> list[str]:
    """Returns a paragraph for each method: the equation and the paper."""
    known, lines = methods(), []
    for part in _parts(config):
        source = part.get("source") if part["method"] == "folded" else None
        if source:
            lines += [f"It was trained with {_text(source)}, and folded to what is needed to use it.", ""]
        for name in str(source or part["method"]).split(JOINT):
            about = known[name].about if name in known else None
            if about is not None:
                paper, _, address = about.paper.rpartition(", http")
                link = f"{_text(paper)}, <http{address}>" if paper else _text(about.paper)
                lines += [f"**{_text(name)}**: {_code(about.equation)}. {link}.", ""]
    return lines


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the settings of a method that are not None; those of a composition's parts behind the part's name."""
    for key, value in settings.items():
        if key == "parts" and isinstance(value, list):
            for part in map(_mapping, value):
                yield from ((f"{part.get('method')}.{name}", one) for name, one in _settings(part) if name != "method")
        elif value is not None:
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def _scores(config: Mapping[str, Any]) -> list[str]:
    """Returns the task, its template, and a table of scores by split."""
    meta = _meta(config)
    task, form = meta.get("task"), _mapping(meta.get("task_form"))
    lines = [f"Task: {_text(task)}."] if task else []
    if task and form:
        # Labels are those of a head, which only encoders have.
        template = form.get("source") if config.get("labels") is None else form.get("reading")
        pieces = [str(piece) for piece in (template if isinstance(template, list) else [template]) if piece]
        lines += [f"Template: {', '.join(map(_code, pieces))}."] if pieces else []
    scores = {split: _metrics(meta, key) for split, (key, _) in _SPLITS.items() if _metrics(meta, key)}
    if not scores:
        return [*lines, ""] if lines else []
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    lines += ["", "## Scores", "", _row("split", "rows", "seed", *names), "|---|---|---|" + "---|" * len(names)]
    for split, values in scores.items():
        cells = [f"{values[name]:.4f}" if name in values else "" for name in names]
        lines.append(_row(split, meta.get(_SPLITS[split][1]) or "", meta.get("seed", ""), *cells))
    return [*lines, "", "One run with one seed; other seeds differ.", ""]


def _use(meta: Mapping[str, Any], place: str, subfolder: str | None) -> list[str]:
    more = "" if subfolder is None else f", subfolder={json.dumps(subfolder)}"
    lines = ["## How to use it", "", "```python", "import softprompts as sp", ""]
    lines += [f"model = sp.load({json.dumps(place)}{more})  # the backbone with this prompt on it", "```", ""]
    if isinstance(meta.get("task_form"), Mapping) and subfolder is None:
        folder = shlex.quote(place) if place != HERE else "FOLDER"
        lines += ["```bash", f'softprompts predict {folder} "..."', "```", ""]
    return lines


def _training(command: Any) -> list[str]:
    """Returns the recorded command, unless it is something else: a line that could end the code block, for instance."""
    if not isinstance(command, str) or len(command.splitlines()) != 1 or not command.startswith("softprompts "):
        return []
    return ["## How it was trained", "", "```bash", command, "```", ""]


def _stated_licence(meta: Mapping[str, Any]) -> str | None:
    licence = meta.get("license")
    return licence if isinstance(licence, str) and licence else None


def _licence(meta: Mapping[str, Any], base: str) -> list[str]:
    licence = _stated_licence(meta)
    stated = "None was stated for this prompt." if licence is None else f"{_text(licence)}."
    return ["## Licence", "", f"{stated} Whoever uses it also needs {_code(base)}, which has a licence of its own.", ""]


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


def _row(*cells: Any) -> str:
    """Returns a row of a Markdown table."""
    return f"| {' | '.join(map(_text, cells))} |"
