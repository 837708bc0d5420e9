"""Released configs and checkpoints, against the released files themselves and a second evaluation of their layout."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from hardware.errors import ProxylessError
from proxyless_strategy.cli.main import main
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.export.released import import_released
from search_spaces.nni_import import import_nni

import_nni()
from search_spaces.released import read_checkpoint, read_config  # noqa: E402

DATA = Path(__file__).parents[2].parent / "shared" / "data"
NAME = "proxyless-w0.3-r176_imagenet"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the released files are not at {DATA}")


def released_output(config, tensors, x):
    """The network of a released config, evaluated block by block with `torch.nn.functional` alone."""

    def conv(x, prefix, *, stride=1, groups=1, activate=True):
        weight = tensors[f"{prefix}.conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        norm = [tensors[f"{prefix}.bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *norm, training=False, eps=config["bn"]["eps"])
        return F.relu6(x) if activate else x

    x = conv(x, "first_conv", stride=config["first_conv"]["stride"])
    for number, block in enumerate(config["blocks"]):
        layer, prefix = block["mobile_inverted_conv"], f"blocks.{number}.mobile_inverted_conv"
        if layer["name"] == "ZeroLayer":
            continue
        y = conv(x, f"{prefix}.inverted_bottleneck") if layer["expand_ratio"] > 1 else x
        y = conv(y, f"{prefix}.depth_conv", stride=layer["stride"], groups=y.shape[1])
        y = conv(y, f"{prefix}.point_linear", activate=False)
        x = x + y if block["shortcut"] else y
    x = conv(x, "feature_mix_layer").mean((2, 3))
    return F.linear(x, tensors["classifier.linear.weight"], tensors["classifier.linear.bias"])


def conv_layer(kernel, in_channels, out_channels, *, stride=1):
    return {
        "name": "ConvLayer",
        "kernel_size": kernel,
        "stride": stride,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "act_func": "relu6",
    }


def block(in_channels, out_channels, kernel, expansion, *, stride=1, shortcut=False):
    layer = {
        "name": "MBInvertedConvLayer",
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": kernel,
        "stride": stride,
        "expand_ratio": expansion,
    }
    identity = {"name": "IdentityLayer"} if shortcut else None
    return {"name": "MobileInvertedResidualBlock", "mobile_inverted_conv": layer, "shortcut": identity}


def skipped():
    return {
        "name": "MobileInvertedResidualBlock",
        "mobile_inverted_conv": {"name": "ZeroLayer", "stride": 1},
        "shortcut": {"name": "IdentityLayer"},
    }


def small_config():
    return {
        "name": "ProxylessNASNets",
        "bn": {"momentum": 0.1, "eps": 0.01},
        "first_conv": conv_layer(3, 3, 16, stride=2),
        "blocks": [
            block(16, 8, 3, 1),
            skipped(),
            block(8, 8, 5, 3, shortcut=True),
            block(8, 16, 5, 3, stride=2),
            skipped(),
            block(16, 16, 7, 6, shortcut=True),
            block(16, 24, 3, 6),
        ],
        "feature_mix_layer": conv_layer(1, 24, 40),
        "classifier": {"name": "LinearLayer", "in_features": 40, "out_features": 7, "bias": True, "act_func": None},
    }


def written(folder, config, *, name="small-r32"):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


def random_checkpoint(config_path):
    """Random tensors under the released keys, with variances above 0."""
    network = read_config(config_path)
    shapes = timm.create_model("proxylessnas", **network.model_args()).state_dict()
    torch.manual_seed(0)
    return {
        key: torch.tensor(3) if key.endswith("tracked") else 0.2 + torch.rand(shapes[target].shape)
        for key, target in network.key_map().items()
    }


def test_a_small_network_gives_the_released_outputs(tmp_path):
    config = small_config()
    path = written(tmp_path, config)
    tensors = random_checkpoint(path)
    torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, tmp_path / "small.pth")
    model = load_exported(import_released(path, tmp_path / "small.pth", tmp_path / "out"))
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), released_output(config, tensors, images))
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.num_classes == 7


@needs_data
def test_the_released_net_is_imported_whole(tmp_path, capsys):
    config_path, checkpoint = DATA / f"{NAME}.json", DATA / f"{NAME}.pth"
    with pytest.raises(SystemExit) as status:
        main(["import-released", str(config_path), str(checkpoint), "--out", str(tmp_path / "w03")])
    assert not status.value.code
    assert str(tmp_path / "w03") in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{tmp_path / 'w03'}", pretrained=True).eval()
    tensors = torch.load(checkpoint, weights_only=True)["state_dict"]
    mapping = read_config(config_path).key_map()
    weights = model.state_dict()
    assert len(tensors) == len(mapping) == len(set(mapping.values())) == len(weights) == 368
    assert all(torch.equal(weights[target], tensors[key]) for key, target in mapping.items())
    assert model.pretrained_cfg["input_size"] == (3, 176, 176)
    images = torch.randn(2, 3, 176, 176, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model(images)
        expected = released_output(json.loads(config_path.read_text()), tensors, images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.5
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.754e6, abs=500)


@needs_data
@pytest.mark.parametrize("variant", ["cpu", "gpu", "mobile", "mobile_14"])
def test_the_released_configs_are_the_registered_models(variant):
    args = read_config(DATA / f"proxyless_{variant}.config").model_args()
    config = timm.create_model("proxylessnas", **args)
    registered = timm.create_model(f"proxylessnas_{variant}")
    assert repr(config) == repr(registered)
    assert read_config(DATA / f"proxyless_{variant}.config").input_size == 224


def test_the_hubs_mobile_net_is_ours():
    from nni.nas.hub.pytorch import ProxylessNAS

    try:
        hub = ProxylessNAS.load_searched_model("proxyless-mobile")
    except OSError as error:
        pytest.skip(f"NNI's hub wanted to download something: {error}")
    torch.manual_seed(0)
    for name, value in hub.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    ours = timm.create_model("proxylessnas_mobile")
    ours.load_state_dict(dict(zip(ours.state_dict(), hub.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), hub.eval()(images), atol=1e-5, rtol=1e-5)
    assert len(ours.state_dict()) == 368


def test_without_a_checkpoint_the_folder_says_that_weights_are_random(tmp_path):
    folder = import_released(written(tmp_path, small_config()), None, tmp_path / "out", input_size=48)
    assert json.loads((folder / "metrics.json").read_text())["weights"] == "random"
    assert load_exported(folder).pretrained_cfg["input_size"] == (3, 48, 48)


@pytest.mark.parametrize(
    ("name", "resolution", "size"),
    [("net-r96_imagenet", None, 96), ("net-r96", 128, 128), ("proxyless_mobile", None, 224), ("car2000", None, 224)],
)
def test_the_input_size_is_that_of_the_config_then_of_the_name(tmp_path, name, resolution, size):
    config = small_config() | ({} if resolution is None else {"resolution": resolution})
    assert read_config(written(tmp_path, config, name=name)).input_size == size


def changed(*path, to):
    def change(config):
        part = config
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = to

    return change


BLOCK3 = ("blocks", 3, "mobile_inverted_conv")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("name", to="MobileNetV3"), "describes a network 'MobileNetV3', not ProxylessNASNets"),
        (changed(*BLOCK3, "name", to="DenseLayer"), "block 3: mobile_inverted_conv is an unknown layer 'DenseLayer'"),
        (changed("blocks", 3, "name", to="Dense"), "block 3 is an unknown layer 'Dense'"),
        (changed("classifier", "name", to="ConvLayer"), "classifier is an unknown layer"),
        (changed(*BLOCK3, "use_se", to=True), "block 3: mobile_inverted_conv has squeeze-excite"),
        (changed(*BLOCK3, "in_channels", to=24), "in_channels = 24"),
        (changed(*BLOCK3, "mid_channels", to=20), "mid_channels = 20"),
        (changed(*BLOCK3, "kernel_size", to="5"), "kernel_size = '5'"),
        (changed(*BLOCK3, "kernel_size", to=4), "kernel 4"),
        (changed(*BLOCK3, "act_func", to="h_swish"), "act_func = 'h_swish'"),
        (changed("blocks", 5, "shortcut", to=None), "block 5 has no shortcut though one fits"),
        (changed("blocks", 3, "shortcut", to={"name": "IdentityLayer"}), "block 3 has a shortcut that does not fit"),
        (changed("blocks", 4, "shortcut", to=None), "block 4 is a ZeroLayer without a shortcut"),
        (changed("blocks", 4, "mobile_inverted_conv", "stride", to=2), "stride = 2"),
        (changed(*BLOCK3, to=None), "must describe a layer"),
        (changed("blocks", to=[]), "lists no blocks"),
        (changed("blocks", 0, "mobile_inverted_conv", "expand_ratio", to=6), "expand_ratio = 6"),
        (changed("blocks", 0, "mobile_inverted_conv", "in_channels", to=24), "block 0.* has in_channels = 24"),
        (changed("blocks", 0, "shortcut", to={"name": "IdentityLayer"}), "block 0 has shortcut = "),
        (changed("feature_mix_layer", "in_channels", to=32), "feature_mix_layer has in_channels = 32"),
        (changed("feature_mix_layer", "stride", to=2), "feature_mix_layer has stride = 2"),
        (changed("first_conv", "groups", to=3), "groups = 3"),
        (changed("first_conv", "act_func", to="mish"), "act_func = 'mish'"),
        (changed("classifier", "in_features", to=41), "in_features = 41"),
        (changed("bn", "eps", to="small"), "eps = 'small'"),
        (lambda config: config.pop("feature_mix_layer"), "has no feature_mix_layer"),
        (lambda config: config["blocks"][3]["mobile_inverted_conv"].pop("stride"), "has no stride"),
    ],
)
def test_another_config_is_refused_in_one_sentence(tmp_path, change, words):
    config = small_config()
    change(config)
    with pytest.raises(ProxylessError, match=words) as error:
        import_released(written(tmp_path, config), None, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"first_conv:", "no valid JSON"), (b"\xff\xfe\xff", "no text"), (b"[1]", "'list'")],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, words):
    path = tmp_path / "net.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProxylessError, match=words) as error:
        read_config(path)
    assert len(str(error.value).splitlines()) == 1


class Trap:
    """Would run on unpickling."""

    def __reduce__(self):
        return (open, ("trapped", "w"))


def without(tensors, key):
    return {name: value for name, value in tensors.items() if name != key}


WEIGHT = "blocks.3.mobile_inverted_conv.inverted_bottleneck.conv.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: without(tensors, WEIGHT), f"has no tensor {WEIGHT}"),
        (lambda tensors: tensors | {WEIGHT: torch.zeros(3)}, rf"{WEIGHT} of the checkpoint .* has shape \(3,\)"),
        (lambda tensors: tensors | {"extra": torch.zeros(3)}, "1 tensors without a place in this config, first extra"),
        (lambda tensors: {"state_dict": {"epoch": 3}}, "holds no state_dict of tensors"),
        (lambda tensors: {"state_dict": tensors, "trap": Trap()}, "nothing else in it will be unpickled"),
    ],
)
def test_another_checkpoint_is_refused_in_one_sentence(tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, small_config())
    torch.save(change(random_checkpoint(path)), "small.pth")
    with pytest.raises(ProxylessError, match=words) as error:
        import_released(path, Path("small.pth"), tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not Path("trapped").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot read"), (b"", "no checkpoint"), (b"PK", "no checkpoint")]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content, words):
    path = written(tmp_path, small_config())
    if content is not None:
        (tmp_path / "small.pth").write_bytes(content)
    with pytest.raises(ProxylessError, match=words):
        import_released(path, tmp_path / "small.pth", tmp_path / "out")


def test_counters_that_early_checkpoints_lack_are_zero(tmp_path):
    path = written(tmp_path, small_config())
    network, tensors = read_config(path), random_checkpoint(path)
    torch.save({key: value for key, value in tensors.items() if not key.endswith("tracked")}, tmp_path / "small.pth")
    shapes = {target: tensors[key].shape for key, target in network.key_map().items()}
    placed = read_checkpoint(tmp_path / "small.pth", network, shapes)
    assert placed["bn1.num_batches_tracked"] == 0
    assert set(placed) == set(timm.create_model("proxylessnas", **network.model_args()).state_dict())
