"""A ranker's training shared out over workers of Ray Train: ``openrlhf-qs rank --n_workers 4``.

Loop, losses and stopping are those of :mod:`openrlhf_qs.rank.fit`. What differs is where batches come from, and that
gradients are averaged. The rows are a Ray dataset, of which each worker streams a share of its own; it has its part
of every batch, so there are as many steps, of as many rows, as in one process. The rows kept back are shared out as
well, and all workers get the same loss on them: they stop after the same epoch, with the same weights.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from openrlhf_qs.models import own_ray
from openrlhf_qs.rank.fit import Rows, Schedule, Training, fit

if TYPE_CHECKING:  # ray is imported when its environment is prepared
    from ray.data import DataIterator

BLOCK_ROWS = 16_384  # that are handed to a worker in one go
BUFFER_ROWS = 65_536  # that a worker draws its next rows from


def fit_on_ray(training: Training, learned: Rows, kept_back: Rows, schedule: Schedule, n_workers: int) -> None:
    """:func:`fit` on workers of one CPU each, on the cluster at ``$RAY_ADDRESS`` or in a Ray of this process's own;
    afterwards the ranker of ``training`` is the trained one. With the same seed all is trained as before."""
    if len(kept_back.codes) < n_workers:
        raise ValueError(
            f"--n_workers {n_workers}: {len(kept_back.codes)} validation rows, and each worker measures on some of "
            "them; use fewer workers or a longer log"
        )
    own_ray.prepare_environment(loopback=True)  # before the import, which reads whether a token is asked for
    import ray
    from ray.data import from_numpy
    from ray.train import DataConfig, RunConfig, ScalingConfig, get_context, get_dataset_shard
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    if not ray.is_initialized():
        n_cpus = {"num_cpus": n_workers + 1} if own_ray.is_own() else {}  # one for what makes the dataset
        own_ray.start(log_to_driver=schedule.progress, **n_cpus)  # beside it, Ray Data writes twenty lines an epoch
    n_there = int(ray.cluster_resources().get("CPU", 0))
    if n_there < n_workers:
        print(f"--n_workers {n_workers}: waiting for CPUs; the cluster has {n_there} now", flush=True)
    n_each = len(learned.codes) // n_workers
    side_by_side, widths = torch.cat(learned, dim=1), [of.shape[1] for of in learned]
    blocks = side_by_side[: n_each * n_workers].split(min(BLOCK_ROWS, n_each))
    trained = Queue(actor_options={"num_cpus": 0})  # Ray Train itself returns files alone, in a folder of all machines

    def work() -> None:
        rank = get_context().get_world_rank()
        seed, batch_size = schedule.seed + rank, max(1, schedule.batch_size // n_workers)
        torch.manual_seed(seed)
        shard = Shard(get_dataset_shard("rows"), n_each, widths, batch_size, seed)
        progress = schedule.progress and rank == 0
        fit(Together(training), shard, kept_back, schedule.max_epochs, schedule.patience, progress)
        if rank == 0:
            trained.put(training.ranker.state_dict())

    at_interrupt = signal.getsignal(signal.SIGINT)
    options = DataConfig.default_ingest_options()
    options.preserve_order = True  # a worker has the same share in each epoch, and in the next call
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            work,
            datasets={"rows": from_numpy([block.numpy() for block in blocks])},
            dataset_config=DataConfig(execution_options=options),
            scaling_config=ScalingConfig(num_workers=n_workers),
            run_config=RunConfig(storage_path=folder),
            torch_config=TorchConfig(backend="gloo"),
        ).fit()
    if signal.getsignal(signal.SIGINT) is not at_interrupt:  # Ray Train's would end this process with a status of 0
        signal.signal(signal.SIGINT, at_interrupt)
    training.ranker.load_state_dict(trained.get())


class Together:
    """A training in several processes, each with its part of every batch, all with the same ranker."""

    def __init__(self, training: Training) -> None:
        self.ranker, self.optimiser, self.alone = training.ranker, training.optimiser, training.loss_of
        # What is not used has no gradient: without queries, the third tower.
        self.averaging = DistributedDataParallel(LossOf(training), find_unused_parameters=True)

    def loss_of(self, rows: Rows, in_training: bool) -> Tensor:
        """In training that of this process's part of a batch, with gradients averaged over all parts; else that of
        ``rows``, which are the same in all processes, and each measures some of them."""
        if in_training:
            return self.averaging(rows)
        n = len(rows.codes)
        share = rows.take(torch.arange(distributed.get_rank(), n, distributed.get_world_size()))
        loss = self.alone(share, False) * len(share.codes) / n
        distributed.all_reduce(loss)
        return loss


class LossOf(nn.Module):
    """The loss of a training as a module, as DistributedDataParallel takes it."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.ranker, self.loss_of = training.ranker, training.loss_of

    def forward(self, rows: Rows) -> Tensor:
        return self.loss_of(rows, True)


class Shard:
    """A worker's parts of the batches, in a new random order each time.

    Args:
        rows: its share of the Ray dataset, whose column ``data`` has the fields of :class:`Rows` side by side.
        n: how many rows it has.
        widths: columns of each field.
        batch_size: rows of a part.
    """

    def __init__(self, rows: DataIterator, n: int, widths: Sequence[int], batch_size: int, seed: int) -> None:
        self.rows, self.n, self.widths, self.batch_size = rows, n, list(widths), batch_size
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[Rows]:
        for batch in self.rows.iter_torch_batches(
            batch_size=self.batch_size,
            device="cpu",
            local_shuffle_buffer_size=BUFFER_ROWS,
            local_shuffle_seed=int(self.rng.integers(2**31)),
        ):
            yield Rows(*batch["data"].split(self.widths, dim=1))
