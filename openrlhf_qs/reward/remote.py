"""Our rewards for plain OpenRLHF, neither patched nor started by us: this file is its reward function.

In: what OpenRLHF gives to ``reward_func(queries, prompts, labels)``, one response a call, from many threads. Out: the
composite reward, a score for dynamic filtering, and each part for the log::

    export OPENRLHF_QS_REWARD_MODEL=$PWD/runs/default/garm
    python -m openrlhf.cli.train_ppo_ray ... \\
       --data.prompt_dataset runs/default/data/prompts.jsonl --data.input_key prompt --data.label_key label \\
       --data.apply_chat_template \\
       --reward.remote_url "$(python -c 'import openrlhf_qs.reward.remote as r; print(r.__file__)')"

Environment variables, read where OpenRLHF loads the file: in each rollout actor. On a running cluster give them in
Ray's ``runtime_env``, and paths that all its machines have.

- ``OPENRLHF_QS_REWARD``: parts of the reward, separated by commas. Default: garm,garm_sigma,rules,diversity.
- ``OPENRLHF_QS_REWARD_MODEL``: folder of the GaRM. Every rollout actor loads one.
- ``OPENRLHF_QS_WEIGHTS``: weights file of the fusion stage. Default: weight 1 on raw parts.
- ``OPENRLHF_QS_OPTIONS``: NAME.OPTION=VALUE, separated by commas, as in rules.max_width=80,garm.missing=-2.
- ``OPENRLHF_QS_PLUGINS``: files that register plugins, separated by commas.
- ``OPENRLHF_QS_DEVICE``: auto, cpu or cuda, for the GaRM. Default: auto, which is cuda where torch finds a GPU. It
  takes memory beside vLLM there: lower ``--vllm.gpu_memory_utilization``.
- ``OPENRLHF_QS_N_SUGGESTIONS``: that a response is to have, 1 to 8. Default: 3.
- ``OPENRLHF_QS_BATCH_WAIT_MS``: how long a batch waits for more calls after its first. Default: 5, short beside one
  pass of the GaRM.

Calls come from asyncio's default threads, min(32, cores + 4) for each rollout actor: so many responses share a pass of
the GaRM at most. Each response is a group of its own here: rewards that compare a group need ``openrlhf-qs grpo``, as
do those that need the reference policy (``ood``).
"""

from __future__ import annotations

import importlib
import math
import os
import queue
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain
from typing import Any, NamedTuple, get_args

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.task import SUGGEST, Task
from openrlhf_qs.models.device import Device, pick_device
from openrlhf_qs.registry import load_plugins, parse_options
from openrlhf_qs.reward.composite import CompositeReward, read_weights
from openrlhf_qs.reward.offline import offline_batch

DEFAULT_REWARD = "garm,garm_sigma,rules,diversity"
DEFAULT_BATCH_WAIT_MS = "5"

# The forms in which tokenizers write special tokens: <|im_end|>, <｜end▁of▁sentence｜>, <turn|>, </s>, <end_of_turn>.
SPECIAL = re.compile(
    r"<[|｜][^\s<>|｜]+[|｜]?>|<[^\s<>|｜]+[|｜]>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
)
SPECIAL_AT_END = re.compile(rf"(?:{SPECIAL.pattern})\s*\Z")
MIN_KEPT = 32  # characters; with less of a cut prompt before it, a response could begin anywhere


class RewardFailed(BaseException):
    """A response could not be scored, and the run must not go on without its reward.

    Not an ``Exception``: OpenRLHF logs those of a reward function at INFO and goes on with None. asyncio hands every
    ``BaseException`` on but for SystemExit and KeyboardInterrupt, with which Ray's caller would wait for ever, and Ray
    raises it in the trainer as ``RayTaskError(RewardFailed)`` with its text.
    """


class Rollout(NamedTuple):  # no dataclass: those need their module in sys.modules, where OpenRLHF does not put it
    """One response and what it answers; ``finish_reason`` is ``length`` where it has no end-of-turn token."""

    request: Request
    response: str
    finish_reason: str


class RemoteReward:
    """OpenRLHF's ``reward_func``; calls from different threads are scored together."""

    def __init__(
        self, composite: CompositeReward, scorer: Callable | None, wait_s: float, task: Task = SUGGEST
    ) -> None:
        """
        Args:
            scorer: a :class:`~openrlhf_qs.garm.reward_model.SuggestionScorer`; None where none is needed.
            wait_s: seconds that a batch waits for more calls after its first.
            task: what the policy is asked for.
        """
        self.composite = composite
        self.task = task
        self.scorer = scorer
        self.batcher = Batcher(self.score, wait_s)

    def __call__(self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
        """The reward of one response: lists of one each, as OpenRLHF gives them. Whatever fails is a RewardFailed.

        Args:
            queries: prompt and response, decoded with special tokens.
            prompts: the prompt's text.
            labels: the request as JSON.
        """
        try:
            if not len(queries) == len(prompts) == len(labels) == 1:
                raise ValueError(
                    f"{len(queries)} queries, {len(prompts)} prompts, {len(labels)} labels in one call: OpenRLHF's "
                    "call has changed, openrlhf-qs expects one of each"
                )
            return self.batcher(read_rollout(queries[0], prompts[0], labels[0]))
        except BaseException as error:  # of a plugin's sys.exit() too the caller must hear
            raise RewardFailed(str(error) if isinstance(error, ValueError) else repr(error)) from error

    def score(self, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
        """A dict for each rollout: ``rewards`` (composite), ``scores`` (its sigmoid), ``extra_logs`` (raw parts)."""
        requests, responses, finish_reasons = zip(*rollouts, strict=True)
        scored = self.composite.score(
            offline_batch(requests, responses, scorer=self.scorer, task=self.task, finish_reasons=finish_reasons)
        )
        total = scored.total
        scores = total.sigmoid().clamp(1e-6, 1 - 1e-6)  # in float32 a sigmoid can be 0 or 1
        logged = {f"reward/{name}": value.tolist() for name, value in scored.raw.items()}
        return [
            {"rewards": reward, "scores": score, "extra_logs": {name: values[n] for name, values in logged.items()}}
            for n, (reward, score) in enumerate(zip(total.tolist(), scores.tolist(), strict=True))
        ]


class Batcher:
    """A function of many items that is called with one at a time, from many threads.

    A thread of its own takes the first call, those of the next ``wait_s`` seconds, and all that queued while it was
    busy, into one call of ``function``; its error is raised in every one of them.
    """

    def __init__(self, function: Callable[[list], list], wait_s: float) -> None:
        self.function = function
        self.wait_s = wait_s
        self.calls: queue.SimpleQueue[tuple[Any, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="openrlhf_qs.reward.remote", daemon=True).start()

    def __call__(self, item: Any) -> Any:
        future: Future = Future()
        self.calls.put((item, future))
        return future.result()

    def _run(self) -> None:
        while True:
            calls = [self.calls.get()]
            time.sleep(self.wait_s)
            calls += [self.calls.get() for _ in range(self.calls.qsize())]
            items, futures = map(list, zip(*calls, strict=True))
            try:
                results = list(zip(futures, self.function(items), strict=True))
            except BaseException as error:  # whatever it is, a thread that waits for its result must hear of it
                for future in futures:
                    future.set_exception(error)
            else:
                for future, result in results:
                    future.set_result(result)


def load_reward(environ: Mapping[str, str]) -> RemoteReward:
    """The reward that the environment asks for. ValueError where a variable is wrong or a part cannot be had here."""
    load_plugins(_words(environ, "OPENRLHF_QS_PLUGINS"))
    names = _words(environ, "OPENRLHF_QS_REWARD") or DEFAULT_REWARD.split(",")
    options = parse_options(_words(environ, "OPENRLHF_QS_OPTIONS"))
    for name in options:
        if name not in names:
            raise ValueError(f"OPENRLHF_QS_OPTIONS: {name!r} is not in OPENRLHF_QS_REWARD={','.join(names)}")
    weights = environ.get("OPENRLHF_QS_WEIGHTS")
    composite = CompositeReward(names, options, read_weights(weights) if weights else None)
    if composite.normalisation == "group":
        raise ValueError(
            f"OPENRLHF_QS_WEIGHTS={weights} was learned for the normalisation 'group', but a reward function sees no "
            "groups: run the fusion stage with --normalisation sft, or train with `openrlhf-qs grpo`"
        )
    without_reference = [name for name, reward in composite.rewards.items() if "reference" in reward.needs]
    if without_reference:
        raise ValueError(
            f"OPENRLHF_QS_REWARD: {','.join(without_reference)} needs the reference policy's log-probs, which "
            "OpenRLHF does not give to a reward function; leave it out, or train with "
            f"`openrlhf-qs grpo --qs.reward {','.join(names)}`"
        )
    scorer = None
    if "reward_model" in composite.needs():
        scorer = _load_scorer(environ, names)
    wait_ms = environ.get("OPENRLHF_QS_BATCH_WAIT_MS") or DEFAULT_BATCH_WAIT_MS
    return RemoteReward(composite, scorer, _milliseconds(wait_ms) / 1000, Task(_n_suggestions(environ)))


def _load_scorer(environ: Mapping[str, str], names: Sequence[str]) -> Callable:
    from openrlhf_qs.garm.reward_model import SuggestionScorer

    folder = environ.get("OPENRLHF_QS_REWARD_MODEL")
    if not folder:
        raise ValueError(f"reward {','.join(names)} needs a reward model: set OPENRLHF_QS_REWARD_MODEL to its folder")
    if not os.path.isdir(folder):
        raise ValueError(
            f"OPENRLHF_QS_REWARD_MODEL={folder}: no such folder, seen from {os.getcwd()}; give an absolute path that "
            "exists on every machine"
        )
    device = environ.get("OPENRLHF_QS_DEVICE") or "auto"
    if device not in get_args(Device):
        raise ValueError(f"OPENRLHF_QS_DEVICE={device}: give auto, cpu or cuda")
    return SuggestionScorer(folder, pick_device(device))


def _words(environ: Mapping[str, str], variable: str) -> list[str]:
    return [word.strip() for word in environ.get(variable, "").split(",") if word.strip()]


def _n_suggestions(environ: Mapping[str, str]) -> int:
    text = environ.get("OPENRLHF_QS_N_SUGGESTIONS") or "3"
    if not text.isdecimal():
        raise ValueError(f"OPENRLHF_QS_N_SUGGESTIONS={text}: give a number, 1 to 8")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"OPENRLHF_QS_BATCH_WAIT_MS={text}: give milliseconds, 0 or more")
    return value


def read_rollout(query: str, prompt: str, label: str) -> Rollout:
    """One call's texts as a rollout. ValueError where the label is no conversation or the prompt is not found."""
    text = response_text(query, prompt)
    return Rollout(
        request=Request.of_label(label),
        response=SPECIAL.sub("", text),
        finish_reason="stop" if SPECIAL_AT_END.search(text) else "length",
    )


def response_text(query: str, prompt: str) -> str:
    """What stands after the prompt in the query. ValueError where the query does not begin with the prompt or its end.

    The query is decoded from tokens: a tokenizer may move spaces and compose letters, and OpenRLHF cuts the beginning
    of a prompt that is too long. So blanks are not compared, Unicode's composed forms are tried, and the longest end
    of the prompt, of ``MIN_KEPT`` characters or more, is taken for it.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    places = [n for n, character in enumerate(query) if not character.isspace() and character != "\ufffd"]
    letters = "".join(query[n] for n in places)
    for form in (prompt, unicodedata.normalize("NFC", prompt), unicodedata.normalize("NFKC", prompt)):
        expected = "".join(form.split()).replace("\ufffd", "")
        cuts = (match.start() for match in re.finditer(f"(?={re.escape(letters[:MIN_KEPT])})", expected))
        for cut in chain([0], cuts):
            kept = expected[cut:]
            if letters.startswith(kept) and len(kept) >= (MIN_KEPT if cut else 1):
                return query[places[len(kept) - 1] + 1 :]
    raise ValueError(
        f"query {query[:60]!r}... does not begin with its prompt {prompt[:60]!r}... nor with an end of it, so the "
        "response cannot be told apart; use a tokenizer that reproduces its input"
    )


if __name__ != "openrlhf_qs.reward.remote":  # OpenRLHF loads the file by its path, under a name of its own
    reward_func = importlib.import_module("openrlhf_qs.reward.remote").load_reward(os.environ)
