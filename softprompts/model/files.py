"""The methods of an attached model that read and write prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from softprompts.backbones import sharded
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import PromptSet
from softprompts.model import formats, push, saving
from softprompts.model.interop import embeddings, materialize, peft_writing


class PromptFiles:
    """What `PromptModel` reads and writes, a method a format."""

    prompts: PromptSet

    def save_prompt(self, name: str, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Writes one prompt to a folder: ``softprompt_config.json``, ``softprompt.safetensors`` and a model card.

        Of a sharded model, all processes have to call it together; the first one writes.

        Args:
            name: the prompt.
            path: the folder; made if it is not there.
            metadata: JSON values to keep with it, such as task, score and license; None: those that it was loaded with.

        Raises:
            SoftPromptError: unknown name.
        """
        saving.save_prompt(self, name, path, metadata)

    def load_prompt(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        task_id: int | None = None,
    ) -> Self:
        """Adds a saved prompt, under its own name or another.

        Args:
            path: a folder or hub id, of a prompt of ours or of an adapter of PEFT's (see docs/peft.md); only JSON and
                safetensors files are fetched and read.
            name: what it is to be called here; None: as it was ("default" for an adapter, which has no name).
            revision: branch, tag or commit of a hub repository.
            subfolder: its folder, where there are several.
            task_id: which task of a multitask adapter of PEFT's; not needed where it has one.

        Raises:
            SoftPromptError: the files are missing, damaged or for another backbone; nothing is loaded then.
        """
        formats.open_saved(path, revision, subfolder, task_id).add_to(self, name)
        return self

    def push_to_hub(
        self,
        repo_id: str,
        name: str | None = None,
        *,
        private: bool | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        **ignored: Any,
    ) -> str:
        """Uploads prompts, and nothing of the backbone, to a repository of the hub, which is made when it is missing.

        Args:
            repo_id: "user/name".
            name: the prompt that goes into the repository itself; None: all, a folder each where there are several.
            private: whether a new repository is private; None: as the account has it.
            commit_message: of the commit; None: a line that names the prompts.
            token: of the hub; None: that of ``hf auth login``.
            revision: branch to commit to.
            create_pr: open a pull request instead.
            license: the hub's name of a licence, such as "mit", for the cards.
            **ignored: what else transformers' own method takes; there are no shards of a prompt.

        Returns:
            The address of the commit.

        Raises:
            SoftPromptError: unknown name, no prompt, or the hub refused; says why.
        """
        commit = {"commit_message": commit_message, "revision": revision, "create_pr": create_pr}
        return push.push(self, repo_id, name, license, private=private, token=token, **commit)

    def save_embeddings(self, name: str, path: str | Path) -> None:
        """Writes a prompt's tokens as embeddings, for servers that take these (vLLM's prompt embeddings).

        Args:
            name: a prompt that comes down to input tokens.
            path: a new folder: ``prompt_embeds.safetensors`` with the tokens ``(l, d)``, in the type and the scaling of
                the model's embeddings, and ``prompt_embeds.json``, which says what they are and where they go.

        Raises:
            SoftPromptError: unknown name; the prompt is something else; or there is a folder with something in it.
        """
        embeddings.save_embeddings(self, name, path)

    def materialize(self, name: str, path: str | Path, tokenizer: Any = None) -> Path:
        """Writes the model with a prompt in it, as a directory that transformers loads without this library.

        Input tokens become tokens of the vocabulary, which the tokenizer puts into every text; changed weights are
        merged; the head becomes the model's own. This model stays as it is; there is a copy of it in memory meanwhile.

        Args:
            name: a prompt of input tokens, of changed weights (LoRA, BitFit, full fine-tuning), of nothing but a head,
                or a composition of these.
            path: a new folder; it appears once all is written.
            tokenizer: a fast one; None: that of the backbone, by its name.

        Returns:
            The folder.

        Raises:
            SoftPromptError: unknown name; the prompt, the architecture or the tokenizer does not allow it (the reason
                is named); or there is a folder with something in it.
        """
        return materialize.materialize(self, name, path, tokenizer)

    def save_peft(self, name: str, path: str | Path) -> None:
        """Writes one prompt as an adapter that the PEFT library loads, with the same outputs (see docs/peft.md).

        Args:
            name: the prompt.
            path: the folder; made if it is not there.

        Raises:
            SoftPromptError: unknown name; PEFT cannot compute what this prompt does (the reason is named, and the
                placement to train with); or the folder holds a prompt of ours.
        """
        peft_writing.write_peft(self, name, path)

    def save_pretrained(self, save_directory: str | Path, *, state_dict: Any = ..., **kwargs: Any) -> None:
        """Writes the prompts and nothing of the backbone.

        A single prompt goes into the folder itself, several into one folder each. HF Trainer passes ``state_dict`` and
        reads ``model.safetensors`` back: for it, that file is written as well, with only the prompts' tensors.
        """
        parted = any(map(sharded.is_sharded, self.prompts.parameters()))
        # Trainer has gathered what several processes have parts of, for the main one; without that, all take part here.
        gathered = state_dict if parted and isinstance(state_dict, Mapping) else None
        if gathered is not None and any(map(sharded.is_sharded, gathered.values())):  # it has only been collected
            gathered = None
        main = kwargs.get("is_main_process", True)
        if main and gathered is not None and not any(key.startswith("prompts.") for key in gathered):
            raise SoftPromptError(
                "the prompts of a sharded model were not gathered for saving: set fsdp_state_dict_type to "
                "FULL_STATE_DICT, or zero3_save_16bit_model to true"
            )
        if main or (parted and gathered is None):
            saving.save_all(self, save_directory, for_trainer=state_dict is not ..., state=gathered)
