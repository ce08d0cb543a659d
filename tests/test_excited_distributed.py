"""Excitation beside the optimizer in two processes: the network that one of them trains on all images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from weanalysis.errors import ExcitationError
from weanalysis.excitation import ExcitedOptimizer, excite


def made() -> tuple[nn.Module, ExcitedOptimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = excite(net.double(), "lwe+mwe", reduction=2)
    return net, ExcitedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), net)


def batch(step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * step + micro)
    images = torch.randn(4, 3, 7, 7, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (4,), generator=generator)


def one_of_two(rank: int, folder: str) -> None:
    """Train with half of each micro-batch; then see what is said to shards."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net, optimizer = made()
    parallel = DistributedDataParallel(net)
    for step in range(3):
        for micro in range(2):
            images, targets = (part[rank::2] for part in batch(step, micro))
            parallel.require_backward_grad_sync = micro == 1
            F.cross_entropy(parallel(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    with optimizer.parametrized():
        torch.save(net.state_dict(), Path(folder) / f"{rank}.pt")
    said = []
    mesh = init_device_mesh("cpu", (2,))
    for before in (True, False):
        net, optimizer = made()
        if before:
            net = excite(nn.Sequential(nn.Conv2d(3, 8, 3)), "lwe")
        fully_shard(net, mesh=mesh)
        try:
            if before:
                ExcitedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), net)
            optimizer.step()
        except ExcitationError as error:
            said.append(str(error))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(said), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_and_shards_are_refused(tmp_path: Path, monkeypatch) -> None:
    # New processes begin with the main module, which tests of pages leave as a page.
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    net, optimizer = made()
    for step in range(3):
        for micro in range(2):
            images, targets = batch(step, micro)
            F.cross_entropy(net(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    with optimizer.parametrized():
        expected = net.state_dict()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n} {m}")
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert len(said) == 2 and all("lies in shards (FSDP)" in line and "\n" not in line for line in said)
