import pickle
from types import SimpleNamespace

import torch

from openrlhf_qs.host.cpu import TensorBroadcast


def test_weights_are_sent_without_the_storage_that_they_share_with_all_others():
    flat, received = torch.arange(100_000.0), torch.zeros(10)
    sender, receiver = SimpleNamespace(rank=0), SimpleNamespace(rank=1)

    def send(tensor, src):
        sender.sent = pickle.dumps(tensor)
        return tensor

    sender.broadcast, receiver.broadcast = send, lambda tensor, src: pickle.loads(sender.sent)
    TensorBroadcast(sender).broadcast(flat[10:20], src=0)
    TensorBroadcast(receiver).broadcast(received, src=0)
    assert received.tolist() == list(range(10, 20)) and len(sender.sent) < 10_000
