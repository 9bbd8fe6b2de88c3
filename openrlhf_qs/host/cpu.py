"""What OpenRLHF needs on a host without a GPU: it names CUDA where torch would do with any device."""

from __future__ import annotations

import ctypes
import errno
import functools
import platform
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from openrlhf_qs.host.patches import patch
from openrlhf_qs.host.settings import Settings


def keep_freed_memory() -> None:
    """Let glibc keep freed tensors for the next ones. By default each tensor of some MB is mapped anew from the system
    and cleared page by page: measured on the small policy, half of the time of an SFT step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of mallopt(3)
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**28)


@patch("torch.cuda", "current_device", "", device="cpu")
def cuda_calls(module: ModuleType, settings: Settings) -> None:
    """OpenRLHF asks torch.cuda for the device and waits for it. Without this every model actor stops with
    "Torch not compiled with CUDA enabled"."""
    import torch

    module.current_device = lambda: torch.device("cpu")
    module.set_device = lambda device: None
    module.synchronize = lambda device=None: None
    module.empty_cache = lambda: None
    module.current_stream = lambda device=None: None


@patch(
    "openrlhf.utils.deepspeed.deepspeed",
    "init_device_mesh",
    "device_type mesh_shape mesh_dim_names backend_override",
    device="cpu",
)
def device_mesh(module: ModuleType, settings: Settings) -> None:
    """The data-parallel mesh is asked for on "cuda". Without this set-up stops: no CUDA device, no NCCL."""
    original = module.init_device_mesh
    module.init_device_mesh = lambda device_type, *args, **kwargs: original("cpu", *args, **kwargs)


@patch("openrlhf.models.actor", "log_probs_from_logits", "logits labels temperature", device="cpu")
def log_probs(module: ModuleType, settings: Settings) -> None:
    """Where flash-attn is not installed, OpenRLHF cuts the logits into chunks, whose gradients are added up in as many
    tensors of full size. Without this all is as right, and an SFT step takes a fifth longer."""
    module.log_probs_from_logits = log_probs_from_logits


def log_probs_from_logits(logits, labels, temperature: float = 1.0):
    """Log-probabilities, nats, float32, of ``labels`` under ``logits`` divided by ``temperature``."""
    import torch.nn.functional as F

    logits = logits.float() if temperature == 1.0 else logits.float() / temperature
    return -F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


@patch(
    "openrlhf.trainer.ppo_utils.replay_buffer",
    "NaiveReplayBuffer.__init__",
    "self sample_batch_size limit cpu_offload packing_samples dynamic_batch",
    device="cpu",
)
def replay_buffer(module: ModuleType, settings: Settings) -> None:
    """The replay buffer builds the device name "cuda:N" by itself. Without this it is the invalid name "cuda:cpu"."""
    wrapt.wrap_function_wrapper(module, "NaiveReplayBuffer.__init__", buffer_on_cpu)


def buffer_on_cpu(init: Callable, buffer: Any, args: tuple, kwargs: dict) -> None:
    """``NaiveReplayBuffer.__init__``, told of a device 0, with whose number it does nothing but build a name."""
    import torch

    current_device = torch.cuda.current_device
    torch.cuda.current_device = lambda: 0
    try:
        init(*args, **kwargs)
    finally:
        torch.cuda.current_device = current_device
    buffer.target_device = torch.device("cpu")


@patch(
    "openrlhf.utils.distributed_util",
    "stateless_init_process_group",
    "master_address master_port rank world_size device",
    device="cpu",
)
def weight_sync_group(module: ModuleType, settings: Settings) -> None:
    """Trainer and vLLM share a NCCL communicator for weights. Without this the first weight sync needs NCCL; here the
    tensors go over vLLM's own StatelessProcessGroup."""
    module.stateless_init_process_group = TensorBroadcast.create


class TensorBroadcast:
    """What trainer and vLLM ask of their communicator: one call, ``broadcast``."""

    def __init__(self, group: Any) -> None:
        """
        Args:
            group: vLLM's ``StatelessProcessGroup``.
        """
        self.group = group

    @classmethod
    def create(
        cls, master_address: str, master_port: int, rank: int, world_size: int, device: object
    ) -> TensorBroadcast:
        from vllm.distributed.utils import StatelessProcessGroup

        # What was sent stays in the store for that long: a policy's worth of weights for each sync.
        return cls(
            StatelessProcessGroup.create(
                host=master_address, port=master_port, rank=rank, world_size=world_size, data_expiration_seconds=60
            )
        )

    def broadcast(self, tensor: Any, src: int, stream: object = None) -> None:
        """Send ``tensor`` where this is rank ``src``, fill it elsewhere."""
        # DeepSpeed keeps a model's weights in one storage, and a view is pickled with all of its storage.
        received = self.group.broadcast(tensor.clone() if self.group.rank == src else tensor, src)
        if self.group.rank != src:
            tensor.copy_(received)


@patch(
    "openrlhf.trainer.ray.vllm_engine",
    "RolloutRayActor.generate",
    "prompt_token_ids sampling_params multi_modal_data _ray_trace_ctx",
    device="cpu",
)
def rollout_engine(module: ModuleType, settings: Settings) -> None:
    """OpenRLHF starts vLLM as suits a GPU, and has it hand on every token, of which it keeps the last. Without this
    the rollouts are as right, and take almost twice as long."""
    rollouts = module.RolloutRayActor.__ray_metadata__.modified_class
    start, generate = rollouts.__init__, rollouts.generate

    async def start_on_cpu(self, *args, **options):
        from openrlhf_qs.models.engine import in_one_process, options_on_cpu

        await start(self, *args, **options | options_on_cpu() | in_one_process(options["tensor_parallel_size"]))

    async def generate_at_once(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        from vllm.sampling_params import RequestOutputKind

        sampling_params.output_kind = RequestOutputKind.FINAL_ONLY
        return await generate(self, prompt_token_ids, sampling_params, multi_modal_data)

    rollouts.__init__, rollouts.generate = start_on_cpu, generate_at_once


@patch(
    "openrlhf.trainer.ray.vllm_engine",
    "RolloutRayActor.update_weight",
    "name dtype shape empty_cache _ray_trace_ctx",
    device="cpu",
)
def weights_of_a_sync(module: ModuleType, settings: Settings) -> None:
    """Each of some thirty tensors of a sync is a call through three processes, while the sender, who leaves them in a
    store, waits for none. Without this a sync takes several times as long; here the calls are kept, and go on together
    with the last one, marked by ``empty_cache``."""

    async def update_weight(self, name, dtype, shape, empty_cache=False):
        waiting = self.__dict__.setdefault("_weights_of_sync", [])
        waiting.append((name, dtype, shape))
        if empty_cache:
            await self.llm.collective_rpc("update_weights_of_sync", args=(self.__dict__.pop("_weights_of_sync"),))

    module.RolloutRayActor.__ray_metadata__.modified_class.update_weight = update_weight


@patch(
    "torch.distributed.rendezvous",
    "_create_c10d_store",
    "hostname port rank world_size timeout use_libuv",
    device="cpu",
)
def stores(module: ModuleType, settings: Settings) -> None:
    """torch's store takes commands from whoever reaches its port. Without this it listens on every interface; here it
    does where its host's name points to. And OpenRLHF and vLLM look for a free port seconds before the store takes
    it: without this a run ends where another program took it meanwhile."""
    module.TCPStore = loopback_store


def loopback_store(host_name: str, port: int, *, is_master: bool = False, **how: Any) -> Any:
    """``TCPStore``; a master listens at ``host_name`` alone. Port 0 is any, and so is one that another program has
    where this process is the only one of its world: nobody else was told of it."""
    from torch.distributed import TCPStore

    if is_master and not how.get("master_listen_fd"):
        try:
            listening = socket.create_server((host_name, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or how.get("world_size") != 1:
                raise
            listening = socket.create_server((host_name, 0))
        port = listening.getsockname()[1]
        how["master_listen_fd"] = listening.detach()
    return TCPStore(host_name, port, is_master=is_master, **how)


@patch(
    "openrlhf.trainer.ray.vllm_worker_wrap",
    "WorkerWrap.update_weight",
    "self name dtype shape empty_cache",
    device="cpu",
)
def weight_update(module: ModuleType, settings: Settings) -> None:
    """vLLM on the CPU packs its weights after loading, so they cannot be loaded one by one. Without this the second
    sync fails with "'Parameter' object has no attribute 'weight_loader'"; here all of a sync are reloaded together. A
    head that is tied to the embedding is packed again: vLLM's reload leaves the old copy there, and rollouts would
    drift away from the policy in silence.
    """
    import torch

    def update_weights_of_sync(self, weights: list[tuple[str, torch.dtype, object]]) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        received = []
        for name, dtype, shape in weights:
            weight = torch.empty(shape, dtype=dtype)
            self._model_update_group.broadcast(weight, src=0)
            received.append((name, weight))
        self.model_runner.reload_weights(weights_iterator=iter(received))
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    module.WorkerWrap.update_weights_of_sync = update_weights_of_sync


@patch(
    "openrlhf.models.actor",
    "Actor.forward",
    "self sequences action_mask attention_mask return_output allgather_logits return_logprobs ring_attn_group "
    "packed_seq_lens return_entropy mm_inputs",
    device="cpu",
)
def shared_prompts(module: ModuleType, settings: Settings) -> None:
    """GRPO wants log-probs of several responses to each prompt. OpenRLHF reads the prompt anew for each of them, and
    computes the logits of its tokens too. Without this all is as right, and the training takes 1.6 times as
    long."""
    whole = module.Actor.forward

    @functools.wraps(whole)
    def forward(self, sequences, action_mask=None, attention_mask=None, return_output=False, **kwargs):
        asked = {name: value for name, value in kwargs.items() if value not in (None, False)}
        wants_responses = action_mask is not None and not asked and not getattr(self, "is_vlm", False)
        if not wants_responses or not _shares_prompts(self):
            return whole(self, sequences, action_mask, attention_mask, return_output, **kwargs)
        log_probs, output = shared_log_probs(self.model, sequences, action_mask, attention_mask, self.temperature)
        return (log_probs, output) if return_output else log_probs

    module.Actor.forward = forward


def _shares_prompts(actor: Any) -> bool:
    """Whether the model of OpenRLHF's ``Actor`` can read a prompt once for several responses."""
    from openrlhf_qs.models.shared_prefix import can_share_prefix

    config = getattr(actor.model, "module", actor.model).config  # DeepSpeed's engine has a config of its own
    return can_share_prefix(config, config._attn_implementation, actor.packing_samples)


def shared_log_probs(model, sequences, action_mask, attention_mask, temperature: float):
    """Log-probs of the tokens that the policy wrote, with each prompt read once for all of its responses.

    Args:
        sequences, attention_mask: ``[batch, length]``, prompts with their responses.
        action_mask: ``[batch, length - 1]``, 1 where the token after it was written by the policy.

    Returns:
        Nats, float32, ``[batch, length - 1]``, 0 for other tokens; and the model's output.
    """
    import torch

    from openrlhf_qs.models.shared_prefix import positions, share_prefixes, token_places, tree_mask

    texts = [row[mask].tolist() for row, mask in zip(sequences, attention_mask.bool(), strict=True)]
    token = attention_mask.long().cumsum(-1)[:, :-1] - 1  # its number in its text
    wrote = action_mask.bool()
    n_prompt = (token.masked_fill(~wrote, token.shape[1]).amin(-1) + 1).tolist()
    prompts = [tuple(text[:n]) for text, n in zip(texts, n_prompt, strict=True)]
    rows = share_prefixes(texts, prompts, pad_token_id=0)  # nobody sees it
    row, column = token_places(rows, attention_mask.sum(-1))
    first = min(n_prompt) - 1  # the tokens before it are of prompts in every row
    output = model(
        rows.input_ids,
        attention_mask=tree_mask(rows.segments, next(model.parameters()).dtype),
        position_ids=positions(rows.segments),
        logits_to_keep=rows.input_ids.shape[1] - first,
    )
    row = row[:, None].expand_as(token)[wrote]
    column = column.gather(1, token.clamp(min=0))[wrote]
    found = log_probs_from_logits(output["logits"][row, column - first], sequences[:, 1:][wrote], temperature)
    return torch.zeros(action_mask.shape).masked_scatter(wrote, found), output


@patch("openrlhf.trainer.ray.ppo_actor", "ActorPPOTrainer.ppo_train", "self kl_ctl", device="cpu")
def rollouts_in_order(module: ModuleType, settings: Settings) -> None:
    """OpenRLHF trains on the rollouts in random order. Without this all is as right, but the responses to one prompt
    are seldom in one batch, where they would share it; prompts come in random order as it is."""
    loader = module.DataLoader
    module.DataLoader = lambda *args, **how: loader(*args, **how | {"shuffle": False})
