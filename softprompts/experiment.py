"""A run from its settings: which model, task and method, and what they become in a run folder.

A `Workbench` holds one frozen backbone and one encoded task and trains methods on them one after another; the backbone
is loaded and the task encoded once. `Workbench.resolved` is all that decides a run's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from softprompts import packaged
from softprompts.backbone import kind_of, quiet
from softprompts.errors import SoftPromptError
from softprompts.methods.base import MethodConfig
from softprompts.model import attach
from softprompts.tasks import Task, encode_examples, label_ids, load_files, load_task, padding_id
from softprompts.training import Lane, TrainConfig, open_run, run_id, runs, train

MIN_ROOM = 8  # tokens of input that a prompt must leave room for


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where labelled texts come from: a task by name, or the user's own files.

    Attributes:
        task: name of a task; None: ``train`` is a file.
        data_dir: folder with a local copy of the task's data; None: the hub (or the package it comes in).
        train: CSV, TSV or JSONL file.
        validation: the same, to score on; None: a part of ``train`` is held out.
        text: column of the text.
        text_pair: column of the second text.
        label: column of the label.
        max_train: at most so many rows to train on.
        max_validation: at most so many rows to score on.
        seed: of what is drawn or held out.
    """

    task: str | None = None
    data_dir: str | None = None
    train: str | None = None
    validation: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    max_train: int | None = None
    max_validation: int | None = None
    seed: int = 0

    def load(self) -> Task:
        """The task.

        Raises:
            SoftPromptError: unknown task, or a file that cannot be used; the file and the row are named.
        """
        limits: dict[str, Any] = {
            "max_train": self.max_train,
            "max_validation": self.max_validation,
            "seed": self.seed,
        }
        if self.train is not None:
            return load_files(
                self.train, self.validation, text=self.text, text_pair=self.text_pair, label=self.label, **limits
            )
        if self.task is None:
            raise SoftPromptError("name a task (--task) or a file of your own (--data)")
        return load_task(self.task, self.data_dir, **limits)


class Workbench:
    """One frozen backbone and one encoded task.

    Args:
        model: backbone by alias, local path or hub id.
        data: the labelled texts.
        max_length: most tokens of an input, the soft prompt not counted.
        backbone_dropout: keep the frozen model's dropout on while training.
        evaluate: score validation rows while training and keep the best prompt; False: keep the last one, which only
            a task with test rows allows.

    Attributes:
        task: the task.
        model: the attached model.
        tokenizer: its tokenizer.
        truncated: number of rows that were cut.

    Raises:
        SoftPromptError: no such model or task, or data that cannot be used.
    """

    def __init__(
        self,
        model: str,
        data: Data,
        max_length: int = 256,
        backbone_dropout: bool = False,
        evaluate: bool = True,
    ):
        self.name, self.data, self.max_length = model, data, max_length
        self.task = data.load()
        self.tokenizer, backbone = load_backbone(model, self.task)
        self.model = attach(backbone, backbone_dropout=backbone_dropout)
        self.kind: str = self.model.backbone_kind
        self.pad_id = padding_id(self.tokenizer)
        self.label_ids = None if self.kind == "encoder" else label_ids(self.task, self.tokenizer, self.kind)
        self.evaluate = evaluate or not self.task.test
        self.truncated = 0
        self._encoded: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def room(self, config: MethodConfig) -> int:
        """Most tokens of an input that fit next to a prompt.

        Raises:
            SoftPromptError: too few.
        """
        limit = _context(self.model, self.tokenizer)
        taken = config.num_virtual_tokens if config.uses_tokens else 0
        if limit is not None and limit - taken < MIN_ROOM:
            raise SoftPromptError(
                f"{config.method}: {taken} virtual tokens leave no room for the input in the context of {limit} tokens "
                f"of {self.name}; set num_virtual_tokens lower"
            )
        return self.max_length if limit is None else min(self.max_length, limit - taken)

    def check(self, method: MethodConfig) -> None:
        """Builds a prompt and drops it again.

        Raises:
            SoftPromptError: the method does not fit the model.
        """
        self.room(method)
        self._add("check", method, seed=0)
        self.model.delete_prompt("check")

    def _add(self, name: str, method: MethodConfig, seed: int) -> None:
        encoder = self.kind == "encoder"
        self.model.add_prompt(
            name,
            method,
            num_labels=self.task.num_labels if encoder else None,
            labels=list(self.task.label_names) or None if encoder else None,
            tokenizer=self.tokenizer,
            seed=seed,
        )
        if not any(True for _ in self.model.prompts[name].parameters()):
            self.model.delete_prompt(name)
            raise SoftPromptError(f"{method.method}: there is nothing to train on {self.name}, which has no task head")

    def features(self, split: str, length: int) -> list[dict[str, Any]]:
        """A split's rows as token ids, encoded once per length."""
        if (split, length) not in self._encoded:
            encoded = encode_examples(getattr(self.task, split), self.task, self.tokenizer, self.kind, length)
            self.truncated = max(self.truncated, encoded.truncated)
            self._encoded[split, length] = encoded.features
        return self._encoded[split, length]

    def resolved(self, method: MethodConfig, training: TrainConfig) -> dict[str, Any]:
        """All that decides the numbers of a run, as plain values; a hash of the rows stands for the data, wherever
        they lie.
        """
        return {
            "model": packaged.model_name(self.name),
            "task": self.task.name,
            "data": {k: v for k, v in vars(self.data).items() if v is not None},
            "rows": self.task.fingerprint,
            "method": method.method,
            "settings": method.to_dict(),
            "max_length": self.max_length,
            "evaluate": self.evaluate,
            "training": training.to_dict(),
        }

    def run(
        self,
        method: MethodConfig,
        training: TrainConfig,
        *,
        root: str | Path = "runs",
        folder: str | Path | None = None,
        resume: bool = False,
        reuse: bool = False,
        progress: bool = True,
        trackers: Sequence[str] | None = None,
    ) -> tuple[Path, dict[str, Any]]:
        """Trains one experiment and leaves its run folder.

        Args:
            method: the method's config.
            training: how it trains.
            root: where run folders live.
            folder: a folder in place of the one named by the settings' hash.
            resume: go on with an unfinished run.
            reuse: give the result of a finished run instead of an error.
            progress: show a progress bar on a terminal.
            trackers: Accelerate's trackers to log to.

        Returns:
            The run's folder and its result. A prompt that was trained stays on `model`, named by method and seed.

        Raises:
            SoftPromptError: the method does not fit the model, or the run folder is taken; nothing is written then.
            KeyboardInterrupt: it was interrupted; it can be resumed.
        """
        length = self.room(method)
        config = self.resolved(method, training)
        done = Path(folder) if folder is not None else Path(root) / run_id(config)
        if reuse and runs.is_done(done):
            return done, runs.load_result(done)
        name = f"{method.method}-seed{training.seed}"
        if name in self.model.prompts:
            self.model.delete_prompt(name)
        # Built before any folder is made: what cannot be built leaves nothing behind.
        self._add(name, method, training.seed)
        trained = sum(parameter.numel() for parameter in self.model.prompts[name].parameters())
        backbone = sum(p.numel() for n, p in self.model.named_parameters() if not n.startswith("prompts."))
        features = self.features("train", length)
        validation = self.features("validation", length) if self.evaluate else None
        test = self.features("test", length) if self.task.test else None
        path = open_run(root, config, resume=resume, folder=folder)
        record = {
            **{key: config[key] for key in ("model", "task", "method", "settings", "max_length", "rows")},
            "seed": training.seed,
            "trained_parameters": trained,
            "backbone_parameters": backbone,
            "task_form": self.task_form(),
            "eval_rows": len(validation or []),
            "test_rows": len(test or []),
        }
        lane = Lane(
            name,
            training,
            features,
            eval_features=validation,
            test_features=test,
            metrics=self.task.metrics,
            label_ids=self.label_ids,
            label_values=self._label_values(),
            folder=path,
            record=record,
        )
        (outcome,) = train(self.model, [lane], pad_id=self.pad_id, progress=progress, trackers=trackers)
        if not outcome.done:
            raise KeyboardInterrupt(f"{path}: {outcome.message}; go on with --resume")
        return path, runs.load_result(path)

    def _label_values(self) -> list[int | float] | None:
        if self.label_ids is None or self.task.kind == "classification":
            return None
        return [self.task.label_value(index) for index in range(len(self.task.label_words))]

    def task_form(self) -> dict[str, Any]:
        """What `predict` must know to write out new texts as the training texts were."""
        task = self.task
        return {
            "kind": task.kind,
            "labels": list(task.label_names),
            "label_words": list(task.label_words),
            "fields": list(task.fields),
            "word": task.word,
        }


def load_backbone(model: str, task: Task | None = None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model of the class that suits the model's kind: a classifier for encoders, else a language model.

    Args:
        model: alias, local path or hub id.
        task: gives the number of labels and their names.

    Raises:
        SoftPromptError: there is no such model, or it cannot be read.
    """
    import transformers

    path = packaged.resolve_model(model)
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise SoftPromptError(f"no such model '{model}': there is no such folder")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(path)
            kind = kind_of(config)
            if kind == "encoder":
                labels = {} if task is None else {"num_labels": task.num_labels}
                loaded = transformers.AutoModelForSequenceClassification.from_pretrained(path, **labels)
            elif kind == "encoder-decoder":
                loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(path)
            else:
                loaded = transformers.AutoModelForCausalLM.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise SoftPromptError(
            f"no such model '{model}': neither a local folder nor to be had from the hub ({reason[:160]})"
        ) from error
    if task is not None and kind == "encoder" and task.label_names:
        loaded.config.id2label = dict(enumerate(task.label_names))
        loaded.config.label2id = {name: index for index, name in enumerate(task.label_names)}
    return tokenizer, loaded


def _context(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens the model takes at once: its position table, else what its config or tokenizer says."""
    hard = model._softprompt_state.backbone.max_tokens
    if hard is not None:
        return int(hard)
    said = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if said is None and tokenizer.model_max_length < 1_000_000:
        said = tokenizer.model_max_length
    return None if said is None else int(said)


def with_seed(training: TrainConfig, seed: int) -> TrainConfig:
    """The same training from another seed."""
    return replace(training, seed=seed)
