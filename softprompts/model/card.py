"""Model cards: what a saved prompt is, how well it does, how it was trained and how it is used, for people and the hub.

Everything in a card comes from the prompt's config, in which texts are other people's: labels, names of tasks, paths.
They are escaped in Markdown, quoted in YAML, and never part of a code block unless quoted for the shell.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
import yaml

from softprompts.backbones import packaged
from softprompts.storage.names import JOINT

HERE = "this folder"  # what a card calls the place of a prompt that is not on the hub
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MARKS = re.compile(r"[\\`*\[\]<>#|!~&{}$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# The hub's names of metrics and of tasks, where they are not ours.
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
# What `softprompts train` calls what is in a run's record, by the record's names.
_TASK_FLAGS = {
    "template": "--template",
    "split": "--split",
    "answering": "--answer",
    "invalid": "--invalid",
    "max_train": "--max-train",
    "max_validation": "--max-validation",
    "few_shot": "--few-shot",
    "few_shot_seed": "--few-shot-seed",
    "few_shot_protocol": "--few-shot-protocol",
}
_FILE_FLAGS = {
    "kind": "--kind",
    "text": "--text",
    "text_pair": "--text-pair",
    "label": "--label",
    "choices": "--choices",
    "labels": "--labels",
    "label_words": "--label-words",
}
_TRAINING_FLAGS = {
    "max_steps": "--steps",
    "epochs": "--epochs",
    "batch_size": "--batch-size",
    "gradient_accumulation_steps": "--accumulate",
    "learning_rate": "--lr",
    "optimizer": "--optimizer",
    "schedule": "--schedule",
    "warmup_steps": "--warmup",
    "weight_decay": "--weight-decay",
    "eval_every": "--eval-every",
    "patience": "--patience",
    "seed": "--seed",
    "bf16": "--bf16",
    "backbone_dropout": "--backbone-dropout",
}
_USUAL: dict[str, Any] = {
    "split": "official",
    "kind": "classification",
    "text": "text",
    "label": "label",
    "few_shot_protocol": "even",
    "epochs": 3,
    "batch_size": 32,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw",
    "schedule": "linear",
    "max_grad_norm": 1.0,
    "warmup_steps": 0,
    "seed": 0,
}


def card(config: Mapping[str, Any], place: str = HERE, subfolder: str | None = None) -> str:
    """A model card from what was saved.

    Args:
        config: what ``softprompt_config.json`` holds.
        place: what to load it by: a hub id, or `HERE`.
        subfolder: its folder within a hub repository.
    """
    meta, backbone = _meta(config), config["backbone"]
    base = _shown(backbone)
    trained, frozen = counted(config)
    sizes = f"{trained:,} parameters" + (f" (and {frozen:,} numbers that stay as they are)" if frozen else "")
    lines = [
        _front(config, place),
        f"# {_text(config['method'])} for {_text(base)}",
        "",
        f"A soft prompt of {sizes} for the frozen {_code(base)} ({_code(backbone.get('class'))}).",
        *_facts_of_methods(config),
        *_scores(config),
        *_use(config, place, subfolder),
        *_training(meta),
        "## Settings",
        "",
        "| | |",
        "|---|---|",
        f"| method | {_text(config['method'])} |",
        *(f"| {_text(key)} | {_text(value)} |" for key, value in _told(config["config"])),
    ]
    if config.get("labels"):
        lines.append(f"| labels | {_text(', '.join(config['labels']))} |")
    plain = {key: value for key, value in meta.items() if isinstance(value, str | int | float)}
    for told in ("license", "max_length_asked", "method"):
        plain.pop(told, None)
    if "model" in plain:
        plain["model"] = base
    lines += [f"| {_text(key)} | {_text(value)} |" for key, value in plain.items()]
    versions = {"softprompts": config.get("softprompts_version", ""), **_dict(meta.get("versions"))}
    lines += [f"| {_text(name)} | {_text(version)} |" for name, version in versions.items()]
    lines += ["", "## Licence", "", _licence(meta, base), ""]
    return "\n".join(lines)


def _told(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a method was told, of a composition each part behind its name."""
    for key, value in settings.items():
        if key == "parts" and isinstance(value, list):
            for part in map(_dict, value):
                yield from ((f"{part.get('method')}.{name}", one) for name, one in _told(part) if name != "method")
        elif value is not None:
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def index_card(configs: Mapping[str, Mapping[str, Any]], place: str) -> str:
    """A card for a repository of several prompts, each in a folder of its own.

    Args:
        configs: what their configs hold, by the name of the folder.
        place: the hub id.
    """
    first = next(iter(configs.values()))
    front = _dumped({"library_name": "softprompts", **_base(first["backbone"]), "tags": _tags(configs.values())})
    lines = [front, "# Soft prompts", "", "| folder | method | task | score | parameters |", "|---|---|---|---|---|"]
    for name, config in configs.items():
        meta = _meta(config)
        score = meta.get("score")
        shown = f"{score:.4f}" if isinstance(score, int | float) else ""
        cells = (_text(name), _text(config["method"]), _text(meta.get("task", "")), shown, f"{counted(config)[0]:,}")
        lines.append(f"| {' | '.join(cells)} |")
    name = next(iter(configs))
    load = f"model = sp.load({json.dumps(place)}, subfolder={json.dumps(name)})"
    lines += ["", "```python", "import softprompts as sp", "", load, "```", ""]
    return "\n".join(lines)


def materialized_card(config: Mapping[str, Any]) -> str:
    """A card for a model directory that a prompt was built into.

    Args:
        config: what the prompt's ``softprompt_config.json`` would hold.
    """
    meta, base = _meta(config), _shown(config["backbone"])
    front = {"library_name": "transformers", **_base(config["backbone"], "finetune"), **_about_task(meta)}
    front |= {"tags": _tags([config]), **_licence_of(meta)}
    added = sum(part["num_virtual_tokens"] for part in _parts(config) if part.get("_tokens"))
    lines = [
        _dumped({key: value for key, value in front.items() if value}),
        f"# {_text(base)} with a prompt ({_text(config['method'])})",
        "",
        f"A prompt that was trained with softprompts {_text(config.get('softprompts_version', ''))} is part of this "
        "model and its tokenizer: load both with plain transformers.",
        "",
        *_facts_of_methods(config)[1:],
        *_scores(config),
    ]
    if added:
        lines += [
            "The tokenizer puts the prompt into every text, as special tokens of the vocabulary; it must be this "
            "directory's own. Text that is to be predicted, as a sequence-to-sequence model's targets, is encoded with "
            "`add_special_tokens=False`. `generate` never writes these tokens.",
            "",
        ]
    lines += ["## Licence", "", _licence(meta, base), ""]
    return "\n".join(lines)


def counted(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many numbers a saved prompt trains, its head included, and how many stay as they are (frozen sources)."""
    frozen = set(config.get("frozen") or ())
    sizes = {key: torch.Size(shape).numel() for key, (_, shape) in config["tensors"].items()}
    still = sum(size for key, size in sizes.items() if key in frozen)
    return sum(sizes.values()) - still, still


# --- what is said ---------------------------------------------------------------------------------------------------


def _meta(config: Mapping[str, Any]) -> dict[str, Any]:
    return _dict(config.get("metadata"))


def _dict(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _shown(backbone: Mapping[str, Any]) -> str:
    """The backbone's name; of a local folder its own name, as a card is for others."""
    name = str(backbone.get("name") or backbone.get("model_type") or "")
    return name if _HUB_ID.fullmatch(name) or not name else PurePath(name).name or name


def _base(backbone: Mapping[str, Any], relation: str = "adapter") -> dict[str, str]:
    name = str(backbone.get("name") or "")
    name = packaged.HUB_NAME if packaged.is_alias(name) else name
    return {"base_model": name, "base_model_relation": relation} if _HUB_ID.fullmatch(name) else {}


def _tags(configs: Any) -> list[str]:
    names = [name for config in configs for name in str(config["method"]).split(JOINT)]
    return list(dict.fromkeys(["soft-prompt", *names]))


def _front(config: Mapping[str, Any], place: str) -> str:
    meta = _meta(config)
    front: dict[str, Any] = {"library_name": "softprompts", **_base(config["backbone"]), "tags": _tags([config])}
    front |= {**_licence_of(meta), **_about_task(meta)}
    scores = _results(meta)
    if scores:
        name = place if _HUB_ID.fullmatch(place) else str(config.get("name") or config["method"])
        front["model-index"] = [{"name": name, "results": scores}]
    return _dumped(front)


def _dumped(front: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(_on_a_line(dict(front)), sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"


def _on_a_line(value: Any) -> Any:
    """The value with its texts on one line each: a line of dashes would end the front matter, quoted or not."""
    if isinstance(value, dict):
        return {_on_a_line(key): _on_a_line(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_on_a_line(one) for one in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def _licence_of(meta: Mapping[str, Any]) -> dict[str, str]:
    given = meta.get("license")
    return {"license": given} if isinstance(given, str) and given else {}


def _licence(meta: Mapping[str, Any], base: str) -> str:
    given = _licence_of(meta).get("license")
    also = f"Whoever uses it also needs {_code(base)}, which has a licence of its own."
    return (f"{_text(given)}. " if given else "None was stated for this prompt. ") + also


def _about_task(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub is told of the task: language, data set, metrics."""
    from softprompts.tasks.catalog import task_names

    found: dict[str, Any] = {}
    if meta.get("task") in dict(task_names()):
        found["language"] = "en"  # all built-in tasks
    if dataset := _dataset(meta):
        found["datasets"] = [dataset]
    names = [_METRICS.get(name, name) for name in _metrics(meta, "metrics") or _metrics(meta, "test_metrics")]
    if names:
        found["metrics"] = list(dict.fromkeys(names))
    return found


def _dataset(meta: Mapping[str, Any]) -> str | None:
    from softprompts.tasks.hub_rows import on_hub

    task = meta.get("task")
    found = on_hub(task) if isinstance(task, str) else None
    return None if found is None else found[0]


def _metrics(meta: Mapping[str, Any], key: str) -> dict[str, float]:
    given = meta.get(key)
    if not isinstance(given, Mapping):
        return {}
    return {str(name): float(value) for name, value in given.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _splits(meta: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {"validation": _metrics(meta, "metrics"), "test": _metrics(meta, "test_metrics")}
    return {split: scores for split, scores in found.items() if scores}


def _results(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores as the hub's index of models has them."""
    form = meta.get("task_form")
    kind = _KINDS.get(str(form.get("kind")) if isinstance(form, Mapping) else "", "text-classification")
    task = str(meta.get("task") or "own data")
    found = []
    for split, scores in _splits(meta).items():
        dataset = {"name": task, "type": _dataset(meta) or "own-data", "split": split}
        metrics = [{"type": _METRICS.get(name, name), "value": value, "name": name} for name, value in scores.items()]
        found.append({"task": {"type": kind}, "dataset": dataset, "metrics": metrics})
    return found


def _parts(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each method in a prompt, with its name."""
    from softprompts.methods.registry import methods

    parts = config["config"].get("parts")
    given = parts if isinstance(parts, list) else [{**config["config"], "method": config["method"]}]
    known = methods()
    found = []
    for part in given:
        cls = known.get(part["method"])
        tokens = part.get("has_tokens", cls is not None and cls.uses_tokens)
        found.append({**part, "_tokens": tokens})
    return found


def _facts_of_methods(config: Mapping[str, Any]) -> list[str]:
    """A paragraph for each method: the equation and the paper."""
    from softprompts.methods.registry import methods

    known, lines = methods(), [""]
    for part in _parts(config):
        name = part["method"]
        source = part.get("source") if name == "folded" else None
        if source:
            lines += [f"It was trained with {_text(source)}, and folded to what is needed to use it.", ""]
        for one in str(source or name).split(JOINT):
            said = known[one].about if one in known else None
            if said is not None:
                lines += [f"**{_text(one)}**: {_code(said.equation)}. {_paper(said.paper)}.", ""]
    return lines


def _paper(said: str) -> str:
    """A paper, with its address as a link."""
    text, _, address = said.rpartition(", http")
    return _text(said) if not text else f"{_text(text)}, <http{address}>"


def _scores(config: Mapping[str, Any]) -> list[str]:
    meta = _meta(config)
    splits = _splits(meta)
    task = meta.get("task")
    lines = [] if not task else [f"Task: {_text(task)}."]
    form = meta.get("task_form")
    if task and isinstance(form, Mapping):
        # Labels are those of a head: an encoder's.
        read = form.get("source") if config.get("labels") is None else form.get("reading")
        templates = [str(one) for one in (read if isinstance(read, list | tuple) else [read]) if one]
        lines += [f"Template: {', '.join(map(_code, templates))}."] if templates else []
    if not splits:
        return [*lines, ""] if lines else []
    names = list(dict.fromkeys(name for scores in splits.values() for name in scores))
    lines += ["", "## Scores", "", f"| split | rows | seed | {' | '.join(map(_text, names))} |"]
    lines.append("|---|---|---|" + "---|" * len(names))
    for split, scores in splits.items():
        rows = meta.get("eval_rows" if split == "validation" else "test_rows")
        cells = [f"{scores[name]:.4f}" if name in scores else "" for name in names]
        lines.append(f"| {split} | {_text(rows or '')} | {_text(meta.get('seed', ''))} | {' | '.join(cells)} |")
    return [*lines, "", "One run with one seed; other seeds differ.", ""]


def _use(config: Mapping[str, Any], place: str, subfolder: str | None) -> list[str]:
    meta = _meta(config)
    more = "" if subfolder is None else f", subfolder={json.dumps(subfolder)}"
    lines = ["## How to use it", "", "```python", "import softprompts as sp", ""]
    lines += [f"model = sp.load({json.dumps(place)}{more})  # the backbone with this prompt on it", "```", ""]
    if isinstance(meta.get("task_form"), Mapping) and subfolder is None:
        where = shlex.quote(place) if place != HERE else "FOLDER"
        lines += ["```bash", f'softprompts predict {where} "..."', "```", ""]
    return lines


def _training(meta: Mapping[str, Any]) -> list[str]:
    command = training_command(meta)
    if command is None:
        return []
    return ["## How it was trained", "", "```bash", command, "```", ""]


def training_command(meta: Mapping[str, Any]) -> str | None:
    """The command that trains a prompt with this record again; None where there is none, or the record lacks something.

    Files of one's own stand there as FILE, as their places are nobody else's business.

    Args:
        meta: what training saves with a prompt.
    """
    data, training, method = meta.get("data"), meta.get("training"), meta.get("method")
    if not isinstance(data, Mapping) or not isinstance(training, Mapping) or not isinstance(method, str):
        return None
    model = str(meta.get("model") or "")
    model = model if _HUB_ID.fullmatch(model) or packaged.is_alias(model) else "MODEL"
    words = ["softprompts", "train", "--model", model, "--method", method]
    rest = {key: value for key, value in data.items() if value != _USUAL.get(key)}
    task, flags = rest.pop("task", None), _TASK_FLAGS
    found = meta.get("files")
    places = found if isinstance(found, list) else []
    if task is not None or "task" in places:
        words += ["--task", "FILE.yaml" if task is None else str(task)]
    else:
        words += ["--data", "FILE"]
        flags = {**_TASK_FLAGS, **_FILE_FLAGS}
    words += ["--data-dir", "FOLDER"] if "data_dir" in places else []
    for split in ("validation", "test"):
        words += [f"--{split}", "FILE"] if split in places else []
    for key, flag in flags.items():
        words += _flag(flag, rest.pop(key, None))
    if meta.get("max_length_asked", 256) != 256:
        words += _flag("--max-length", meta["max_length_asked"])
    words += _flag("--quantize", meta.get("quantize"))
    words += _settings(method, meta.get("settings"))
    how = {key: value for key, value in training.items() if value != _USUAL.get(key)}
    for component, rate in dict(how.pop("learning_rates", None) or {}).items():
        words += ["--lr-of", f"{component}={rate}"]
    how.pop("compile", None)
    for key, flag in _TRAINING_FLAGS.items():
        value = how.pop(key, None)
        # A number that is not the usual one is told, and 0 too: no weight decay is another run than the method's own.
        words += [flag, str(value)] if _is_number(value) else _flag(flag, value)
    if any(value not in (None, 0, 0.0) for value in (*rest.values(), *how.values())):
        return None  # something that only the library can be told
    if any(len(word.splitlines()) > 1 for word in words):
        return None  # nothing to be shown on a line
    return " ".join(map(shlex.quote, words))


def _flag(flag: str, value: Any) -> list[str]:
    if value in (None, False, [], 0) and value is not True:
        return []
    if value is True:
        return [flag]
    return [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]


def _settings(method: str, settings: Any) -> list[str]:
    """What the method was told beyond its defaults; files of sources as FILE."""
    from softprompts.methods.registry import methods

    known, words = methods(), []
    parts = settings.get("parts") if isinstance(settings, Mapping) else None
    given: Sequence[Any] = parts if isinstance(parts, list) else [{**(settings or {}), "method": method}]
    for part in given:
        name = part.get("method")
        if name not in known:
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(known[name])}
        for key, value in part.items():
            default = defaults.get(key)
            usual = list(default) if isinstance(default, tuple) else default
            if key not in defaults or value == usual:
                continue
            said = json.dumps(value) if not isinstance(value, str) else value
            said = "FILE" if _is_hash(value) else said
            words += ["--set", f"{f'{name}.' if len(given) > 1 else ''}{key}={said}"]
    return words


def _is_hash(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return bool(each) and all(isinstance(one, str) and re.fullmatch(r"[0-9a-f]{64}", one) for one in each)


# --- other people's texts -------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """A value as one line of plain Markdown text."""
    return _MARKS.sub(r"\\\g<0>", " ".join(str(value).split()))


def _code(value: Any) -> str:
    """A value as code within a line of Markdown; a bar would end the cell of a table."""
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"
