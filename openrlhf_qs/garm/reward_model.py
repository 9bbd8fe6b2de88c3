"""The reward model: a backbone, and a registered head that gives each suggestion a mean and standard deviations.

In: messages that end in a suggestion (:func:`openrlhf_qs.form.prompt.suggestion_messages`). Out: ``[batch, 3]``,
float32, reward units (:class:`Scores`). One class serves every registered head: a checkpoint's ``config.json`` names
its head under ``reward_model`` (the mark). OpenRLHF builds it in ``train_rm`` and ``RewardModelActor``; without
OpenRLHF::

    scorer = SuggestionScorer("runs/default/garm")
    mean, std, epistemic_std = scorer([conversation], ["How long does it take?"])

or, as a module::

    model = load_reward_model("runs/default/garm")
    tokenizer = load_tokenizer("runs/default/garm")
    rewards = model(*encode_suggestions(tokenizer, [conversation], ["How long does it take?"], max_len=512))

The backbone is a decoder, read at the last token of the chat template's text, or a bidirectional encoder such as BERT
or MiniLM, read as the mean over its tokens. If the mark has a ``turn_end_id``, each token gets flags for the turns it
occurred in before (:mod:`openrlhf_qs.garm.exact_match`). If it has ``crosses`` or ``overlaps``, they are added to the
head's means (:mod:`openrlhf_qs.garm.crosses`, :mod:`openrlhf_qs.garm.overlap`).
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrlhf_qs.form.keys import conversation_key
from openrlhf_qs.form.prompt import Message, escaped, suggestion_messages
from openrlhf_qs.garm.crosses import CROSSES, buckets
from openrlhf_qs.garm.exact_match import N_FLAGS, exact_match
from openrlhf_qs.garm.overlap import OVERLAPS, figures_of_turns, turns_of
from openrlhf_qs.models.device import dtype_on_cpu
from openrlhf_qs.models.folder import AGAIN, check_weights, read_config, weight_files
from openrlhf_qs.models.shared_prefix import (
    SharedRows,
    can_share_prefix,
    ends,
    is_encoder,
    is_shared,
    n_before,
    positions,
    share_prefixes,
    texts_of,
    tree_mask,
    use_attention,
)
from openrlhf_qs.models.template import as_plain_text, end_token, rendered, shortened
from openrlhf_qs.registry import REWARD_MODELS, load_plugins

MATCH = "match"  # name of the vectors of exact matches among the weights


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights are: bfloat16 makes ties within a group."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), self.bias.float())


class Crosses(nn.EmbeddingBag):
    """The sum of the weights of each suggestion's crosses."""

    def __init__(self, n_buckets: int, turn_end_id: int) -> None:
        super().__init__(n_buckets, 1, mode="sum")
        self.turn_end_id = turn_end_id

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The token ids of whole texts to log-odds ``[texts, 1]``, float32."""
        of_texts = [buckets(text, self.turn_end_id, self.num_embeddings) for text in texts]
        starts = np.cumsum([0, *map(len, of_texts)])[:-1]
        places, starts = (
            torch.from_numpy(one).to(self.weight.device) for one in (np.concatenate(of_texts), starts.astype(np.int64))
        )
        return F.embedding_bag(places, self.weight.float(), starts, mode="sum")


class Overlaps(nn.Module):
    """The sum of what each tree says of a suggestion's overlap figures.

    A node without children is its own. Numbers are kept as their bits, so that a cast of the model to bfloat16 moves
    no threshold.

    Attributes:
        forms, rarity: ``[n_tokens]``; see :func:`openrlhf_qs.garm.overlap.token_forms`, and ``rarities``.
        figure, threshold, left, right, value: ``[n_trees, n_nodes]``; left where the figure is not above it.
    """

    def __init__(self, turn_end_id: int, n_tokens: int, n_trees: int, n_nodes: int, depth: int) -> None:
        super().__init__()
        self.turn_end_id, self.depth = turn_end_id, depth
        for name in ("forms", "rarity"):
            self.register_buffer(name, torch.zeros(n_tokens, dtype=torch.int32))
        for name in ("figure", "threshold", "left", "right", "value"):
            self.register_buffer(name, torch.zeros(n_trees, n_nodes, dtype=torch.int32))

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The token ids of whole texts to log-odds ``[texts, 1]``, float32."""
        forms, rarity = self.forms.cpu().numpy(), self.rarity.view(torch.float32).cpu().numpy()
        found = [figures_of_turns(turns_of(text, self.turn_end_id, forms), rarity) for text in texts]
        figures = torch.tensor(found, dtype=torch.float32, device=self.forms.device)
        trees = torch.arange(len(self.figure), device=self.forms.device)
        threshold, value = self.threshold.view(torch.float32), self.value.view(torch.float32)
        node = torch.zeros(len(texts), len(trees), dtype=torch.long, device=self.forms.device)
        for _ in range(self.depth):
            below = figures.gather(1, self.figure[trees, node].long()) <= threshold[trees, node]
            node = torch.where(below, self.left[trees, node], self.right[trees, node]).long()
        return value[trees, node].sum(1, keepdim=True)


WIDE = {CROSSES: Crosses, OVERLAPS: Overlaps}  # what stands beside the head, by its name in the mark and the weights


def reward_model_class(
    base_pretrained_model: type,
    base_llm_model: type,
    value_head_prefix: str = "score",
    packing_samples: bool = False,
    *,
    mark: dict | None = None,
) -> type:
    """The reward-model class over one backbone, with the arguments of OpenRLHF's own ``_get_reward_model``.

    Args:
        base_pretrained_model, base_llm_model: from transformers, such as ``Qwen3PreTrainedModel`` and ``Qwen3Model``.
        value_head_prefix: name of the head among the weights.
        packing_samples: whether sequences come padded but run packed (needs flash-attn). Decoders only.
        mark: ``{"name": a registered head, "options": {...}}`` for a new head, with ``vocabulary``, the hash of its
            tokenizer's vocabulary, ``max_len``, the tokens of a text in training, ``dropout``, the share of each
            token's embedding and of the head's input that is dropped in training, and ``turn_end_id``, the token that
            ends a turn, if the model is to see exact matches; None keeps the config's own.
    """

    class SuggestionRewardModel(base_pretrained_model):
        supports_gradient_checkpointing = True

        def __init__(self, config):
            super().__init__(config)
            if mark is not None:
                config.reward_model = mark
            config.value_head_prefix = value_head_prefix
            self.head = REWARD_MODELS.create(config.reward_model["name"], **config.reward_model["options"])
            # One label more than the head has outputs: AutoModelForSequenceClassification, which would read the head
            # without all that is ours, stops at the mismatch instead.
            config.num_labels = self.head.n_outputs + 1
            self.is_encoder = is_encoder(config)
            if self.is_encoder and packing_samples:
                raise ValueError(
                    f"{config.model_type} is an encoder, which does not support packing; leave out packing_samples"
                )
            # BERT's pooler reads the first token, which nothing of ours does.
            has_pooler = "add_pooling_layer" in inspect.signature(base_llm_model).parameters
            options = {"add_pooling_layer": False} if has_pooler else {}
            setattr(self, self.base_model_prefix, base_llm_model(config, **options))
            setattr(self, value_head_prefix, Float32Linear(config.hidden_size, self.head.n_outputs))
            self.dropout = nn.Dropout(config.reward_model.get("dropout", 0.0))
            self.turn_end_id = config.reward_model.get("turn_end_id")
            if self.turn_end_id is not None:
                if packing_samples:
                    raise ValueError(
                        "exact matches are looked up in padded rows: leave out packing_samples, or exact matches"
                    )
                setattr(self, MATCH, nn.Linear(N_FLAGS, config.hidden_size, bias=False))
            self.wide = [name for name in WIDE if name in config.reward_model]
            for name in self.wide:
                setattr(self, name, WIDE[name](**config.reward_model[name]))
            if not self.is_encoder:
                use_attention(config)
            # OpenRLHF's evaluation writes the mean and deviation of the means into the config. They are applied where
            # reward normalisation is asked for.
            self.normalize_reward = getattr(config, "normalize_reward", False)
            self.mean = getattr(config, "mean", 0.0)
            self.std = getattr(config, "std", 1.0)
            self.post_init()

        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor,
            return_output: bool = False,
            ring_attn_group=None,
            pad_sequence: bool = False,
            packed_seq_lens=None,
        ):
            """Token ids and mask ``[batch, length]`` to mean, standard deviation and epistemic standard deviation
            ``[batch, 3]``, float32. With ``return_output``: the head's raw outputs ``[batch, n_outputs]``, the input
            of its loss, and the backbone's outputs. If the mask contains segment ids
            (:mod:`openrlhf_qs.models.shared_prefix`), the results are per suggestion, row by row."""
            if self.is_encoder:
                raw, outputs = self.read_mean(input_ids, attention_mask)
            elif is_shared(attention_mask):
                raw, outputs = self.read_ends(input_ids, attention_mask)
            else:
                raw, outputs = self.read_last(input_ids, attention_mask, ring_attn_group)
            if self.wide:
                texts, raw = list(texts_of(input_ids, attention_mask)), raw.clone()
                raw[..., self.head.mean_outputs] += sum(getattr(self, name)(texts) for name in self.wide)
            if return_output:
                return raw, outputs
            rewards = self.head.output(raw)
            if not self.training and self.normalize_reward:
                rewards = (rewards - rewards.new_tensor([self.mean, 0.0, 0.0])) / self.std
            return rewards

        def backbone(self, input_ids: Tensor, segments: Tensor, **options):
            """The backbone's outputs; ``segments`` is the mask, or segment ids."""
            embedded = self.get_input_embeddings()(input_ids)
            if self.turn_end_id is not None:
                flags = exact_match(input_ids, segments, self.turn_end_id)
                embedded = embedded + getattr(self, MATCH)(flags.to(embedded.dtype))
            outputs = getattr(self, self.base_model_prefix)(inputs_embeds=self.dropout(embedded), **options)
            outputs["last_hidden_state"] = self.dropout(outputs["last_hidden_state"])
            return outputs

        def read_mean(self, input_ids: Tensor, attention_mask: Tensor):
            """Raw outputs from the mean over the text's tokens, and the backbone's outputs."""
            # The padding goes to the right, so that the backbone's own positions count from the text's first token.
            order = attention_mask.long().argsort(dim=1, descending=True, stable=True)
            mask = attention_mask.gather(1, order)
            outputs = self.backbone(input_ids.gather(1, order), mask, attention_mask=mask)
            hidden = outputs["last_hidden_state"].float() * mask[..., None]
            return getattr(self, value_head_prefix)(hidden.sum(1) / mask.sum(1, keepdim=True)), outputs

        def read_ends(self, input_ids: Tensor, segments: Tensor):
            """Raw outputs from the last token of each suggestion in the rows, and the backbone's outputs."""
            outputs = self.backbone(
                input_ids,
                segments,
                attention_mask=tree_mask(segments, self.dtype),
                position_ids=positions(segments),
                n_before=n_before(segments),
            )
            return getattr(self, value_head_prefix)(outputs["last_hidden_state"][ends(segments)]), outputs

        def read_last(self, input_ids: Tensor, attention_mask: Tensor, ring_attn_group=None):
            """Raw outputs from the text's last token, and the backbone's outputs."""
            batch, length = input_ids.shape
            last = length - 1 - attention_mask.long().fliplr().argmax(dim=1)
            if packing_samples:
                from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor

                input_ids, position_ids, _, pad_len, indices = unpad_and_slice_tensor(
                    input_ids, attention_mask, ring_attn_group
                )
                mask = None
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
                mask = attention_mask
            outputs = self.backbone(input_ids, attention_mask, attention_mask=mask, position_ids=position_ids)
            hidden = outputs["last_hidden_state"]
            if packing_samples:
                raw = getattr(self, value_head_prefix)(hidden)
                raw = torch.stack(
                    [
                        gather_and_pad_tensor(r, ring_attn_group, pad_len, indices, batch, length)
                        for r in raw.unbind(-1)
                    ],
                    dim=-1,
                )[torch.arange(batch, device=raw.device), last]
            else:
                raw = getattr(self, value_head_prefix)(hidden[torch.arange(batch, device=hidden.device), last])
            return raw, outputs

    return SuggestionRewardModel


def load_reward_model(path: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The reward model of a checkpoint, ready to score. ValueError if ``path`` has none.

    Args:
        path: folder from ``recipes/garm.sh``. LoRA weights are merged into the backbone that they name, which must
            still exist.
        dtype: of the backbone; the head computes in float32.
    """
    check_checkpoint(path)
    config, model_class = _class_of(path, read_config(path).get("value_head_prefix", "score"))
    if not is_adapter(path):
        return model_class.from_pretrained(path, config=config, dtype=dtype).eval()
    from peft import PeftConfig, PeftModel

    backbone = PeftConfig.from_pretrained(path).base_model_name_or_path
    model = model_class.from_pretrained(backbone, config=config, dtype=dtype)
    return PeftModel.from_pretrained(model, path).merge_and_unload().eval()


def is_adapter(path: str | Path) -> bool:
    """Whether a checkpoint has only LoRA weights besides the head."""
    return (Path(path) / "adapter_config.json").is_file()


def turn_end_id(tokenizer) -> int:
    """The token that ends each turn in the output of :func:`suggestion_ids`."""
    return tokenizer.eos_token_id if tokenizer.chat_template else tokenizer.sep_token_id


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a checkpoint. ValueError if it is not the one the model was trained with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    vocab_size, trained_with = read_config(path).get("vocab_size"), (read_mark(path) or {}).get("vocabulary")
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ValueError(
            f"{path}: its tokenizer knows {len(tokenizer)} tokens, its model {vocab_size}: this is another model's "
            "tokenizer; copy that of the model which the reward model was trained from"
        )
    if trained_with not in (None, vocabulary_print(tokenizer)):
        raise ValueError(
            f"{path}: its tokenizer has another vocabulary than the one it was trained with; copy that of the model "
            "which the reward model was trained from"
        )
    return tokenizer


def vocabulary_print(tokenizer) -> str:
    """A hash of all tokens with their numbers, 16 hexadecimal digits; stored in the mark of a new head."""
    tokens = "\n".join(f"{number} {token}" for token, number in sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(tokens.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def read_mark(path: str | Path) -> dict | None:
    """The ``reward_model`` entry in ``config.json`` of a local checkpoint; None if it is not ours or not local."""
    return read_config(path).get("reward_model") if (Path(path) / "config.json").is_file() else None


def check_checkpoint(path: str | Path) -> dict:
    """The mark of the reward model at ``path``. ValueError if it has none, or its weights do not match it.

    A tensor that is missing, or has another shape, would be loaded with random numbers and only a table in the log, so
    all of them are checked, also for nan and inf.
    """
    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"{path}/config.json does not exist: give the folder of a reward model that recipes/garm.sh wrote"
        )
    config, mark = read_config(path), read_mark(path)
    if mark is None:
        raise ValueError(
            f"{path}/config.json has no entry `reward_model`: it is not a reward model of ours; "
            "train one with recipes/garm.sh"
        )
    if not isinstance(mark, dict) or not {"name", "options"} <= mark.keys():
        raise ValueError(f"{path}/config.json: reward_model {mark!r} does not name a head with its options; {AGAIN}")
    load_plugins()
    check_weights(path)
    shapes = {name: tuple(tensor.shape) for _, name, tensor in _tensors(path)}
    lora = is_adapter(path)
    prefix = config.get("value_head_prefix", "score")
    found = shapes.get(f"{'base_model.model.' if lora else ''}{prefix}.weight")
    n_outputs = REWARD_MODELS.create(mark["name"], **mark["options"]).n_outputs
    if found is None or found[0] != n_outputs:
        raise ValueError(
            f"{path}: head {prefix}.weight should have {n_outputs} rows for {mark['name']!r}, found "
            f"{'none' if found is None else found[0]}; the checkpoint is damaged or its value_head_prefix is wrong"
        )
    missing, other = _lora_differences(path, prefix, shapes) if lora else _differences(path, prefix)
    for name, (ours, expected) in other.items():
        raise ValueError(f"{path}: {name} has the shape {ours}, config.json expects {expected}; {AGAIN}")
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise ValueError(f"{path}: {missing[0]}{more} missing among the {len(shapes)} weights; {AGAIN}")
    for file, name, tensor in _tensors(path):
        n_bad = tensor.numel() - int(tensor.isfinite().sum())
        if n_bad:
            raise ValueError(f"{file}: {name} has nan or inf in {n_bad} of {tensor.numel()} values; {AGAIN}")
    return mark


def _tensors(path: str | Path) -> Iterator[tuple[Path, str, Tensor]]:
    """File, name and tensor of all weights of a checkpoint."""
    from safetensors import safe_open

    for file in weight_files(path):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():
                    yield file, name, weights.get_tensor(name)
        elif file.suffix == ".bin":  # of LoRA under ZeRO-3
            for name, tensor in torch.load(file, weights_only=True, mmap=True).items():
                yield file, name, tensor


def _differences(path: str | Path, prefix: str) -> tuple[list[str], dict[str, tuple]]:
    """The names of missing tensors, and both shapes of those that differ, as transformers finds them when loading,
    here without values on the device ``meta``."""
    from transformers.utils import logging

    config, model_class = _class_of(path, prefix)
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its table goes by in a log; what it says is raised
    try:
        _, found = model_class.from_pretrained(
            path, config=config, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        logging.set_verbosity(before)
    other = {name: (list(ours), list(expected)) for name, ours, expected in found["mismatched_keys"]}
    return sorted(found["missing_keys"]), other


def _lora_differences(path: str | Path, prefix: str, shapes: dict[str, tuple]) -> tuple[list[str], dict[str, tuple]]:
    """The same for LoRA weights: those that peft would save for such a model."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    config, model_class = _class_of(path, prefix)
    with torch.device("meta"):
        model = get_peft_model(model_class(config), PeftConfig.from_pretrained(path))
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    other = {
        name: (list(shapes[name]), list(shape))
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    }
    return sorted(expected.keys() - shapes.keys()), other


def _class_of(path: str | Path, prefix: str) -> tuple[Any, type]:
    """The config of a checkpoint, and the class of its model."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(path)
    base = AutoModel._model_mapping[type(config)]
    return config, reward_model_class(base.__base__, base, prefix)


def trained_length(config) -> int:
    """The maximum tokens of a text in training; 1,024 if an older checkpoint does not say."""
    return config.reward_model.get("max_len", 1024)


def encode_suggestions(
    tokenizer, conversations: Sequence[Sequence[Message]], suggestions: Sequence[str], max_len: int
) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[n, length]`` of :func:`suggestion_ids`, padded left."""
    return pad_left(suggestion_ids(tokenizer, conversations, suggestions, max_len), tokenizer.pad_token_id)


def suggestion_rows(
    tokenizer,
    conversations: Sequence[Sequence[Message]],
    suggestions: Sequence[str],
    max_len: int,
    share_prefix: bool,
) -> SharedRows:
    """The model's input for suggestions; with ``share_prefix``, those of one conversation share a row."""
    ids = suggestion_ids(tokenizer, conversations, suggestions, max_len)
    if share_prefix:
        groups = [conversation_key(conversation) for conversation in conversations]
        return share_prefixes(ids, groups, tokenizer.pad_token_id)
    return SharedRows(*pad_left(ids, tokenizer.pad_token_id), torch.arange(len(ids)))


def suggestion_ids(
    tokenizer,
    conversations: Sequence[Sequence[Message]],
    suggestions: Sequence[str],
    max_len: int,
    cut: set[str] | None = None,
) -> list[list[int]]:
    """The tokens that a reward model reads, one list per suggestion.

    A conversation that is too long with its longest suggestion is cut by whole turns from the beginning, as everywhere
    (:func:`openrlhf_qs.models.template.shortened`), and in the same way for all of its suggestions. If its last
    question alone is too long, that is cut at its beginning: for a decoder by a multiple of an eighth of the limit, so
    that the suggestions share the rest.

    With a chat template, the suggestion is the last user turn of the conversation, closed by the end-of-sequence
    token, as in training. With a separator instead (BERT, MiniLM), they are a pair of texts, or the suggestion alone
    if the conversation is empty; both texts have token type 0.

    Args:
        max_len: tokens, or the tokenizer's own limit if that is lower. ValueError if a suggestion has more, or has no
            text.
        cut: collects the keys of the conversations that were cut.
    """
    for n, suggestion in enumerate(suggestions):
        if not suggestion.strip():
            raise ValueError(f"suggestion {n} of {len(suggestions)} has no text; leave it out")
    limit = min(max_len, tokenizer.model_max_length)
    cut = set() if cut is None else cut
    if tokenizer.chat_template:
        return _chat_ids(tokenizer, conversations, suggestions, limit, cut)
    if tokenizer.sep_token:
        return _pair_ids(tokenizer, conversations, suggestions, limit, cut)
    raise ValueError(
        f"the tokenizer of {tokenizer.name_or_path} has neither a chat template nor a separator token, so a "
        "suggestion cannot be told from its conversation; give it a chat template"
    )


def _chat_ids(tokenizer, conversations, suggestions, limit: int, cut: set[str]) -> list[list[int]]:
    rows, texts = _chat_rows(tokenizer, conversations, suggestions)
    longest = _longest(rows, conversations, limit)
    if longest:
        cut |= longest.keys()
        shorter = {
            key: shortened(tokenizer, suggestion_messages(conversations[n], suggestions[n]), limit)
            for key, n in longest.items()
        }
        whole = {key: messages[:-1] for key, messages in shorter.items() if messages is not None}
        of = [n for n, one in enumerate(conversations) if conversation_key(one) in whole]
        made = _chat_rows(
            tokenizer, [whole[conversation_key(conversations[n])] for n in of], [suggestions[n] for n in of]
        )
        for n, row, text in zip(of, *made, strict=True):
            rows[n], texts[n] = row, text
    # Cut by a multiple of it, texts of almost one length keep the same beginning and can share it.
    step = max(1, limit // 8)
    for n, (row, text, suggestion) in enumerate(zip(rows, texts, suggestions, strict=True)):
        if len(row) > limit:
            last = as_plain_text(tokenizer, escaped(suggestion)).strip()
            _, found, after = text.rpartition(last) if last else ("", "", "")
            [end] = _tokenize(tokenizer, [found + after if found else suggestion], add_special_tokens=False)
            _check_length(len(end), limit, suggestion)
            n_cut = step * math.ceil((len(row) - limit) / step)
            rows[n] = row[min(n_cut, len(row) - len(end)) :]
    return rows


def _longest(rows: Sequence[Sequence[int]], conversations, limit: int) -> dict[str, int]:
    """The row with the most tokens of each conversation that has more than ``limit`` somewhere."""
    found: dict[str, int] = {}
    for n, row in enumerate(rows):
        if len(row) > limit:
            key = conversation_key(conversations[n])
            found[key] = max(found.get(key, n), n, key=lambda one: len(rows[one]))
    return found


def _chat_rows(tokenizer, conversations, suggestions) -> tuple[list[list[int]], list[str]]:
    """Tokens and text of each suggestion under its conversation."""
    texts = [
        rendered(tokenizer, suggestion_messages(conversation, suggestion)).rstrip("\n")
        for conversation, suggestion in zip(conversations, suggestions, strict=True)
    ]
    eos = end_token(tokenizer)
    texts = [text if text.endswith(eos) else f"{text} {eos}" for text in texts]
    return _tokenize(tokenizer, texts, add_special_tokens=False), texts


def _pair_ids(tokenizer, conversations, suggestions, limit: int, cut: set[str]) -> list[list[int]]:
    pairs = [_pair(tokenizer, *one) for one in zip(conversations, suggestions, strict=True)]
    rows = _tokenize(tokenizer, pairs)
    for key, n in _longest(rows, conversations, limit).items():
        cut.add(key)
        left = list(conversations[n])
        starts = [place for place, message in enumerate(left) if message["role"] == "user" and place]
        for start in starts:
            left = conversations[n][start:]
            if len(_tokenize(tokenizer, [_pair(tokenizer, left, suggestions[n])])[0]) <= limit:
                break
        for k, one in enumerate(conversations):
            if conversation_key(one) == key:
                pairs[k] = _pair(tokenizer, left, suggestions[k])
                [rows[k]] = _tokenize(tokenizer, [pairs[k]])
    tokenizer.truncation_side = "left"
    for n, suggestion in enumerate(suggestions):
        if len(rows[n]) > limit:
            [alone] = _tokenize(tokenizer, [as_plain_text(tokenizer, suggestion)])
            _check_length(len(alone), limit, suggestion)
            # A separator and one token of the conversation need room too.
            rows[n] = alone
            if len(alone) + 2 <= limit:
                [rows[n]] = _tokenize(tokenizer, [pairs[n]], truncation="only_first", max_length=limit)
    return rows


def _pair(tokenizer, conversation, suggestion: str) -> tuple[str, str] | str:
    turns, text = f" {tokenizer.sep_token} ", as_plain_text(tokenizer, suggestion)
    context = turns.join(as_plain_text(tokenizer, message["content"]) for message in conversation).strip()
    return (context, text) if context else text


def _tokenize(tokenizer, texts: list, **options) -> list[list[int]]:
    return tokenizer(texts, verbose=False, **options)["input_ids"] if texts else []


def _check_length(n_tokens: int, limit: int, suggestion: str) -> None:
    if n_tokens > limit:
        raise ValueError(
            f"suggestion {suggestion[:40]!r}... needs {n_tokens} tokens, the limit is {limit}; raise max_len as far "
            "as the backbone goes, or leave it out"
        )


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int | None) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[n, length]`` of rows of different lengths."""
    length = max(map(len, rows), default=0)
    ids = [[pad_token_id or 0] * (length - len(row)) + list(row) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    shape = (len(rows), length)
    return torch.tensor(ids, dtype=torch.long).view(shape), torch.tensor(mask, dtype=torch.long).view(shape)


class Scores(NamedTuple):
    """A reward model's values for ``n`` suggestions: float64 ``[n]`` each, reward units.

    Attributes:
        mean: the expected reward.
        std: aleatoric standard deviation: how much the rewards of users differ.
        epistemic_std: how much the means of an ensemble's members differ; 0 without an ensemble.
    """

    mean: np.ndarray
    std: np.ndarray
    epistemic_std: np.ndarray


class SuggestionScorer:
    """A trained reward model as a function: conversations and suggestions to :class:`Scores`.

    Attributes:
        link: the likelihood it was trained with, for
            :func:`openrlhf_qs.garm.preference_likelihood.preference_probability`.
    """

    def __init__(self, path: str | Path, device: str = "cpu", max_len: int | None = None) -> None:
        """
        Args:
            path: folder of a reward model from ``recipes/garm.sh``. ValueError if it is not one.
            max_len: tokens; longer conversations are cut at the beginning, by whole turns. None: as in training.
        """
        self.model = load_reward_model(path, dtype_on_cpu(path) if device == "cpu" else torch.float32).to(device)
        self.tokenizer = load_tokenizer(path)
        self.max_len = max_len or trained_length(self.model.config)
        self.share_prefix = can_share_prefix(self.model.config, self.model.config._attn_implementation)
        self.link = self.model.head.link

    @torch.no_grad()
    def __call__(
        self, conversations: Sequence[Sequence[Message]], suggestions: Sequence[str], batch_size: int = 128
    ) -> Scores:
        """Float64 ``[n]`` each, reward units; row i is suggestion i of conversation i."""
        rewards = torch.empty(len(suggestions), 3)
        for batch, (input_ids, mask, place) in self.rows(conversations, suggestions, batch_size):
            rewards[batch] = self.model(input_ids, mask).cpu()[place]
        return Scores(*rewards.double().numpy().T)

    def rows(
        self, conversations: Sequence[Sequence[Message]], suggestions: Sequence[str], batch_size: int = 128
    ) -> Iterator[tuple[list[int], SharedRows]]:
        """Which suggestions to score together, by conversation and length, and their :func:`suggestion_rows` on the
        model's device."""
        texts = [conversation_key(conversation) for conversation in conversations]
        order = sorted(range(len(texts)), key=lambda n: (len(texts[n]), texts[n], len(suggestions[n])))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            of_batch = [conversations[n] for n in batch], [suggestions[n] for n in batch]
            input_ids, mask, place = suggestion_rows(self.tokenizer, *of_batch, self.max_len, self.share_prefix)
            yield batch, SharedRows(input_ids.to(self.model.device), mask.to(self.model.device), place)
