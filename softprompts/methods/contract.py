"""The contract between a method and the rest: a config dataclass, a module, and the registry that joins them.

A method is one file. It declares a frozen config and a module that turns (at most) a batch's input embeddings into a
`SoftPrompt`. It knows the sizes of the backbone (`Shape`) and can look at its vocabulary (`Vocabulary`), and knows
nothing else about it: neither its class nor where the tensors go in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.about import RATES, About, Span, View
from softprompts.soft_prompt import Part, SoftPrompt


class Vocabulary:
    """The backbone's input embeddings, as a source of starting values.

    Args:
        embed: maps ids ``(k,)`` to embeddings ``(k, d)`` just as the backbone does (with its scaling, if any).
        size: number of usable rows.
        special_ids: ids that sampling leaves out.
        encode: maps a text to ids without special tokens; None when no tokenizer is at hand.
    """

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        size: int,
        special_ids: Iterable[int] = (),
        encode: Callable[[str], list[int]] | None = None,
    ):
        self.embed = embed
        self.size = size
        self.special_ids = frozenset(special_ids)
        self._encode = encode

    def rows(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embeddings ``(len(ids), d)`` in float32, detached."""
        with torch.no_grad():
            return self.embed(torch.as_tensor(ids, dtype=torch.long)).detach().float()

    def sample(self, count: int, limit: int | None = None) -> list[int]:
        """Draws ``count`` different ids (repeating only once all have been used), special ids left out.

        Args:
            count: how many.
            limit: draw from the first ``limit`` ids only (tokenizers that sort by frequency: the most frequent ones).
        """
        size = min(self.size, limit or self.size)
        ids = [i for i in torch.randperm(size, device="cpu").tolist() if i not in self.special_ids]
        if not ids:
            raise SoftPromptError(f"no token is left to sample from among the first {size} of the vocabulary")
        return (ids * math.ceil(count / len(ids)))[:count]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens.

        Raises:
            SoftPromptError: no tokenizer is known, or the text has no tokens.
        """
        if self._encode is None:
            raise SoftPromptError("initialisation from text needs the tokenizer: pass tokenizer=... to attach")
        ids = self._encode(text)
        if not ids:
            raise SoftPromptError(f"the initialisation text {text!r} has no tokens")
        return ids


@dataclass(frozen=True)
class Shape:
    """The sizes a method may know of the backbone.

    Attributes:
        hidden_size: ``d``, width of the input embeddings.
        num_sites: ``S``, number of attention sites that take a prefix (0 when the backbone has none).
        kv_width: ``w = kv_heads * head_dim``, width of one prefix key or value.
        vocabulary: the input embeddings.
        parts: the modules of the backbone, in the order in which they run, for methods that say `uses_parts`.
        site_width: width of the states that attention sites are called with; None for ``d``, 0 where sites differ.
        causal: whether a token sees only those before it, so that the first one's states tell nothing of the rest.
        identity: what saved prompts say of their backbone ("name", "model_type", "vocabulary"), to tell whether a
            prompt is for this one; empty where that is not known.
    """

    hidden_size: int
    num_sites: int
    kv_width: int
    vocabulary: Vocabulary
    parts: tuple[Part, ...] = ()
    site_width: int | None = None
    causal: bool = False
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.site_width is None:
            object.__setattr__(self, "site_width", self.hidden_size)


@dataclass
class Rows:
    """What a method that looks at its input gets to see.

    Attributes:
        embeddings: ``(R, n, d)``, the frozen input embeddings, detached.
        mask: ``(R, n)`` bool, the tokens a prompt may depend on: no padding, and in causal training no targets.
    """

    embeddings: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """Mean embedding over the visible tokens, ``(R, d)``; zero for a row without any."""
        weights = self.mask.to(self.embeddings.dtype).unsqueeze(-1)
        return (self.embeddings * weights).sum(1) / weights.sum(1).clamp(min=1)

    def max(self) -> Tensor:
        """Largest value of each dimension over the visible tokens, ``(R, d)``; zero for a row without any."""
        hidden = ~self.mask.unsqueeze(-1)
        largest = self.embeddings.masked_fill(hidden, -torch.inf).amax(1)
        return largest.masked_fill(hidden.all(1), 0)


@dataclass(frozen=True)
class Answers:
    """What a pass said of a prompt's rows, where labels count; see `Method.compare`.

    Attributes:
        logits: ``(P, C)``, a line for each decision: a row's class, a token of its answer, an end of its span, a
            choice; -inf where there is nothing to choose. Scores: ``(P, 1)``.
        states: ``(P, k, d)``, the last hidden states behind each line: that of the token that is predicted from, or
            those of all tokens of the row. None unless the method says `compares_states`.
        real: ``(P, k)`` bool, False for padding; None likewise.
    """

    logits: Tensor
    states: Tensor | None = None
    real: Tensor | None = None


@dataclass
class Component:
    """Some of a method's parameters that are trained alike.

    Attributes:
        parameters: the tensors.
        learning_rate: the default for AdamW; measured on the packaged encoder and tried on a 135M decoder.
        weight_decay: the default.
    """

    parameters: list[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """What all methods have. Subclasses add their own fields; all are plain JSON values.

    Attributes:
        num_virtual_tokens: ``l``, length of the prompt or prefix.
        sites: kinds of attention that a prefix goes to ("encoder.self", "decoder.self", "decoder.cross");
            None for all that the backbone has. Methods without a prefix ignore it.
        placement: where prompt tokens go on encoders: "behind-first" puts them behind the input's first token where a
            pooler reads that ([CLS]), so that it goes on reading it; "front" puts them in front of everything, so that
            a pooler or classifier that reads the first position reads the first prompt token, as in PEFT. Methods
            without tokens ignore it.
        positions: of a prefix: "kept" leaves real tokens the positions they have without it, and gives the prefix
            none; "shifted" gives the prefix the first ``l`` and real tokens those behind, as a KV cache does (PEFT).
            Keys are taken as they are, in rotary models as if they were turned to their position already. Methods
            without a prefix ignore it.
    """

    num_virtual_tokens: int = 10
    sites: tuple[str, ...] | None = None
    placement: str = "behind-first"
    positions: str = "kept"

    method: ClassVar[str] = ""
    about: ClassVar[About | None] = None
    listed: ClassVar[bool] = True  # False for what nobody asks for by name
    uses_prefix: ClassVar[bool] = False
    uses_tokens: ClassVar[bool] = False
    modifies_prefix: ClassVar[bool] = False  # what it does to its own prefix, it can do to another (`Method.modify`)
    uses_parts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.num_virtual_tokens, bool) or not isinstance(self.num_virtual_tokens, int):
            raise SoftPromptError(
                f"{self.method}: num_virtual_tokens must be a whole number, not {self.num_virtual_tokens!r}"
            )
        if self.num_virtual_tokens < self.min_virtual_tokens():
            raise SoftPromptError(
                f"{self.method}: num_virtual_tokens must be at least {self.min_virtual_tokens()}, "
                f"not {self.num_virtual_tokens}"
            )
        if self.sites is not None:
            sites = (self.sites,) if isinstance(self.sites, str) else tuple(self.sites)
            for site in sites:
                if site not in SITE_KINDS:
                    raise SoftPromptError(f"{self.method}: unknown site '{site}'; {nearest(site, SITE_KINDS)}")
            object.__setattr__(self, "sites", sites)
        self.choice("placement", PLACEMENTS)
        self.choice("positions", POSITIONS)

    @classmethod
    def settable(cls) -> list[str]:
        """Names of the settings that change anything: those of prompts and prefixes only where there is one."""
        senseless = set() if cls.uses_prefix else {"sites", "positions"}
        if not cls.uses_tokens:
            senseless.add("placement")
        if not cls.uses_prefix and not cls.uses_tokens:
            senseless.add("num_virtual_tokens")
        return [field.name for field in dataclasses.fields(cls) if field.name not in senseless]

    @classmethod
    def search_space(cls) -> Mapping[str, Span | Sequence[Any]]:
        """What a search tries where nothing else is asked for (see `softprompts.experiments.search`).

        Returns:
            By the name of a setting (or ``learning_rate``, that of the main component, or ``learning_rates.NAME``): the
            values to choose from, or a `Span`. A method whose other settings matter as much names them too.
        """
        length = cls.num_virtual_tokens
        return {"learning_rate": RATES, "num_virtual_tokens": (max(1, length // 2), length, 2 * length)}

    def setting(self, name: str) -> Any:
        """The value of a setting."""
        return getattr(self, name)

    @property
    def input_tokens(self) -> int:
        """Tokens by which the prompt makes an input longer."""
        return self.num_virtual_tokens if self.uses_tokens else 0

    def min_virtual_tokens(self) -> int:
        """The least number of virtual tokens that makes sense."""
        return 1

    def require(self, condition: bool, message: str) -> None:
        """Raises a `SoftPromptError` that names the method unless ``condition`` holds."""
        if not condition:
            raise SoftPromptError(f"{self.method}: {message}")

    def choice(self, field: str, options: Sequence[str]) -> None:
        """Checks that a field holds one of ``options``."""
        value = getattr(self, field)
        if value not in options:
            raise SoftPromptError(f"{self.method}: {field} must be one of {', '.join(options)}, not {value!r}")

    def build(self, shape: Shape) -> Method:
        """A freshly initialised module, drawing from torch's global random state."""
        raise NotImplementedError

    def build_modifier(self, shape: Shape) -> Method:
        """The module without a prefix of its own, for `Method.modify` on that of another method."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; placement and positions only where they are not the default.

        Ids of runs are made from these, and were before there was a choice.
        """
        values = dataclasses.asdict(self)
        for field, options in (("placement", PLACEMENTS), ("positions", POSITIONS)):
            if values[field] == options[0]:
                del values[field]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def identity(self) -> dict[str, Any]:
        """`to_dict` with hashes of files' contents in place of their names: what decides a run's numbers."""
        return self.to_dict()

    def files(self) -> tuple[str, ...]:
        """Names of the files and folders that `build` reads, and of the teacher."""
        return ()

    def taught_by(self) -> str | None:
        """The saved prompt of the same task that it learns from (see `Method.compares`)."""
        return None


SITE_KINDS = ("encoder.self", "decoder.self", "decoder.cross")
PLACEMENTS = ("behind-first", "front")
POSITIONS = ("kept", "shifted")


class Method(nn.Module):
    """Turns the input (or nothing) into a `SoftPrompt`. Subclasses say what they train in `components`.

    Attributes:
        per_row: True when `forward` needs the rows; then every row gets its own tensors. Otherwise `forward` is
            called with None, once per step.
        reads_states: True when `forward` hands over ``gate_of``, which attention sites call with their own input.
        changes: paths of the backbone's modules that the prompt's rows go through in a way of their own (see
            `SoftPrompt.modules`).
        compares: further passes over the same rows that its loss needs (see `compare`): "itself", under this prompt,
            whose random draws are made anew; "teacher", under a frozen prompt (``config.taught_by()``). `train`
            takes them; other training loops do not.
        compares_states: True when `compare` needs hidden states too.
    """

    per_row: bool = False
    reads_states: bool = False
    changes: tuple[str, ...] = ()
    compares: tuple[str, ...] = ()
    compares_states: bool = False

    def __init__(self, config: MethodConfig):
        super().__init__()
        self.config = config

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The prompt of these rows; of any rows if ``rows`` is None."""
        raise NotImplementedError

    def modify(self, prompt: SoftPrompt, rows: Rows | None = None) -> SoftPrompt:
        """Does to the prefix of ``prompt`` what this method does to its own (where ``config.modifies_prefix``)."""
        raise NotImplementedError

    def components(self) -> dict[str, Component]:
        """Every trained parameter, once, in named groups; the first group is the main one."""
        raise NotImplementedError

    def compare(self, own: Answers, others: Mapping[str, Answers]) -> Tensor:
        """What joins the loss of each line, ``(P,)``, in training.

        Args:
            own: of the pass that the loss is taken of.
            others: of the passes in `compares`, by their names; a teacher's have no gradient.
        """
        raise NotImplementedError

    def views(self, rows: Rows | None = None) -> list[View]:
        """What there is to look at in a trained prompt, besides what it hands over; nothing, unless a method says so.

        Called in eval mode and without gradients.

        Args:
            rows: some input; without, what needs rows is left out.
        """
        return []

    def cannot_fold(self) -> str | None:
        """Why this prompt has no plain form, or None when `forward(None)` in eval mode is one."""
        return "it depends on the input" if self.per_row else None

    def merged(self, parts: Sequence[Part]) -> dict[str, dict[str, Tensor]]:
        """New values of the backbone's parameters, with which it does alone what the modules in `changes` do now.

        Args:
            parts: the modules of the backbone, with their tensors.

        Returns:
            By the path of a module and the name of a parameter in it; each of the shape of what it replaces.

        Raises:
            SoftPromptError: no values of its parameters do that.
        """
        if self.changes:
            raise SoftPromptError(
                f"{self.config.method}: what it does to the backbone's modules is no change of their weights, and "
                "cannot be merged into them"
            )
        return {}

    def share_with(self, other: Method) -> None:
        """Takes the part that tasks have in common from another prompt, which trains it from now on.

        `components` lists it without parameters then.

        Raises:
            SoftPromptError: there is no such part, or the two do not go together.
        """
        raise SoftPromptError(f"{self.config.method}: it has no part that several tasks could share")

    def stored(self) -> MethodConfig:
        """The config that is saved with the tensors (buffers included), which they can be loaded with alone.

        A method that is built from files names their sizes there in place of the files.
        """
        return self.config
