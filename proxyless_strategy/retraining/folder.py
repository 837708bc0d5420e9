"""`proxyless retrain`: an exported network trained by a recipe, into a new export folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_data_config
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from hardware.errors import ConfigError, DataError, ExportError, ProxylessError, TrainingError
from hardware.processor import say_if_busy

from ..checkpoints import short_digest
from ..config import DataConfig
from ..data.decoding import try_decoder
from ..data.hf_source import is_of_hub
from ..data.images import ImageData
from ..data.notice import notice
from ..data.pictures import picture_options
from ..data.sources import check_data, is_function, load_data
from ..data.unreadable import as_begun, noting_unreadable
from ..determinism import prepare_cublas
from ..export.folder import (
    CONFIG,
    check_replaceable,
    export_folder,
    has_random_weights,
    load_exported,
    read_choice,
    read_export,
)
from ..export.summary import model_summary
from ..layout import CHECKPOINT, MODEL
from ..norms import check_norm
from ..owner import owned
from ..progress import Phase, Told
from ..strategy.loopback import join
from ..strategy.meeting import first_before_others, met
from ..strategy.processes import lost_process_named
from ..world import World, current, entered, find_world, is_first, unused_port
from .recipe import Recipe
from .setup import check_training, retraining_threads
from .teacher import NO_TEACHER, load_teacher, other_classes, weights_digest
from .trainer import begun_with, train

_OF_DATA = ("num_classes", "in_chans")
_OF_TRAINING = ("drop_rate", "drop_path_rate")
"""Arguments of a network that its export does not decide here: the data and the recipe do."""
INHERITED = "inherited"


def retrain(
    folder: Path,
    *,
    data: Path,
    recipe: Recipe,
    out: Path,
    source: str = "imagefolder",
    devices: int = 1,
    nodes: int = 1,
) -> Path:
    """Train the network of an export folder, from fresh weights or from its own; a run that was killed continues.

    Args:
        folder: The export folder. Pictures are read as it says: channels, mean, std, interpolation, crop.
        data: Root of the images.
        recipe: How to train. With `weights: inherited` the folder's weights are what the training starts from, but for
            a classifier of other classes; else they are not read.
        out: Gets `retrain.ckpt` after each epoch, and at the end the export folder `model`.
        source: `data.name` of a search: imagefolder (ROOT/train/CLASS/*, ROOT/val/CLASS/*), webdataset, ...
        devices: Processes on each host, each with its share of every batch: one GPU each, or the CPU. Where it is 1,
            as many as torchrun has started.
        nodes: Hosts; several need a launcher that starts the processes, torchrun or srun.

    Returns:
        The new export folder. Further processes return it too, once it is written.

    Raises:
        ConfigError, DataError, ExportError, TrainingError: As their sentences say.
    """
    folder, out = Path(folder), Path(out)
    config = read_export(folder)
    read_choice(folder)
    if recipe.weights == INHERITED:
        if has_random_weights(folder):
            raise ConfigError(
                f"the weights of {folder} are random ones, which nothing is inherited from; retrain it by another "
                "recipe than finetune, or with weights=fresh"
            )
        load_exported(folder)
    data_config = _data_config(folder, config, data, recipe, source)
    check_data(data_config)
    try_decoder(data_config, trains_on_gpu=torch.cuda.is_available())
    check_replaceable(out / MODEL)
    if out.resolve() == folder.resolve() or (out / MODEL).resolve() == folder.resolve():
        raise ConfigError(f"out = {out} would replace the network that it trains; choose another folder")
    prepare_cublas("deterministic" if recipe.deterministic else None)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    check_norm(recipe.norm or "torch", place, None, setting="norm", channels_last=recipe.channels_last)
    world = find_world(devices, nodes, names=("devices", "nodes"), adopts=True)
    arguments = (folder, data, recipe, out, source)
    if world.first:
        say_if_busy()
    if world.launcher != "here":
        cuda = torch.cuda.is_available()
        with lost_process_named(), ExitStack() as owning, entered(world), met(world, cuda=cuda) as meeting:
            if world.launched and world.first:
                print(world.sentence(), flush=True)
            written = _run(*arguments, owning=owning)
            if meeting is not None:
                # Nobody leaves before the first process has tested and exported.
                meeting.wait()
            return written
    available = torch.cuda.device_count()
    if available and devices > available:
        raise ConfigError(f"devices = {devices}, but this machine has {available} GPUs; give at most {available}")
    if world.note is not None:
        notice(world.sentence())
    # torch passes on a dead process's traceback as text; the exception itself comes through this queue.
    refusals = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        torch.multiprocessing.start_processes(
            _process, (devices, unused_port(), refusals, arguments), nprocs=devices, start_method="spawn"
        )
    except ProcessException as error:
        if refusals.empty():
            if not isinstance(error, ProcessExitedException):
                raise
            how = error.signal_name or f"status {error.exit_code}"
            raise TrainingError(
                f"process {error.error_index} of {devices} ended by {how}; make room where it was memory, and repeat "
                "the command to continue from the last checkpoint"
            ) from error
        kind, sentence = refusals.get()
        raise kind(sentence) from error
    return out / MODEL


def test_part(source: str, root: Path) -> str:
    """Say which images a retrained network's accuracy is of.

    Args:
        source: See `retrain`.
        root: Root of the images.
    """
    return f"the test images in {root / 'val'}" if source == "imagefolder" else f"the test part of {source}"


def _process(rank: int, devices: int, port: int, refusals: Any, arguments: tuple[Any, ...]) -> None:
    world = World(devices, rank, devices, rank, launcher="here", port=port)
    try:
        with lost_process_named(), ExitStack() as owning, entered(world), _group(world):
            _run(*arguments, owning=owning)
    except ProxylessError as error:
        refusals.put((type(error), str(error)))
        raise


@contextmanager
def _group(world: World) -> Iterator[None]:
    """Join the processes that the first one has started on this machine."""
    assert world.port is not None
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(world.local_rank)
    join("nccl" if cuda else "gloo", rank=world.rank, world_size=world.size, port=world.port)
    try:
        yield
        # Nobody leaves before the first process has tested and exported.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def _data_config(folder: Path, config: Mapping[str, Any], root: Path, recipe: Recipe, source: str) -> DataConfig:
    """Return the data that is read as the network's search read its own, where the recipe does not say otherwise.

    Raises:
        ExportError: The export says nothing that can be read by.
    """
    # A data set of the hub lies where its library keeps it.
    shared: dict[str, Any] = {"root": None if is_of_hub(source) else root}
    shared |= {"augment": recipe.augment, "workers": recipe.workers}
    shared |= {"skip_unreadable": recipe.skip_unreadable, "decoder": recipe.decoder}
    try:
        feeding, pictures = (
            resolve_data_config(pretrained_cfg=dict(config["pretrained_cfg"])),
            config.get("pictures", {}),
        )
        options: dict[str, Any] = {name: feeding[name] for name in ("interpolation", "crop_pct", "crop_mode")}
        options |= {"channels": int(feeding["input_size"][0]), "range": pictures.get("range")}
        options |= {name: [float(value) for value in feeding[name]] for name in ("mean", "std")}
        shared["background"] = recipe.background or pictures.get("background")
        # A colour network's mean is none of grey pictures.
        if recipe.channels not in (None, options["channels"]):
            options |= {"channels": recipe.channels, "mean": None, "std": None}
        picture_options(DataConfig.model_validate({"name": "imagefolder", **shared, "options": options}), channels=3)
    except (DataError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"{folder / CONFIG} does not say what its network is fed with: {reason}; export it again"
        ) from error
    # A user's function takes options of its own; what it gives is compared.
    options = {**({} if is_function(source) else options), **recipe.source_options}
    return DataConfig.model_validate({"name": source, **shared, "options": options})


def _check_fed_alike(images: ImageData, folder: Path, config: Mapping[str, Any], recipe: Recipe, source: str) -> None:
    """Refuse images of a user's function that are not what the network was searched with."""
    feeding = resolve_data_config(pretrained_cfg=dict(config["pretrained_cfg"]))
    channels = recipe.channels or feeding["input_size"][0]
    if images.channels != channels:
        raise DataError(
            f"{source} gives images of {images.channels} channels, but the network of {folder} was searched with "
            f"{channels}; give such images, or set the recipe's channels to {images.channels}"
        )
    if channels != feeding["input_size"][0]:
        return
    for name in ("mean", "std"):
        there, here = tuple(feeding[name]), tuple(getattr(images, name))
        if not np.allclose(there, here, rtol=0, atol=1e-6):
            raise DataError(
                f"{source} gives images normalised with {name} {here}, but the network of {folder} was searched with "
                f"{there}; return an ImageData with that {name}"
            )


def _run(folder: Path, data: Path, recipe: Recipe, out: Path, source: str, *, owning: ExitStack) -> Path:
    config, subnet = read_export(folder), read_choice(folder)
    size = recipe.input_size or int(config["pretrained_cfg"]["input_size"][-1])
    data_config = _data_config(folder, config, data, recipe, source)
    begun = begun_with(out / CHECKPOINT)
    older = begun is not None and "pictures" not in begun
    if older:
        # It has learned from pictures that were read by default, and would now see others.
        notice(f"{out} goes on as an older version began it: its pictures are not read as {folder / CONFIG} says")
        options = dict(recipe.source_options)
        data_config = data_config.model_copy(update={"options": options, "background": recipe.background})
    images = as_begun(load_data(data_config, input_size=size, seed=recipe.seed), out)
    if not older:
        _check_fed_alike(images, folder, config, recipe, source)
    arguments = {**(config.get("model_args") or {})}
    for name in (*_OF_DATA, *_OF_TRAINING):
        arguments.pop(name, None)
    arguments |= {"num_classes": images.num_classes, "in_chans": images.channels}
    drop: dict[str, Any] = {"drop_rate": recipe.dropout, "drop_path_rate": recipe.drop_path}
    first = is_first()

    keeps_head = not other_classes(config, images)
    if first and recipe.weights == INHERITED:
        print(f"starting from the weights of {folder}{'' if keeps_head else ', with a fresh classifier'}", flush=True)

    def build() -> Any:
        if recipe.weights == INHERITED:
            # timm adapts the first convolution to other channels, and makes a classifier of another size anew.
            network: Any = load_exported(folder, **arguments, **drop)
            if not keeps_head:
                network.reset_classifier(images.num_classes)
            return network
        try:
            return timm.create_model(config["architecture"], **arguments, **drop)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"cannot build the network of {folder} from its {CONFIG}: {type(error).__name__}: {reason}; export it "
                "again"
            ) from error

    teacher = None if recipe.teacher in (None, NO_TEACHER) else load_teacher(str(recipe.teacher), images)
    check_training(images, recipe.settings, seed=recipe.seed, replicas=current().size)
    with first_before_others("ownership"):
        if first:
            owning.enter_context(owned(out))
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    threads = retraining_threads(
        recipe.settings, out, build, images, begun=(out / CHECKPOINT).exists(), names=("workers", "threads")
    )
    own = weights_digest(load_exported(folder).state_dict()) if recipe.weights == INHERITED else None
    told = Told([Phase("retrain", recipe.settings.epochs)], shown=first)
    with threads.used(), noting_unreadable(out, images), told:
        trained = train(
            build,
            images,
            recipe.settings,
            seed=recipe.seed,
            checkpoint=out / CHECKPOINT,
            on_epoch=lambda metrics: told.epoch({"phase": "retrain", "default": metrics["accuracy"], **metrics}),
            on_place=lambda place: told.at("retrain", place),
            device=device,
            identity={
                "source": source,
                "augment": recipe.augment,
                **({} if recipe.decoder == "pillow" else {"decoder": recipe.decoder}),
                "classes": short_digest(images.class_names),
                **({} if older else {"pictures": short_digest(data_config.model_dump(mode="json")["options"])}),
                # Where there was none, pictures that it concerns were refused: giving it changes nothing that was done.
                **({} if data_config.background is None else {"background": data_config.background}),
                # Networks that differ in a stride alone have tensors of the same names and shapes.
                "network": short_digest([config["architecture"], arguments]),
                **({} if own is None else {"starting_weights": own}),
            },
            teacher=teacher,
        )
    if not first:
        return out / MODEL
    summary = model_summary(trained.model, (images.channels, size, size))
    return export_folder(
        trained.model,
        out / MODEL,
        model_args=arguments,
        subnet=subnet,
        pretrained_cfg=images.pretrained_cfg(),
        metrics={
            "accuracy": trained.test_accuracy,
            "top5": trained.test_top5,
            "loss": trained.test_loss,
            "epochs": trained.epochs,
            "seconds": trained.seconds,
            "params": summary.params,
            "macs": summary.macs,
            "recipe": recipe.model_dump(),
            **images.record(),
        },
    )
