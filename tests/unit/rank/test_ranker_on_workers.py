"""A training in two processes is that in one: the same steps from the same batches, the same weights afterwards."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from visits import INTENTS, visits, wanted_intents

from openrlhf_qs.rank.encoder import Encoder
from openrlhf_qs.rank.fit import InMemory, Loss, Rows, Schedule, ThirdTower, Training, TwoTowers, fit
from openrlhf_qs.rank.impressions import FeatureCodes
from openrlhf_qs.rank.on_ray import Together, fit_on_ray
from openrlhf_qs.rank.ranker import Ranker, numbered

N_WORKERS = 2


def two_towers() -> tuple[Training, Rows]:
    """Without dropout, which is drawn by each process for itself."""
    log = visits(320)
    ranker = Ranker(FeatureCodes.of(log.features), INTENTS)
    for layer in ranker.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    loss = Loss.of(log, len(INTENTS), listwise=0.3, over_all=1.0)
    return TwoTowers(ranker, loss, 0.0, 0.0, lr=1e-2, weight_decay=0.0), Rows.of(log, ranker.codes)


def third_tower() -> tuple[Training, Rows]:
    log = visits(320)
    ranker = Ranker(FeatureCodes.of(log.features), INTENTS).eval()
    distinct, numbers = numbered([[INTENTS.texts[intent]] for intent in wanted_intents(log)])
    loss = Loss.of(log, len(INTENTS), listwise=0.3, over_all=1.0, info_nce=0.3)
    training = ThirdTower(ranker, loss, ranker.query_encoder.kept(distinct), lr=1e-2, weight_decay=0.0)
    return training, Rows.of(log, ranker.codes, numbers)


def train(make, folder: Path, rank: int = 0, n_workers: int = 1) -> None:
    """Two epochs of plain gradient descent, whose steps are as far from each other as the gradients are."""
    torch.set_num_threads(1)
    training, rows = make()
    parameters = [one for one in training.ranker.parameters() if one.requires_grad]
    training.optimiser = lambda: torch.optim.SGD(parameters, lr=0.1)
    batches = list(InMemory(rows.take(torch.arange(301)), 50, seed=0))[:6]
    kept_back = rows.take(torch.arange(301, 320))  # 19: of two workers one has a row more
    if n_workers > 1:
        store = f"file://{folder}/store"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=n_workers)
        batches = [batch.take(torch.arange(rank, 50, n_workers)) for batch in batches]
        training = Together(training)
    fit(training, batches, kept_back, max_epochs=2, patience=2, progress=False)
    with torch.no_grad():
        measured = training.loss_of(kept_back, False)
    torch.save((training.ranker.state_dict(), measured), folder / f"{n_workers}-{rank}.pt")


def in_a_process(rank: int, make, folder: Path) -> None:
    train(make, folder, rank, N_WORKERS)
    distributed.destroy_process_group()


@pytest.mark.parametrize("make", [two_towers, third_tower])
def test_two_processes_with_halves_of_the_batches_make_the_steps_of_one_with_the_whole(make, tmp_path):
    train(make, tmp_path)
    multiprocessing.spawn(in_a_process, (make, tmp_path), nprocs=N_WORKERS)
    alone, loss = torch.load(tmp_path / "1-0.pt")
    (first, first_loss), (second, second_loss) = (torch.load(tmp_path / f"2-{rank}.pt") for rank in range(N_WORKERS))
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert second_loss == first_loss
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first_loss, loss, rtol=1e-5, atol=0)
    before = make()[0].ranker.state_dict()
    moved = max((alone[name] - before[name]).abs().max().item() for name in alone)
    assert moved > 1e-2  # or nothing was learned, and everything is equal


def test_a_log_of_which_not_every_worker_would_measure_a_row_is_refused():
    training, rows = two_towers()
    one = rows.take(torch.arange(1))
    with pytest.raises(ValueError, match="--n_workers 2: 1 validation rows"):
        fit_on_ray(training, rows, one, Schedule(batch_size=32, max_epochs=1, patience=1), n_workers=2)


def test_an_encoder_goes_to_another_process_without_its_model_and_reads_the_same_there():
    encoder = Encoder("minilm")
    sent = pickle.dumps(encoder)
    assert len(sent) < 1000
    torch.testing.assert_close(pickle.loads(sent)(INTENTS.texts), encoder(INTENTS.texts))
