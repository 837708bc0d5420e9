"""Learning rates of a supernet's layers: whose they are, and that nothing changes where there is one rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from hardware.errors import ConfigError
from proxyless_strategy.config import SearchSettings, parse_config
from proxyless_strategy.runs import search
from proxyless_strategy.runs.checkpoints import find_checkpoints
from proxyless_strategy.runs.classifier import ImageClassifier
from proxyless_strategy.runs.layer_rates import LAYER_DECAY, layer_decay, layer_scales
from proxyless_strategy.runs.prepare import prepare
from search_spaces import get_space
from tests.proxyless_strategy.runs.test_early_checks import settings


def space_of(name: str, **options: Any) -> Any:
    return get_space(name, **options)


LITE = {"kernels": [5], "expansions": [3], "weights": "none"}


def test_all_candidates_of_a_block_share_its_rate() -> None:
    space = space_of("timm:efficientnet_lite0", **LITE)
    found = layer_scales(space.build(num_classes=10, in_chans=3), 0.5)
    for label, path in space.edge_paths().items():
        of_block = {scale for name, scale in found.items() if name.startswith(f"{path}.")}
        assert len(of_block) == 1, label
    # 16 blocks, the last with the convolution after it, then the classifier.
    assert found["conv_stem.weight"] == 0.5**17
    assert found["blocks.0.0.3x3_e1.conv_dw.weight"] == 0.5**16
    assert found["classifier.weight"] == found["classifier.bias"] == 1.0


def test_the_original_path_has_the_rates_that_timm_gives_the_model() -> None:
    space = space_of("timm:efficientnet_lite0", **LITE)
    model = timm.create_model("efficientnet_lite0", num_classes=10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(model, layer_decay=0.8)
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    own = {edge.path: edge.own for edge in space.edges()}
    for name, scale in layer_scales(space.build(num_classes=10, in_chans=3), 0.8).items():
        parts = name.split(".")
        if own.get(".".join(parts[:3])) in (None, parts[3] if len(parts) > 3 else None):
            plain = ".".join(parts[:3] + parts[4:]) if ".".join(parts[:3]) in own else name
            assert scale == pytest.approx(expected.pop(plain)), name
    assert expected == {}


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "small_mbconv"])
def test_the_head_learns_fastest_in_every_space_of_blocks(name: str) -> None:
    network = space_of(name, **(LITE if name.startswith("timm:") else {})).build(num_classes=10, in_chans=3)
    found = layer_scales(network, 0.9)
    assert found.keys() == {name for name, _ in network.named_parameters()}
    ordered = [found[f"{part}.weight"] for part in ("conv_stem", "conv_head", "classifier")]
    assert ordered == sorted(ordered)
    assert ordered[-1] == 1.0 > ordered[-2] > ordered[0]


# ---- which one -----------------------------------------------------------------------------------------------------


def config_of(**search_settings: Any) -> Any:
    return parse_config({"search": search_settings})


def test_a_space_without_weights_has_one_rate() -> None:
    for space in (space_of("small_mbconv"), space_of("timm:efficientnet_lite0", **LITE)):
        assert layer_decay(config_of(), space) is None
        assert layer_decay(config_of(layer_decay=0.7), space) == 0.7
        assert layer_decay(config_of(layer_decay=1), space) is None


def test_a_space_with_weights_has_lower_ones_for_its_body() -> None:
    space = space_of("timm:efficientnet_lite0", **{**LITE, "weights": "pretrained"})
    assert layer_decay(config_of(), space) == LAYER_DECAY < 1
    assert layer_decay(config_of(), space, groups=18) == LAYER_DECAY
    assert layer_decay(config_of(), space, groups=1) is None, "an older version began it"
    assert layer_decay(config_of(layer_decay=1), space) is None


def test_a_network_that_is_no_row_of_blocks_is_refused_before_the_search(tmp_path: Path) -> None:
    tree = {"name": "cifar_tree", "options": {"blocks": 1, "stem_width": 4, "alpha": 8, "bottleneck": 2}}
    config = parse_config(settings(tmp_path, space=tree, **{"search.layer_decay": 0.8}))
    with pytest.raises(ConfigError, match=r"search.layer_decay = 0.8 needs a network of blocks in a row, which .*tree"):
        prepare(config, quiet=True)


# ---- what the optimiser does with them -----------------------------------------------------------------------------


class Trainer:
    estimated_stepping_batches = 12


def optimizer_of(decay: float | None) -> tuple[torch.nn.Module, Any, Any]:
    recipe = SearchSettings(warmup_epochs=1, epochs=2, learning_rate=0.4, warmup_learning_rate=0.2)
    classifier = ImageClassifier(recipe, decay=decay)
    classifier.set_model(space_of("small_mbconv").build(num_classes=10, in_chans=1))
    classifier.trainer = Trainer()  # type: ignore[assignment]
    made = classifier.configure_optimizers()
    return classifier.model, made["optimizer"], made["lr_scheduler"]["scheduler"]


def test_one_rate_is_todays_optimiser() -> None:
    network, optimizer, _ = optimizer_of(None)
    (group,) = optimizer.param_groups
    assert list(map(id, group["params"])) == list(map(id, network.parameters()))
    plain = torch.optim.SGD(network.parameters(), lr=0.4, momentum=0.9, nesterov=True, weight_decay=4e-5)
    same = {key: value for key, value in plain.param_groups[0].items() if key != "params"}
    assert {key: group[key] for key in same} == {**same, "lr": 0.2}, "the warm-up's rate"


def test_every_rate_follows_the_schedule() -> None:
    network, optimizer, scheduler = optimizer_of(0.5)
    scales = layer_scales(network, 0.5)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    _, plain, plain_scheduler = optimizer_of(None)
    for _ in range(12):
        rate = plain.param_groups[0]["lr"]
        seen = set()
        for group in optimizer.param_groups:
            assert group["weight_decay"] == plain.param_groups[0]["weight_decay"]
            for parameter in group["params"]:
                seen.add(names[id(parameter)])
                assert group["lr"] == pytest.approx(rate * scales[names[id(parameter)]])
        assert seen == scales.keys()
        for each in (optimizer, plain):
            each.step()
        scheduler.step()
        plain_scheduler.step()


def test_a_checkpoint_tells_whether_it_has_one_rate(tmp_path: Path) -> None:
    # Stem, first block, second block with the last convolution, classifier.
    for decay, groups in ((1, 1), (0.8, 4)):
        prepared = prepare(
            parse_config(settings(tmp_path / str(decay), retrain=None, **{"search.layer_decay": decay})), quiet=True
        )
        assert find_checkpoints(prepared).groups is None
        subnet, _ = search.search_supernet(prepared, lambda _: None)
        assert find_checkpoints(prepared).groups == groups
        # Continued after the last epoch: its optimiser is read back.
        assert search.search_supernet(prepared, lambda _: None)[0] == subnet
