"""Settings for a search on pictures that were only looked at: a commented YAML file that runs as it is."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.survey import Survey

SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
"""Input sizes; 32 is the least at which every stage of `small_mbconv` has pixels."""
CPU_SIDE, GPU_SIDE = 64, 224
"""Greatest input sizes: what trains in minutes on a CPU's cores, and what a released network has."""
WEIGHT_STEPS, ARCHITECTURE_STEPS, RETRAIN_STEPS = 1500, 150, 2000
"""What a short search needs: supernet and alpha hardly move in fewer (`tests/benchmarks/target.py`)."""
ARCHITECTURE_SHARE = 0.3


@dataclass(frozen=True)
class Proposal:
    """Settings that follow from the pictures and the device.

    Attributes:
        input_size: Side of the network's image.
        channels: 1 or 3.
        space: The space's name.
        batch_size: Images of a step.
        warmup_epochs: Epochs of the warm-up.
        epochs: Epochs after it.
        steps_per_update: Weight steps between two architecture steps.
        retrain_epochs: Epochs of the retraining.
        workers: Processes that read images.
    """

    input_size: int
    channels: int
    space: str
    batch_size: int
    warmup_epochs: int
    epochs: int
    steps_per_update: int
    retrain_epochs: int
    workers: int


def propose(found: Survey, *, on_gpu: bool, cores: int) -> Proposal:
    """Choose settings by the number and the size of pictures.

    Args:
        found: What the folder holds.
        on_gpu: Whether a GPU trains.
        cores: Cores that this process may use.
    """
    fitting = [side for side in SIDES if side <= min(found.side, GPU_SIDE if on_gpu else CPU_SIDE)]
    size = fitting[-1] if fitting else SIDES[0]
    weights = math.floor((1 - ARCHITECTURE_SHARE) * found.images)
    # Enough steps in an epoch for its end to mean something, and batches large enough for batch norm.
    batch = max(2, min(128 if on_gpu else 64, 2 ** int(math.log2(max(2, weights / 8)))))
    per_epoch = max(1, weights // batch)
    total = max(12, min(200, math.ceil(WEIGHT_STEPS / per_epoch)))
    warmup = max(2, total // 4)
    epochs = total - warmup
    done = per_epoch * (epochs - 1)
    return Proposal(
        input_size=size,
        channels=1 if found.grey > 0.95 else 3,
        space="imagenet_mbconv" if size >= 128 else "small_mbconv",
        batch_size=batch,
        warmup_epochs=warmup,
        epochs=epochs,
        steps_per_update=max(1, min(5, done // ARCHITECTURE_STEPS)),
        retrain_epochs=max(20, min(200, math.ceil(RETRAIN_STEPS / max(1, found.images // batch)))),
        # A process that is started for a handful of pictures costs more than it reads.
        workers=min(4, cores - 1) if found.images >= 2000 else 0,
    )


def search_yaml(found: Survey, proposal: Proposal, *, backend: str, device: str | None, out: Path) -> str:
    """Return the file's text, whose paths count from its folder.

    Args:
        found: What the folder holds.
        proposal: See `propose`.
        backend: What measures latencies.
        device: Which of the backend's devices; None: its own choice.
        out: The file's path.
    """
    grey, run = proposal.channels == 1, f"runs/{out.stem}"
    sides, counts = sorted(found.sides), sorted(found.train.values())
    file, lost = shlex.quote(out.name), found.unreadable
    notes = [
        "A search that `proxyless init` proposed; change what you like. Paths count from this file.",
        "",
        f"  proxyless search {file}: search, retrain, export and measure; one that was killed continues",
        f"  proxyless report {shlex.quote(run)}: a page and a picture of it",
        f"  proxyless latency prepare {file}: measure the latency table alone, and see the fastest and slowest subnet",
        "",
        f"{found.images} training pictures and {sum(found.val.values())} for the test, in {len(counts)} classes of "
        f"{_span(counts)}.",
        f"Of {len(sides)} that were looked at, the shorter side has {_span(sides)} pixels (median "
        f"{found.side}); modes: {', '.join(f'{count} {mode}' for mode, count in found.modes.items())}.",
    ]
    rows: list[tuple[str, str]] = [
        (f"space: {proposal.space}", "`proxyless list spaces` names others"),
        ("data:", ""),
        ("  name: imagefolder", "ROOT/train/CLASS and ROOT/val/CLASS"),
        (f"  root: {_text(str(found.root.absolute()))}", ""),
        *([("  options: {channels: 1}", "nearly all pictures are grey")] if grey else []),
        *([("  background: white", "what transparent pixels are laid on")] if found.transparent else []),
        *([("  skip_unreadable: true", f"{lost} that were looked at cannot be read")] if lost else []),
        (f"  augment: {'crop' if grey else 'crop_flip'}", "none, crop, crop_flip or imagenet"),
        (f"  workers: {proposal.workers}", "processes that read pictures"),
        (f"  architecture_fraction: {ARCHITECTURE_SHARE}", "share of the pictures that chooses the architecture"),
        (f"input_size: {proposal.input_size}", f"pixels a side, of {proposal.channels} channels"),
        ("hardware:", ""),
        (f"  backend: {backend}", "what measures latencies; `proxyless list backends` names others"),
        *([] if device is None else [(f"  device: {_text(device)}", "of the backend's devices")]),
        ("  threads: 1", "that one inference may use"),
        ("rule: gradient", "or reinforce"),
        ("target: 0.5", "of the way from the fastest to the slowest subnet; or target_ms: MILLISECONDS"),
        ("search:", ""),
        (f"  warmup_epochs: {proposal.warmup_epochs}", "only weights are trained"),
        (f"  epochs: {proposal.epochs}", "then weights and architecture in turn"),
        (f"  batch_size: {proposal.batch_size}", ""),
        (f"  steps_per_update: {proposal.steps_per_update}", "weight steps between two architecture steps"),
        ("  channels_last: true", "faster on a CPU"),
        ("retrain:", "the subnet, from fresh weights"),
        (f"  epochs: {proposal.retrain_epochs}", ""),
        (f"  batch_size: {proposal.batch_size}", ""),
        (f"out: {_text(run)}", ""),
    ]
    lines = [f"# {note}".rstrip() for note in notes] + [""]
    return "\n".join(lines + [f"{row:29} # {why}" if why else row for row, why in rows]) + "\n"


def _span(numbers: Sequence[int]) -> str:
    """Say the least and the greatest of sorted numbers, once where they are the same.

    >>> _span([3, 4, 9]), _span([32, 32])
    ('3 to 9', '32')
    """
    least, most = numbers[0], numbers[-1]
    return f"{least}" if least == most else f"{least} to {most}"


def _text(value: str) -> str:
    return json.dumps(value)  # a text of JSON is one of YAML
