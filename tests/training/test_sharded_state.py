"""Shards in checkpoints: read by another number of processes than wrote them, and not taken for whole weights."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from harness.errors import ConfigError
from harness.training.checkpoint import STATE, restore
from harness.training.sharded_state import ShardedWeights, joined, separated


@pytest.fixture
def mesh():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_shards_that_two_processes_wrote_are_joined_by_one(mesh, tmp_path):
    whole = torch.arange(15.0).view(5, 3)
    state = {"step": {"values": [distribute_tensor(whole, mesh, [Shard(0)]), 7]}, "meter": {}}

    left = separated(state, tmp_path)

    (file,) = tmp_path.iterdir()
    ((name, written),) = load_file(file).items()
    assert torch.equal(written, whole)
    # As two processes divide five rows.
    save_file({name: whole[:3]}, tmp_path / "shards-00000.safetensors")
    save_file({name: whole[3:].clone()}, tmp_path / "shards-00001.safetensors")
    found = joined(left, tmp_path, mesh)
    assert found["meter"] == {}
    assert found["step"]["values"][1] == 7
    assert found["step"]["values"][0].placements == (Shard(0),)
    assert torch.equal(found["step"]["values"][0].full_tensor(), whole)


def test_state_without_shards_stays_as_it_is_and_writes_nothing(tmp_path):
    state = {"step": {"values": [torch.ones(2)], "count": 3}}

    assert joined(separated(state, tmp_path), tmp_path, None) == state
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("was", "now"), [("fsdp", "ddp"), ("ddp", "fsdp")])
def test_checkpoint_of_the_other_sharding_is_refused(was, now, mesh, tmp_path):
    weights = [torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))]
    parts = {"ddp": {}, "fsdp": {"weights": ShardedWeights(weights)}}
    states = {name: part.state_dict() for name, part in parts[was].items()}
    torch.save(separated(states, tmp_path), tmp_path / STATE)

    with pytest.raises(ConfigError, match=rf"sharding.*`{now}`, but .* as `{was}` trains them"):
        restore(tmp_path, parts[now], mesh if now == "fsdp" else None)
