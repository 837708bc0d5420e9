"""`TimmDeclaration`: a timm network of MBConv blocks as data, and what can be chosen in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from hardware.errors import SpaceError
from hardware.op_spec import OpSpec
from hardware.reading import cut, shown

from ..blocks import SKIP, BlockShape, skip_spec
from ..costs import SpaceCosts
from ..declaration import MOST_CHANNELS, ShippedDeclaration, is_integer, is_number, moved
from ..mbconv import MOST_BLOCKS, make_divisible
from ..timm_models import HEADS
from .blocks import ACTIVATION_CODES, EXPANDED, LARGEST_KERNEL, SEARCHED, NetBlock

if TYPE_CHECKING:
    from typing_extensions import Self

    from .network import TimmModelSpace

MOST_EXPANSION = 64
GATES = ("sigmoid", "hard_sigmoid")
PADDINGS = ("", "same")


@dataclass(frozen=True)
class PlacedBlock:
    """One block where it stands: number of its stage and within it, channels and candidates.

    Attributes:
        stage: Number of its stage.
        index: Number within the stage.
        in_width: Channels of its input.
        block: The model's own block.
        candidates: For each candidate's name, the block; None for `skip`. Empty where nothing is chosen.
    """

    stage: int
    index: int
    in_width: int
    block: NetBlock
    candidates: Mapping[str, NetBlock | None]

    @property
    def label(self) -> str:
        """The edge's label."""
        return f"stage{self.stage}_block{self.index}"

    @property
    def path(self) -> str:
        """Path of the block in the network."""
        return f"blocks.{self.stage}.{self.index}"

    @property
    def own(self) -> str:
        """The candidate's name that is the model's own block."""
        return next(name for name, block in self.candidates.items() if block == self.block)


@dataclass(frozen=True)
class TimmDeclaration(ShippedDeclaration):
    """A timm network whose MBConv blocks choose another kernel and expansion, and whether they are there at all.

    Everything else is the network's own: stem, head, squeeze-and-excitation, activations, batch norm, padding, drop
    rates, and blocks of other kinds. `read_space` reads it from a timm model.

    Attributes:
        name: Name of the space, `timm:` and the model's.
        stem_width: Channels of the 3x3 stem convolution.
        stem_stride: Its stride, 1 or 2.
        stages: The blocks of every stage; the first one of a stage may have stride 2.
        head_width: Channels of the last 1x1 convolution; 0 where there is none.
        head: Where it stands: `conv`, before pooling, or `pooled`, after it.
        head_bias: Whether it has a bias in a pooled head.
        activation: timm's name of the activation of stem, head and most blocks.
        padding: timm's `pad_type`: empty or `same`.
        se_act: timm's name of the activation in squeeze-and-excitation; None for the block's own.
        se_gate: timm's name of its gate.
        bn_eps: Epsilon of batch norm.
        bn_momentum: Momentum of batch norm.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block.
        kernels: Kernel sides of the candidates, beside each block's own.
        expansions: Expansions of the candidates, beside each block's own.
        model: timm's name of the model, or `local-dir:FOLDER`: where `pretrained` weights come from.
        weights: What a built space starts from: `pretrained`, `none`, or a file of safetensors.

    Raises:
        SpaceError: A field has a value that no network can be built with, or there is nothing to choose.
    """

    stem_width: int
    stem_stride: int
    stages: tuple[tuple[NetBlock, ...], ...]
    head_width: int
    head: str
    head_bias: bool
    activation: str
    padding: str
    se_act: str | None
    se_gate: str
    bn_eps: float
    bn_momentum: float
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[float, ...] = (3, 6)
    # Neither changes a subnet, and files of subnets have neither: a path of another machine has no use there.
    model: str = field(default="", compare=False)
    weights: str = field(default="none", compare=False)

    timm_name: ClassVar[str] = "proxylessnas"
    kind: ClassVar[str] = "timm"

    def __post_init__(self) -> None:
        self.check_integers(stem_width=1, stem_stride=1, head_width=0)
        if self.stem_stride > 2:
            raise SpaceError(f"stem_stride = {shown(self.stem_stride)} of the space {self.name}; it must be 1 or 2")
        known: dict[str, tuple[Any, ...]] = {
            "head": HEADS,
            "activation": tuple(ACTIVATION_CODES),
            "padding": PADDINGS,
            "se_act": (None, *ACTIVATION_CODES),
            "se_gate": GATES,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                named = ", ".join(repr(value) for value in values)
                raise SpaceError(
                    f"{name} = {shown(getattr(self, name))} of the space {self.name}; it must be one of {named}"
                )
        if not isinstance(self.head_bias, bool):
            raise SpaceError(f"head_bias = {shown(self.head_bias)} of the space {self.name}; it must be true or false")
        if self.head == "pooled" and not self.head_width:
            raise SpaceError(f"head_width = 0 of the space {self.name}; a pooled head needs 1 channel or more")
        # Batch norm divides by epsilon where all values are equal, and learns nothing at a momentum of 0.
        fits: dict[str, tuple[Callable[[float], bool], str]] = {
            "bn_eps": (lambda value: 0 < value < 1, "between 0 and 1"),
            "bn_momentum": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
            "drop_rate": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
            "drop_path_rate": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
        }
        for name, (fit, words) in fits.items():
            if not is_number(getattr(self, name)) or not fit(getattr(self, name)):
                raise SpaceError(f"{name} = {shown(getattr(self, name))} of the space {self.name}; it must be {words}")
        self._check_options()
        if not self.stages or not all(self.stages) or sum(map(len, self.stages)) > MOST_BLOCKS:
            raise SpaceError(f"the space {self.name} needs 1 to {MOST_BLOCKS} blocks, and one or more in every stage")
        in_width = self.stem_width
        for number, stage in enumerate(self.stages):
            for index, block in enumerate(stage):
                block.check(in_width, f"block {number}.{index} of the space {self.name}")
                if index and block.stride > 1:
                    raise SpaceError(
                        f"block {number}.{index} of the space {self.name} strides; only the first one of a stage may"
                    )
                for candidate in self._candidates(block, in_width).values():
                    if candidate is not None and max(candidate.hidden, candidate.squeeze) > MOST_CHANNELS:
                        raise SpaceError(
                            f"block {number}.{index} of the space {self.name} would have {candidate.hidden} hidden "
                            f"channels with expansions = {list(self.expansions)}; {MOST_CHANNELS} is the most"
                        )
                in_width = block.width
        if not self.edges():
            raise SpaceError(
                f"there is nothing to choose in the space {self.name} with kernels = {list(self.kernels)}, "
                f"expansions = {list(self.expansions)}; name others than the model's own"
            )

    def _check_options(self) -> None:
        for kernel in self.kernels:
            if not is_integer(kernel) or not 3 <= kernel <= LARGEST_KERNEL or kernel % 2 == 0:
                raise SpaceError(
                    f"kernel {shown(kernel)} of the space {self.name}; kernels must be odd, 3 to {LARGEST_KERNEL}"
                )
        for expansion in self.expansions:
            if not is_number(expansion) or not 1 <= expansion <= MOST_EXPANSION:
                raise SpaceError(
                    f"expansion {shown(expansion)} of the space {self.name}; expansions must be 1 to {MOST_EXPANSION}"
                )
        if not isinstance(self.weights, str) or not self.weights:
            raise SpaceError(
                f"weights = {shown(self.weights)} of the space {self.name}; give pretrained, none or a file of "
                "safetensors"
            )

    def scaled_widths(self, width_mult: float) -> dict[str, Any]:
        """Refuse: a timm model has the widths that its weights have.

        Raises:
            SpaceError: Always.
        """
        raise SpaceError(
            f"width_mult = {shown(width_mult)}, but the space {self.name} has its model's widths; name a model of "
            "others"
        )

    # ---- blocks ------------------------------------------------------------------------------------------------

    @cached_property
    def placed(self) -> tuple[PlacedBlock, ...]:
        """Every block from input to output."""
        return tuple(self._placed())

    def _placed(self) -> Iterator[PlacedBlock]:
        in_width = self.stem_width
        for number, stage in enumerate(self.stages):
            for index, block in enumerate(stage):
                candidates = self._candidates(block, in_width)
                yield PlacedBlock(number, index, in_width, block, candidates if len(candidates) > 1 else {})
                in_width = block.width

    def _candidates(self, block: NetBlock, in_width: int) -> dict[str, NetBlock | None]:
        if block.kind not in SEARCHED:
            return {}
        hiddens = {block.hidden}
        if block.kind in EXPANDED:
            hiddens |= {make_divisible(in_width * expansion) for expansion in self.expansions}
        found: dict[str, NetBlock | None] = {}
        for kernel in sorted({block.kernel, *self.kernels}):
            for hidden in sorted(hiddens):
                made = block.resized(kernel, hidden, squeeze_follows=self.head == "pooled")
                # A dot would end the name of a module.
                name = f"{kernel}x{kernel}_e{made.expansion(in_width).replace('.', '_')}"
                found[name] = made
        if block.passes(in_width):
            found[SKIP] = None
        return found

    def edges(self) -> tuple[PlacedBlock, ...]:
        """Return every block where something is chosen, from input to output."""
        return tuple(block for block in self.placed if block.candidates)

    def candidates(self) -> dict[str, tuple[str, ...]]:
        """Return the candidates' names of every edge, by label."""
        return {edge.label: tuple(edge.candidates) for edge in self.edges()}

    def edge_paths(self) -> dict[str, str]:
        """Return the path of every edge's module in the built space, by label."""
        return {edge.label: edge.path for edge in self.edges()}

    def original(self) -> dict[str, str]:
        """Return the choices that are the model itself."""
        return {edge.label: edge.own for edge in self.edges()}

    def check_weights(self) -> None:
        """Refuse weights that a built space could not start from, before anything else takes its time.

        Raises:
            SpaceError: They are missing, cannot be fetched, or are of another network.
        """
        from .network import original_network  # knows this module

        original_network(self, num_classes=1000, in_chans=3)

    def feeding(self) -> dict[str, Any]:
        """Return how the images were made that its weights have seen: mean, std, interpolation, crop and range."""
        from .reader import feeding  # knows this module

        return feeding(self)

    def note(self) -> str | None:
        """Say which blocks stay as they are; None where all are searched."""
        kept = [block for block in self.placed if block.block.kind == "er"]
        if not kept:
            return None
        return f"{len(kept)} of {len(self.placed)} blocks are edge-residual ones and stay as they are"

    def kept(self, choices: Mapping[str, str]) -> Iterator[tuple[int, int, PlacedBlock, NetBlock]]:
        """Yield every block that is not skipped: `(stage, index)` in the subnet, where it stood, and the chosen block.

        A stage that loses all of its blocks is gone, and later ones are renumbered.
        """
        stage, index, previous = -1, 0, -1
        for placed in self.placed:
            block = placed.candidates[choices[placed.label]] if placed.candidates else placed.block
            if block is None:
                continue
            if placed.stage != previous:
                stage, index, previous = stage + 1, 0, placed.stage
            yield stage, index, placed, block
            index += 1

    # ---- the network -------------------------------------------------------------------------------------------

    def build(self, *, num_classes: int = 1000, in_chans: int = 3) -> TimmModelSpace:
        """Build the space as an NNI ModelSpace with its `weights`, ready for `ProxylessStrategy`.

        Raises:
            SpaceError: The weights are missing or of another network.
        """
        from .network import TimmModelSpace  # knows this module

        return TimmModelSpace(self, num_classes=num_classes, in_chans=in_chans)

    def costs(self, input_size: int, *, num_classes: int = 1000, in_chans: int = 3) -> SpaceCosts:
        """Return the operators of this space at `input_size x input_size` pixels."""
        size = math.ceil(input_size / self.stem_stride)
        shared = {"padding": self.padding, "squeeze_activation": self.se_act or "", "gate": self.se_gate}
        stem = NetBlock("cn", self.stem_width, 3, self.stem_stride, 0, 0, self.activation, False)
        order: list[OpSpec | str] = [stem.spec(in_chans, input_size, **shared)]
        edges: dict[str, dict[str, OpSpec]] = {}
        width = self.stem_width
        for placed in self.placed:
            if placed.candidates:
                edges[placed.label] = {
                    name: skip_spec(BlockShape(width, width, 1), size)
                    if block is None
                    else block.spec(width, size, **shared)
                    for name, block in placed.candidates.items()
                }
                order.append(placed.label)
            else:
                order.append(placed.block.spec(width, size, **shared))
            size, width = math.ceil(size / placed.block.stride), placed.block.width
        if self.head == "conv" and self.head_width:
            last = NetBlock("cn", self.head_width, 1, 1, 0, 0, self.activation, False)
            order.append(last.spec(width, size))
            width = self.head_width
        shape = (width, size, size)
        if self.head == "pooled":
            kind = "efficient_head" if self.head_bias else "unbiased_efficient_head"
            hidden = {"hidden": self.head_width, "activation": self.activation}
            order.append(OpSpec(kind, shape, (num_classes,), **hidden))  # type: ignore[arg-type]
        else:
            order.append(OpSpec("head", shape, (num_classes,)))
        return SpaceCosts(self.name, input_size, in_chans, tuple(order), edges, original=self.original())

    def arch_def(self, choices: Mapping[str, str]) -> list[list[str]]:
        """Write a choice as timm's arch strings: one list a stage, one string a block; skipped blocks are left out."""
        stages: list[list[str]] = []
        for stage, _, placed, block in self.kept(choices):
            if stage == len(stages):
                stages.append([])
            stages[stage].append(block.string(placed.in_width, activation=self.activation))
        return stages

    def model_args(self, choices: Mapping[str, str], *, num_classes: int = 1000, in_chans: int = 3) -> dict[str, Any]:
        """Return the keyword arguments of `timm.create_model('proxylessnas', **args)`."""
        usual: dict[str, Any] = {
            "pad_type": (self.padding, ""),
            "head": (self.head, "conv"),
            "head_bias": (self.head_bias, True),
            "se_act": (self.se_act, None),
            "se_gate": (self.se_gate, "sigmoid"),
            "drop_rate": (self.drop_rate, 0.0),
            "drop_path_rate": (self.drop_path_rate, 0.0),
        }
        return {
            "arch_def": self.arch_def(choices),
            "stem_size": self.stem_width,
            "stem_stride": self.stem_stride,
            "num_features": self.head_width,
            "act_layer": self.activation,
            "bn_eps": self.bn_eps,
            "bn_momentum": self.bn_momentum,
            "num_classes": num_classes,
            "in_chans": in_chans,
            **{name: value for name, (value, default) in usual.items() if value != default},
        }

    def timm_names(self, weights: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
        """Return a frozen space's weights under timm's keys: skipped blocks are gone and later ones renumbered.

        Args:
            weights: `state_dict()` of the space frozen at `choices`.
            choices: A candidate for every edge.
        """
        kept = {key: value for key, value in weights.items() if not key.startswith("blocks.")}
        places = [(placed.path, f"blocks.{stage}.{index}") for stage, index, placed, _ in self.kept(choices)]
        return kept | moved(weights, places)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` reads them back, without the weights that it started from."""
        values = asdict(self)
        del values["model"], values["weights"]
        return {"kind": self.kind, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            SpaceError: A field is missing or unknown. Where weights come from is unknown too: no file may have them
                fetched, or have a file of its reader's opened.
        """
        for name in ("model", "weights"):
            if name in values:
                raise SpaceError(f"{name} = {shown(values[name])} in a file of a space of kind {cls.kind}; remove it")
        return super().from_dict(values)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert values of JSON to those of the fields; a block is a mapping of `NetBlock`'s fields there."""
        converted = super().from_plain(values)
        if "stages" in values:
            try:
                converted["stages"] = tuple(
                    tuple(block if isinstance(block, NetBlock) else NetBlock(**block) for block in stage)
                    for stage in values["stages"]
                )
            except TypeError as error:
                raise SpaceError(f"stages of a space of kind {cls.kind}: {cut(str(error))}; export again") from error
        return converted
