"""The contract that every method fulfils: a config (`MethodConfig`) that builds a module (`Method`).

A method is one file. Its config is frozen; its module returns a `SoftPrompt`, from the input embeddings of the batch
(`Rows`) or from its parameters alone. Of the backbone it knows the sizes (`Shape`) and the input embeddings
(`Vocabulary`), but neither the class nor the places where the tensors go in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.methods.about import RATES, About, Space, Span, View, Vital
from softprompts.soft_prompt import Part, SoftPrompt
from softprompts.validation import TEXTS, check_inherited, settings

SiteKind = Literal["encoder.self", "decoder.self", "decoder.cross"]
SITE_KINDS: tuple[str, ...] = get_args(SiteKind)
_CHUNK = 8192  # rows of an embedding table that are looked up at a time


class Vocabulary:
    """The backbone's input embeddings, from which methods take starting values.

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

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension over all rows, ``(d,)`` both, in float32."""
        total: Any = 0
        squares: Any = 0
        for start in range(0, self.size, _CHUNK):
            rows = self.rows(torch.arange(start, min(start + _CHUNK, self.size))).double()
            total, squares = total + rows.sum(0), squares + rows.square().sum(0)
        mean = total / self.size
        return mean.float(), (squares / self.size - mean.square()).clamp(min=0).sqrt().float()

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
    """The sizes of the backbone, all that a method knows of it.

    Attributes:
        hidden_size: ``d``, width of the input embeddings.
        num_sites: ``S``, number of attention sites that take a prefix (0 when the backbone has none).
        kv_width: ``w = kv_heads * head_dim``, width of one prefix key or value.
        vocabulary: the input embeddings.
        parts: the modules of the backbone, in the order in which they run, for methods that say `uses_parts`.
        site_width: width of the states that attention sites are called with; None for ``d``, 0 where sites differ.
        causal: whether a token sees only those before it, so that the first one's states tell nothing of the rest.
        identity: the facts that saved prompts record of their backbone ("name", "model_type", "vocabulary"), to compare
            this backbone with; empty where they are not known.
        prefix_of: runs ``l`` tokens through the backbone, and returns the keys and the values ``(S, l, w)`` that each
            attention site sees of them; None where there is no backbone to run.
    """

    hidden_size: int
    num_sites: int
    kv_width: int
    vocabulary: Vocabulary
    parts: tuple[Part, ...] = ()
    site_width: int | None = None
    causal: bool = False
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix_of: Callable[[Sequence[int]], tuple[Tensor, Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.site_width is None:
            object.__setattr__(self, "site_width", self.hidden_size)

    def blank(self) -> Shape:
        """The same sizes, and zeros for all values: for a method whose tensors are loaded next."""
        sites, width = self.num_sites, self.kv_width
        vocabulary = Vocabulary(
            lambda ids: torch.zeros(len(ids), self.hidden_size), self.vocabulary.size, encode=lambda text: [0]
        )
        return dataclasses.replace(
            self,
            vocabulary=vocabulary,
            prefix_of=lambda ids: (torch.zeros(sites, len(ids), width), torch.zeros(sites, len(ids), width)),
        )


@dataclass
class Rows:
    """The input of the rows that use a prompt, for methods whose prompt depends on it.

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
    """The outputs of a pass for a prompt's rows, at the positions that have labels; see `Method.compare`.

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
    """A group of a method's parameters with a learning rate and weight decay of its own.

    Attributes:
        parameters: the tensors.
        learning_rate: the default for AdamW; measured on the packaged encoder and tried on a 135M decoder.
        weight_decay: its own, which a run's does not reach; None: the run's, or 0 where that has none.
    """

    parameters: list[nn.Parameter]
    learning_rate: float
    weight_decay: float | None = None

    def decay(self, of_run: float | None) -> float:
        """Its weight decay in a run."""
        return (of_run or 0.0) if self.weight_decay is None else self.weight_decay


@settings
class MethodConfig:
    """The settings that all methods have. Subclasses add fields of their own; all are plain JSON values.

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

    num_virtual_tokens: Annotated[int, Field(ge=1)] = 10
    sites: Annotated[tuple[SiteKind, ...], TEXTS] | None = None
    placement: Literal["behind-first", "front"] = "behind-first"
    positions: Literal["kept", "shifted"] = "kept"

    __dataclass_fields__: ClassVar[dict[str, Any]]  # for type checkers, to which `settings` makes no dataclass
    method: ClassVar[str] = ""  # the method's name; `register` sets it
    module: ClassVar[type[Any]]  # what `build` makes; ``class MyMethod(Method, config=MyConfig)`` sets it
    about: ClassVar[About | None] = None
    head_learning_rate: ClassVar[float] = 1e-2  # of a task head beside the components at their default rates
    # Raised by one where the same settings give other numbers, such as other default rates do: runs get other ids.
    revision: ClassVar[int] = 0
    listed: ClassVar[bool] = True  # False for a config that users do not choose by name
    uses_prefix: ClassVar[bool] = False  # whether the prompt has keys and values
    uses_tokens: ClassVar[bool] = False  # whether the prompt has input tokens
    modifies_prefix: ClassVar[bool] = False  # whether `Method.modify` can change another method's prefix
    uses_parts: ClassVar[bool] = False  # whether `build` needs `Shape.parts`
    searched: ClassVar[Space] = {}  # see `search_space`
    # Of settings that came later, the values that stand for how it was without them; see `before`.
    absent: ClassVar[Mapping[str, Any]] = {}
    # By a setting, those that have no effect while it is None or 0; `identity` leaves them out.
    ignored_without: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        check_inherited(self)

    @classmethod
    def settable(cls) -> list[str]:
        """Names of the settings that have an effect: those of prompts and prefixes only where there is one."""
        ignored = set() if cls.uses_prefix else {"sites", "positions"}
        if not cls.uses_tokens:
            ignored |= {"placement"} if cls.uses_prefix else {"placement", "num_virtual_tokens"}
        return [field.name for field in dataclasses.fields(cls) if field.name not in ignored]

    @classmethod
    def search_space(cls) -> Space:
        """What a search tries where the user names no space (see `softprompts.experiments.search`).

        Returns:
            By the name of a setting (or ``learning_rate``, that of the main component, or ``learning_rates.NAME``): the
            values to choose from, or a `Span`. A method's ``searched`` adds to it, and wins.
        """
        space: dict[str, Span | Sequence[Any]] = {"learning_rate": RATES}
        if "num_virtual_tokens" in cls.settable():
            length = cls.num_virtual_tokens
            space["num_virtual_tokens"] = (max(1, length // 2), length, 2 * length)
        return {**space, **cls.searched}

    def setting(self, name: str) -> Any:
        """The value of a setting."""
        return getattr(self, name)

    @classmethod
    def before(cls) -> dict[str, Any]:
        """The values that settings had before they existed: what a saved prompt or run that lacks them means."""
        return {name: value for base in reversed(cls.__mro__) for name, value in vars(base).get("absent", {}).items()}

    @property
    def input_tokens(self) -> int:
        """Number of tokens by which the prompt makes an input longer."""
        return self.num_virtual_tokens if self.uses_tokens else 0

    @property
    def changes_scores(self) -> bool:
        """Whether attention to its prefix is more than attention to further keys, see `SoftPrompt.selectivity`."""
        return False

    def require(self, condition: bool, message: str) -> None:
        """Raises a `SoftPromptError` that names the method unless ``condition`` holds."""
        if not condition:
            raise SoftPromptError(f"{self.method}: {message}")

    def build(self, shape: Shape) -> Method:
        """A freshly initialised module, drawing from torch's global random state."""
        return self.module(self, shape)  # type: ignore[no-any-return]

    def build_modifier(self, shape: Shape) -> Method:
        """The module without a prefix of its own, for `Method.modify` on that of another method."""
        return self.module(self, shape, own_prefix=False)  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values.

        Placement and positions are left out where they are the default: ids of runs are older than these settings.
        """
        values = dataclasses.asdict(self)
        for name in ("placement", "positions"):
            if values[name] == getattr(MethodConfig, name):
                del values[name]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def identity(self) -> dict[str, Any]:
        """The settings that decide a run's numbers, with hashes of files' contents in place of their names.

        Those that are as before they existed are left out: ids of runs are older.
        """
        without_effect = [names for name, names in self.ignored_without.items() if not getattr(self, name)]
        ignored = {name for names in without_effect for name in names}
        ignored |= {name for name, value in self.before().items() if getattr(self, name) == value}
        return {name: value for name, value in self.to_dict().items() if name not in ignored}

    def files(self) -> tuple[str, ...]:
        """Names of the files and folders that `build` reads, and of the teacher."""
        return ()

    def without_files(self) -> MethodConfig:
        """The config that loads saved tensors where these files are missing."""
        return self

    def taught_by(self) -> str | None:
        """The saved prompt of the same task that this one learns from (see `Method.compares`)."""
        return None


class Method(nn.Module):
    """The trained module of a method, which turns the input (or nothing) into a `SoftPrompt`.

    ``class MyMethod(Method, config=MyConfig)`` is what ``MyConfig.build`` makes, as ``MyMethod(config, shape)``.

    Attributes:
        per_row: True when `forward` needs the rows; then every row gets its own tensors. Otherwise `forward` is
            called with None, once per step.
        reads_states: True when the prompt has ``gate_of``, which attention sites call with their own input.
        changes: paths of the backbone's modules that the prompt replaces for its rows (see `SoftPrompt.modules`).
        compares: further passes over the same rows that the loss needs (see `compare`): "itself", under this prompt,
            with new random draws; "teacher", under a frozen prompt (``config.taught_by()``). `train` runs them; other
            training loops do not.
        compares_states: True when `compare` needs hidden states too.
    """

    per_row: bool = False
    reads_states: bool = False
    changes: tuple[str, ...] = ()
    compares: tuple[str, ...] = ()
    compares_states: bool = False

    def __init_subclass__(cls, config: type[MethodConfig] | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if config is not None:
            config.module = cls

    def __init__(self, config: MethodConfig):
        super().__init__()
        self.config = config

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The prompt of these rows; of any rows if ``rows`` is None."""
        raise NotImplementedError

    def modify(self, prompt: SoftPrompt, rows: Rows | None = None) -> SoftPrompt:
        """Changes the prefix of ``prompt`` as this method changes its own (where ``config.modifies_prefix``)."""
        raise NotImplementedError

    def components(self) -> dict[str, Component]:
        """Every trained parameter, once, in named groups, the main one first; none unless a method says so."""
        return {}

    def compare(self, own: Answers, others: Mapping[str, Answers]) -> Tensor:
        """A further term of the training loss for each line, ``(P,)``.

        Args:
            own: the outputs that the loss is computed from.
            others: the outputs of the passes in `compares`, by their names; a teacher's have no gradient.
        """
        raise NotImplementedError

    def views(self, rows: Rows | None = None) -> list[View]:
        """Numbers of a trained prompt that show what it learned, for pictures; none unless a method says so.

        Called in eval mode and without gradients.

        Args:
            rows: some input; views that depend on the input are left out without it.
        """
        return []

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """Numbers that say whether its parts act, measured at evaluations; none unless a method says so.

        Called in eval mode and without gradients. It draws nothing at random.

        Args:
            rows: some training rows, also of methods that are not `per_row`; what needs them is left out without.
        """
        return []

    def cannot_fold(self) -> str | None:
        """Why this prompt has no plain form, or None when `forward(None)` in eval mode is one."""
        return "it depends on the input" if self.per_row else None

    def merged(self, parts: Sequence[Part]) -> dict[str, dict[str, Tensor]]:
        """New values of the backbone's parameters that have the effect of this prompt's modules in `changes`.

        Args:
            parts: the modules of the backbone, with their tensors.

        Returns:
            By the path of a module and the name of a parameter in it; each of the shape of what it replaces.

        Raises:
            SoftPromptError: no values of its parameters have that effect.
        """
        reason = self.cannot_merge()
        if reason is not None:
            raise SoftPromptError(f"{self.config.method}: {reason}")
        return {}

    def cannot_merge(self) -> str | None:
        """Why what it does to the backbone's modules has no place in their weights; None where `merged` has it."""
        if not self.changes or type(self).merged is not Method.merged:
            return None
        return "what it does to the backbone's modules is no change of their weights, and cannot be merged into them"

    def share_with(self, other: Method) -> None:
        """Replaces the parameters that tasks have in common by those of another prompt, which trains them from now on.

        `components` lists them without parameters then.

        Raises:
            SoftPromptError: there are no such parameters, or those of the two differ in size.
        """
        raise SoftPromptError(f"{self.config.method}: it has no part that several tasks could share")

    def stored(self) -> MethodConfig:
        """The config that is saved with the tensors (buffers included), and is enough to load them.

        A method that is built from files names their sizes there in place of the files.
        """
        return self.config.without_files()
