"""The documentation's page of models, made from the cells of a sweep."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

from tests.models.oracles import IN_FLOAT32, TOLERANCE, Cell

Key = tuple[str, str, str]
BEFORE = Path(__file__).parent / "before.json"
_SHOWN = {"exact": "exact", "refused": "refused", "WRONG": "**wrong**", "crash": "**crash**", "none": "–"}
_WORST_FIRST = ("WRONG", "crash", "refused", "exact", "none")
_COLUMNS = {"prompt": "input prompt", "prefix": "prefix", "multi-mask": "multi-mask", "selective": "selective prefix"}
_COLUMNS |= {"lora-prompt": "LoRA + prompt", "detach": "detach"}

HEAD = """# Models

Made by `make models` (`python -m tests.models --page docs/models.md`) with transformers {transformers} and
torch {torch}.
Every model class in transformers' auto mappings that takes text (causal, masked and seq2seq language models, sequence
and token classification, question answering, multiple choice, vision- and audio-language models) is built tiny and
random from its own config, in float64 where it can be, and checked with five kinds of prompts:

- **An input prompt that holds the embeddings of tokens acts as these tokens typed in front**: logits, loss, greedy
  generation with and without a cache, a batch of different lengths, an image where one takes the place of tokens.
- **Whatever the prompt, a row is as it is alone**: padded on the right and on the left, beside rows with another prompt
  or with none, with and without a cache; a row without a prompt is the plain model's.
- **Training**: every parameter of a prompt has a gradient; loss and gradients are equal with gradient checkpointing.
- **Detach** gives the plain model back, bit for bit.

A cell is *exact* (the largest difference stands beside it, as a share of the largest number, up to {tolerance} of which
is rounding, as many models compute parts in float32 whatever their weights are; {in32} for those that know float32
only), or *refused* with a sentence that says why. Left out are checks that the plain model cannot pass itself: it does
not generate, has no checkpointing, or its own rows depend on padding.

"""


def page(known: Mapping[Key, Cell]) -> str:
    """The page as Markdown."""
    classes: dict[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for (model_type, name, check), cell in known.items():
        classes[model_type, name][check] = cell
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    lines = [HEAD.format(**versions, tolerance=f"{TOLERANCE:g}", in32=f"{IN_FLOAT32:g}")]
    now = counts(known)
    before = json.loads(BEFORE.read_text()) if BEFORE.exists() else None
    lines.append(_counts(now, before))
    sentences: dict[str, int] = {}
    rows = []
    for (model_type, name), cells in sorted(classes.items()):
        build = cells.get("build")
        if build is not None and build.verdict == "not built":
            continue
        shown = [_cell(cells, column, sentences) for column in _COLUMNS]
        rows.append(f"| {model_type} | {name} | {' | '.join(shown)} |")
    lines.append("## Types and classes\n\nNumbers in brackets are those of the sentences below.\n")
    lines.append(f"| type | class | {' | '.join(_COLUMNS.values())} |\n|{' --- |' * (2 + len(_COLUMNS))}")
    lines += rows
    lines.append("\n## Why some are refused\n")
    lines += [f"{number}. {_plain(sentence)}" for sentence, number in sentences.items()]
    absent = {name: cells["build"].note for name, cells in sorted(classes.items()) if _absent(cells)}
    if absent:
        lines.append("\n## Not built\n\nNo tiny model of these could be made to run.\n")
        lines.append("| type | class | why |\n| --- | --- | --- |")
        lines += [f"| {kind} | {name} | {_plain(why)} |" for (kind, name), why in absent.items()]
    return "\n".join(lines) + "\n"


def counts(known: Mapping[Key, Cell]) -> dict[str, dict[str, int]]:
    """Numbers of types, classes and cells by verdict; a type or class counts by its worst cell."""
    verdicts: dict[str, dict[tuple[str, ...], set[str]]] = {"types": defaultdict(set), "classes": defaultdict(set)}
    cells: Counter[str] = Counter()
    for (model_type, name, check), cell in known.items():
        if check == "build" and cell.verdict == "exact":
            continue
        cells[cell.verdict] += 1
        verdicts["types"][model_type,].add(cell.verdict)
        verdicts["classes"][model_type, name].add(cell.verdict)
    found: dict[str, dict[str, int]] = {"cells": dict(cells)}
    for key, owners in verdicts.items():
        found[key] = dict(Counter(_verdict(given) for given in owners.values()))
    return found


def _verdict(given: set[str]) -> str:
    if given & {"WRONG", "crash"}:
        return "WRONG" if "WRONG" in given else "crash"
    if given <= {"not built"}:
        return "not built"
    if "refused" in given:
        return "refused" if given <= {"refused", "none", "not built"} or "exact" not in given else "partly"
    return "exact"


def _counts(now: Mapping[str, Mapping[str, int]], before: Mapping[str, Mapping[str, int]] | None) -> str:
    names = {
        "exact": "exact in all that the plain model can do",
        "partly": "exact, but for kinds of prompts that are refused",
        "refused": "refused",
        "WRONG": "wrong",
        "crash": "an error that is no sentence",
        "none": "not for the plain model",
        "not built": "not built",
    }
    lines = ["## Counts\n"]
    for key in ("types", "classes", "cells"):
        columns = ["now", "before these checks were there"] if before else ["now"]
        lines.append(f"| {key} | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
        for verdict, words in names.items():
            values = [table.get(key, {}).get(verdict, 0) for table in (now, *([before] if before else []))]
            if any(values) or verdict in ("WRONG", "crash"):
                lines.append(f"| {words} | {' | '.join(f'{value:,}' for value in values)} |")
        totals = [sum(table.get(key, {}).values()) for table in (now, *([before] if before else []))]
        lines.append(f"| all | {' | '.join(f'{value:,}' for value in totals)} |\n")
    return "\n".join(lines)


def _absent(cells: Mapping[str, Cell]) -> bool:
    return "build" in cells and cells["build"].verdict == "not built"


def _cell(cells: Mapping[str, Cell], column: str, sentences: dict[str, int]) -> str:
    """One method of one class: the worst verdict of its checks."""
    own = {check: cell for check, cell in cells.items() if check.partition(":")[0] == column}
    if not own:
        return "–"
    verdicts = {cell.verdict for cell in own.values()}
    worst = next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "none")
    if worst == "refused":
        notes = dict.fromkeys(cell.note for cell in own.values() if cell.verdict == "refused")
        numbers = ", ".join(str(sentences.setdefault(_general(note), len(sentences) + 1)) for note in notes)
        if "exact" not in verdicts:
            return f"refused [{numbers}]"
        checks = ", ".join(check.partition(": ")[2] for check, cell in own.items() if cell.verdict == "refused")
        return f"exact; {checks} refused [{numbers}]"
    if worst in ("WRONG", "crash"):
        failed = [check.partition(": ")[2] for check, cell in own.items() if cell.verdict in ("WRONG", "crash")]
        return f"{_SHOWN[worst]}: {', '.join(failed)}"
    gaps = [cell.difference for cell in own.values() if cell.verdict == "exact" and cell.difference is not None]
    return f"exact ({max(gaps):.0e})" if worst == "exact" and gaps else _SHOWN[worst]


def _general(note: str) -> str:
    """A sentence without the name of the class that it was said of."""
    note = re.sub(r"prefix-tuning|multi-mask|selective-prefix", "a prefix", note)
    words = [word if not word.strip("':,.;").endswith(_CLASS_ENDS) else "this model" for word in note.split()]
    return " ".join(words)


_CLASS_ENDS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Classification", "ForMaskedLM", "Answering")
_CLASS_ENDS += ("ForQuestionAnsweringSimple", "ForMultipleChoice", "Model", "Decoder", "LMHead", "SpeechToText")


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
