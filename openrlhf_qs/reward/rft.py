"""The first half of rejection-sampling fine-tuning: what the SFT policy would suggest, each suggestion with its score.

In: ``prompts.jsonl``, the SFT policy, the reward model. Out: one row a conversation, ``{"conversation", "candidates":
[{"text", "log_prob", "n_sampled", "garm_mean"}], "left_out"}``, of which the SFT dataset ``diverse`` takes the best
that differ, by the reward model's mean plus the policy's own log-probability a token; ``openrlhf-qs sft`` teaches
them.
A response of three is seldom good throughout, but of the suggestions in eight responses three are; GRPO, which only
compares whole responses, would look for them for long (docs/EVIDENCE.md). Llama 2 (arXiv:2307.09288) trains in this
order too: rejection sampling, then policy gradients.

A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from openrlhf_qs.files.printable import from_here
from openrlhf_qs.form.request import read_conversations
from openrlhf_qs.form.task import RESPONSE_TOKENS, Task, read_task
from openrlhf_qs.models.engine import Answer
from openrlhf_qs.models.template import token_texts
from openrlhf_qs.sft.distil import Options, Sampler, add_sampling_arguments, sample_candidates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", required=True, dest="teacher", metavar="DIR", help="the SFT policy")
    parser.add_argument(
        "--reward_model", required=True, metavar="DIR", help="reward model, as written by recipes/garm.sh"
    )
    parser.add_argument(
        "--n_max",
        type=int,
        default=0,
        help="distinct conversations, the last ones, since GRPO begins with the first; default: all",
    )
    add_sampling_arguments(parser, n_samples=8, max_new_tokens=RESPONSE_TOKENS, temperature=0.7)


def run(args: argparse.Namespace) -> None:
    """Sample what is not sampled yet, score every suggestion, write the file."""
    from openrlhf_qs.garm.eval import load_on_device

    # GRPO begins with the first, so that they are not what the policy was taught here
    journal = sample_candidates(args, ResponseSampler, read_conversations(args.prompts)[-args.n_max :])
    rows = list(journal.rows())
    scorer = load_on_device(args.reward_model)
    pairs = [(row["conversation"], one["text"]) for row in rows for one in row["candidates"]]
    means = iter(scorer([conversation for conversation, _ in pairs], [text for _, text in pairs]).mean.tolist())
    for row in rows:
        row["candidates"] = [one | {"garm_mean": next(means)} for one in row["candidates"]]
    n = read_task(args.teacher).n
    n_enough = sum(len(row["candidates"]) >= n for row in rows)
    if 2 * n_enough < len(rows):
        raise ValueError(
            f"{args.teacher} has {n} different suggestions for only {n_enough} of {len(rows)} conversations: there is "
            "nothing to choose from; train it longer, give it more tokens (MAX_NEW_TOKENS), or leave this out (RFT=0)"
        )
    journal.finish(rows)
    print(f"{len(pairs):,} suggestions scored, in {from_here(args.out)}")


class ResponseSampler(Sampler):
    """An engine with a policy that writes several suggestions at once; each of them is a candidate."""

    @staticmethod
    def task_of(teacher: str) -> Task:
        return read_task(teacher)

    def __init__(self, options: Options, seed: int) -> None:
        super().__init__(options, seed)
        self.piece = token_texts(self.llm.get_tokenizer())

    def suggestions(self, answers: Sequence[Answer]) -> Iterator[tuple[str, float, bool]]:
        """Of every suggestion its text, its tokens' mean log-probability, and True; of a malformed response as many
        empty texts as it was to have."""
        from openrlhf_qs.reward.credit import suggestion_log_probs  # --help need not wait for torch

        for answer in answers:
            ended = answer.finish_reason == "stop"
            parsed = self.task.read(answer.text, answer.finish_reason)
            if not parsed.well_formed:
                yield from [("", 0.0, ended)] * self.task.n
                continue
            log_probs = suggestion_log_probs(list(map(self.piece, answer.tokens)), answer.log_probs, self.task.n)
            for text, log_prob in zip(parsed.suggestions, log_probs, strict=True):
                yield text, log_prob, ended
