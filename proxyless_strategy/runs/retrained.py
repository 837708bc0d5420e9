"""The subnet's network: what its training starts from, what teaches it, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
from torch import Tensor, nn

from hardware.errors import ConfigError
from search_spaces import SpaceDeclaration, Subnet
from search_spaces.from_timm.declaration import TimmDeclaration
from search_spaces.from_timm.paths import FOLDER, NONE, PRETRAINED

from ..checkpoints import short_digest
from ..config import RetrainSettings, SearchConfig
from ..data.images import ImageData
from ..export.folder import has_random_weights, read_export
from ..layout import CHECKPOINT, SEARCH_FILE
from ..progress import Told
from ..retraining.recipe import load_recipe
from ..retraining.setup import retraining_threads
from ..retraining.teacher import NO_TEACHER, load_teacher, other_classes, weights_digest
from ..retraining.trainer import begun_with, train
from ..seeds import isolated_seed

if TYPE_CHECKING:
    from .prepare import Prepared

Weights = Literal["supernet", "inherited", "fresh"]


def has_weights(space: SpaceDeclaration) -> bool:
    """Return whether a space starts from a timm model's weights."""
    return isinstance(space, TimmDeclaration) and space.weights != NONE


def starting_weights(config: SearchConfig, space: SpaceDeclaration) -> Weights:
    """Return which weights the subnet starts from; without retraining those of the supernet are exported.

    Raises:
        ConfigError: A space that inherits none is asked for inherited ones.
    """
    if config.retrain is None:
        return "supernet"
    asked = config.retrain.weights
    if asked == "inherited" and not has_weights(space):
        raise ConfigError(
            f"retrain.weights = inherited, but the space {config.space.name} has no weights to inherit; give supernet "
            "or fresh, or a timm: space with weights"
        )
    return asked or ("supernet" if has_weights(space) else "fresh")


def rate_of_fresh_weights(config: SearchConfig, space: SpaceDeclaration) -> str | None:
    """Return what is to be said of a fine-tuning whose config leaves the rate to the default; None: nothing.

    The default suits fresh weights, and spoils in a few epochs what others have learned.
    """
    settings = config.retrain
    if settings is None or starting_weights(config, space) == "fresh":
        return None
    if "learning_rate" in settings.model_fields_set:
        return None
    recipe = load_recipe("finetune").settings
    return (
        f"retrain has no learning_rate: trained weights go on with {settings.optimizer} at "
        f"{settings.learning_rate:g}, which is for fresh ones; the recipe finetune has {recipe.optimizer} at "
        f"{recipe.learning_rate:g}"
    )


def check_start(config: SearchConfig, space: SpaceDeclaration, weights: Mapping[str, Any]) -> None:
    """Refuse to retrain an ended search's subnet from weights that were not kept.

    Args:
        config: The search.
        space: Its space.
        weights: What it has kept.

    Raises:
        ConfigError: They are asked for by name; where they are the default, an older version has ended the search, and
            its subnet is retrained from fresh weights as it would have been then.
    """
    asked = None if config.retrain is None else config.retrain.weights
    if asked == "supernet" and not weights:
        raise ConfigError(
            f"retrain.weights = supernet, but the search in {config.out} kept no weights of its subnet; give inherited "
            f"or fresh, or remove {config.out / SEARCH_FILE} to search again from its checkpoint"
        )


def teacher_of(config: SearchConfig, space: SpaceDeclaration, data: ImageData) -> tuple[str | None, str | None]:
    """Return the name of the network that teaches the subnet, and what is to be said of it.

    Where none is named it is the original network of a space of an export folder whose classes are the data's: it has
    learned what the subnet is to learn. A model of other classes, as of ImageNet, can teach none of these.

    Returns:
        A name for `load_teacher`, or None; and a sentence, or None.
    """
    settings = config.retrain
    if settings is None or settings.teacher == NO_TEACHER:
        return None, None
    if settings.teacher is not None:
        return settings.teacher, None
    if not isinstance(space, TimmDeclaration) or space.weights == NONE:
        return None, None
    how = "retrain.teacher: NAME or ./FOLDER gives one"
    if space.weights != PRETRAINED or not space.model.startswith(FOLDER):
        return None, f"retraining without a teacher, as {space.name} has not learned these classes; {how}"
    folder = Path(space.model.removeprefix(FOLDER))
    if has_random_weights(folder) or other_classes(read_export(folder), data):
        return None, f"retraining without a teacher, as {space.name} has not learned these classes; {how}"
    return space.model, f"retraining with the original network, {space.name}, as teacher"


def trained_subnet(
    prepared: Prepared,
    subnet: Subnet,
    weights: Mapping[str, Tensor],
    report: Callable[[dict[str, Any]], None],
    told: Told,
) -> tuple[nn.Module, float | None]:
    """Return the subnet's network and its test accuracy: retrained, or as the supernet left it.

    Args:
        prepared: What the search stands on.
        subnet: What it has derived.
        weights: The subnet's in the supernet, where they were kept.
        report: Called once per epoch.
        told: Tells the user how far it is.
    """
    config, data, settings = prepared.config, prepared.data, prepared.config.retraining
    if settings is None:
        model_args = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
        model = timm.create_model(subnet.timm_name, **model_args)
        model.load_state_dict(weights)
        return model, None
    checkpoint = config.out / CHECKPOINT
    build, identity = builder(prepared, subnet, weights, settings)
    begun = begun_with(checkpoint)
    # A training that an older version began has no teacher that was not named.
    older = begun is not None and "teacher" not in begun
    teacher = retraining_teacher(config, prepared.space, data, named=older)
    threads = retraining_threads(settings, config.out, build, data, begun=checkpoint.exists())
    with threads.used():
        trained = train(
            build,
            data,
            settings,
            seed=config.seed,
            checkpoint=checkpoint,
            on_epoch=lambda metrics: report({"phase": "retrain", "default": metrics["accuracy"], **metrics}),
            on_place=lambda place: told.at("retrain", place),
            identity=identity,
            teacher=teacher,
        )
    return trained.model, trained.test_accuracy


def builder(
    prepared: Prepared, subnet: Subnet, weights: Mapping[str, Tensor], settings: RetrainSettings
) -> tuple[Callable[[], nn.Module], dict[str, str]]:
    """Return what makes a subnet with the weights that its training starts from, and what tells it from others.

    Args:
        prepared: What the search stands on.
        subnet: The subnet.
        weights: Its weights in the supernet, where they were kept.
        settings: The recipe.
    """
    data = prepared.data
    model_args = subnet.model_args(num_classes=data.num_classes, in_chans=data.channels)
    initial = _initial(prepared, subnet, weights)
    drop: dict[str, Any] = {"drop_rate": settings.dropout, "drop_path_rate": settings.drop_path}

    def build() -> nn.Module:
        # A network with rates of its own names them in its arguments; the recipe's count.
        model = timm.create_model(subnet.timm_name, **{**model_args, **drop})
        if initial is not None:
            model.load_state_dict(initial)
        return model

    # The weights do not tell: networks that differ in a stride alone have tensors of the same names and shapes.
    identity = {"network": short_digest([subnet.timm_name, model_args])}
    return build, identity | ({} if initial is None else {"starting_weights": weights_digest(initial)})


def retraining_teacher(
    config: SearchConfig, space: SpaceDeclaration, data: ImageData, *, named: bool = False, says: bool = True
) -> nn.Module | None:
    """Load the network that teaches the subnet; None where there is none.

    Args:
        config: The search.
        space: Its space.
        data: Its images.
        named: Whether only one that the config names counts.
        says: Whether to say what is to be said of it.
    """
    assert config.retrain is not None
    name, said = (config.retrain.teacher, None) if named else teacher_of(config, space, data)
    if said is not None and says:
        print(said, flush=True)
    return None if name in (None, NO_TEACHER) else load_teacher(str(name), data)


def _initial(prepared: Prepared, subnet: Subnet, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Return the weights that the retraining starts from, under timm's names; None for fresh ones."""
    config, data, space = prepared.config, prepared.data, prepared.space
    start = starting_weights(config, space)
    if start == "fresh":
        return None
    if start == "supernet":
        if not weights:
            print(f"{config.out} goes on as an older version began it: retraining from fresh weights", flush=True)
            return None
        return weights
    # As the search built it: a classifier of other classes is fresh, and the same one.
    with isolated_seed(config.seed):
        network = space.build(num_classes=data.num_classes, in_chans=data.channels)
    found: dict[str, Tensor] = network.timm_state_dict(subnet.choices)
    return found
