"""A training that spans nodes: distributed data-parallel by torch over gloo, with a checkpoint that outlives the job.

It reports into TASK_FOLDER: ``trace`` has a line ``start STEP WORLD HOSTS`` for each start, ``checkpoint.pt`` the state.
With TRAINING_METHOD=lose-a-rank the last rank dies once in the first start; ``gate`` in the folder lets it take its last step.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from dspy_supervisor.checkpoint import checkpoint_requested, checkpoint_saved
from torch import nn

STEPS, EVERY = 60, 10


def main() -> None:
    """Train until the end, or until a checkpoint is wanted."""
    folder = Path(os.environ["TASK_FOLDER"])
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(7)
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = load(folder, model, optimizer)
    hosts: list[Any] = [None] * world
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    first = not (folder / "trace").exists()
    torch.distributed.barrier()
    if rank == 0:
        with (folder / "trace").open("a") as trace:
            trace.write(f"start {step} {world} {','.join(sorted(hosts))}\n")
    losses = []
    while step < STEPS:
        generator = torch.Generator().manual_seed(1000 * step + rank)  # each rank has data of its own
        inputs = torch.randn(32, 8, generator=generator)
        loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        step += 1
        if (
            first
            and os.environ.get("TRAINING_METHOD") == "lose-a-rank"
            and step == STEPS // 2 + 5
            and rank == world - 1
        ):
            os._exit(17)
        if step == STEPS - 1:
            while not agreed(checkpoint_requested() or (folder / "gate").exists()):
                time.sleep(0.1)
        wanted = agreed(checkpoint_requested())
        if rank == 0 and (wanted or step % EVERY == 0):
            save(folder, model, optimizer, step)
        if wanted:
            torch.distributed.barrier()
            checkpoint_saved(f"at step {step}")
    if rank == 0 and "DSPY_RESULT" in os.environ:
        Path(os.environ["DSPY_RESULT"]).write_text(json.dumps({"steps": step, "world": world, "loss": losses[-1]}))
    torch.distributed.destroy_process_group()


def agreed(wish: bool) -> bool:
    """Whether any rank wishes it: all of them do the same at the same step, or wait for each other for ever."""
    wishes = torch.tensor([float(wish)])
    torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
    return bool(wishes.item())


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Go on from the checkpoint, if there is one; returns its step."""
    try:
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
    except FileNotFoundError:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the checkpoint whole, or not at all."""
    temporary = folder / "checkpoint.new"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
    os.replace(temporary, folder / "checkpoint.pt")


if __name__ == "__main__":
    main()
