"""What Lightning's strategies are told for a search."""

import copy
import os
import signal

import pytest
import timm
import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import nn

from hardware.errors import TrainingError
from proxyless_strategy.strategy import processes
from proxyless_strategy.strategy.processes import TimmSyncBatchNorm
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from tests.proxyless_strategy import tiny


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:5007: Connection reset by peer."),
        torch.distributed.DistNetworkError("The client socket has timed out"),
        RuntimeError("NCCL communicator was aborted on rank 1"),
    ],
)
def test_a_partner_that_is_gone_is_named_in_one_sentence(error):
    sentence = r"^another process of this run has ended, .*repeat the command"
    with pytest.raises(TrainingError, match=sentence), processes.lost_process_named():
        raise error


class DiesAtItem(torch.utils.data.Dataset):
    """Ends the process that asks for an item, as the kernel does when memory runs out."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_read_images_and_is_gone_is_named_in_one_sentence():
    loader = torch.utils.data.DataLoader(DiesAtItem(), num_workers=1)
    sentence = r"^a process that reads images has ended .*lower data\.workers"
    with pytest.raises(TrainingError, match=sentence), processes.lost_process_named():
        next(iter(loader))


def test_other_errors_of_torch_keep_their_own_words():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), processes.lost_process_named():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def equal(first, second):
    """Names of the tensors that differ."""
    assert set(first) == set(second)
    return [name for name in first if not torch.equal(first[name], second[name])]


def test_lightnings_options_are_set_for_the_user():
    strategy = ProxylessStrategy()
    strategy.mutate_model(tiny.TinySpace())
    made = tiny.evaluator(devices=2, strategy="ddp", sync_batchnorm=True)
    assert type(made.trainer.strategy._layer_sync) is TorchSyncBatchNorm
    strategy.mutate_evaluator(made)
    options = made.trainer.strategy._ddp_kwargs
    assert options["find_unused_parameters"]
    assert options[processes.BUFFERS_OPTION] is False
    assert type(made.trainer.strategy._layer_sync) is TimmSyncBatchNorm


def test_synchronised_batch_norms_keep_timms_activations():
    definition = [["ds_r1_k3_s1_c8_noskip"], ["ir_r1_k3_s2_e3_c16"]]
    model = timm.create_model("proxylessnas", arch_def=definition, num_features=32).eval()
    x = torch.randn(1, 3, 32, 32) * 10
    expected, before = model(x), dict(model.state_dict())
    dropped = TorchSyncBatchNorm().apply(copy.deepcopy(model))
    assert not torch.allclose(dropped(x), expected), "torch's own conversion drops them: the reason for timm's"
    sync = TimmSyncBatchNorm()
    converted = sync.apply(model)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == 7
    assert equal(before, converted.state_dict()) == []
    assert torch.equal(converted(x), expected), "in evaluation mode it needs no process group"
    reverted = sync.revert(converted)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in reverted.modules())
    assert equal(before, reverted.state_dict()) == []
    assert torch.equal(reverted(x), expected)
