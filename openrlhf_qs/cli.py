"""The command line: one subcommand a stage, in the order of the way, then what helps around it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from openrlhf_qs import __version__
from openrlhf_qs.host import run as host

# Modules are imported when their subcommand is called: `--help` must not wait for torch.
STAGES = {
    "data": ("clicks.data", "click log to SFT candidates, preference pairs, prompts and held-out impressions"),
    "distil": ("sft.distil", "sample many suggestions for each conversation from a teacher, for sft"),
    "sft": ("", "train the policy on assembled suggestions: OpenRLHF's train_sft with our dataset"),
    "garm": ("", "train the Gaussian reward model on pairs: OpenRLHF's train_rm with our head"),
    "fusion": ("reward.fusion", "learn the weights of the composite reward"),
    "grpo": ("", "train the policy on the composite reward: OpenRLHF's train_ppo_ray with our rewards"),
    "generate": ("models.generate", "let a policy answer conversations, for fusion and evaluate"),
    "evaluate": ("evaluation.evaluate", "A/B test of the policies on held-out conversations, and the report"),
}
TOOLS = {
    "cold-start": ("sft.cold_start", "let a language model write the first suggestions, when there are no clicks yet"),
    "assemble": ("sft.sft_set", "choose three of each conversation's candidates, as sft does, to look at them"),
    "benchmark assembly": ("benchmark.assembly", "contexts a second of the assembly, and what each option is worth"),
    "garm merge": ("garm.merge", "write a reward model that was trained with LoRA as a whole model, for grpo"),
    "log check": ("clicks.check", "check a click log and describe it, in constant memory"),
    "benchmark log": (
        "benchmark.log",
        "impressions a second of reading, checking and pairing a click log, as it grows",
    ),
    "upworthy": ("archives.upworthy", "headline A/B tests of the Upworthy archive to preference pairs"),
    "mimics": ("archives.mimics", "clarification panes of MIMICS-Duo to preference pairs"),
    "garm eval": ("garm.eval", "accuracy, calibration and position preference of a reward model on pairs"),
    "garm calibrate": ("garm.calibrate", "one temperature, fitted on held-out pairs, into a reward model"),
    "garm score": ("garm.score", "add a reward model's mean and std to every row of a file"),
    "benchmark garm-training": (
        "benchmark.garm_training",
        "impressions a second of reward-model training, OpenRLHF's own way and ours",
    ),
    "benchmark scoring": (
        "benchmark.scoring",
        "a GRPO group scored by the reward model at once, against one response after the other",
    ),
    "benchmark grpo-overhead": (
        "benchmark.grpo_overhead",
        "what the composite reward costs of a GRPO step, and what scoring in batches saves",
    ),
    "benchmark reward-models": (
        "benchmark.reward_models",
        "Bradley-Terry, DPL, PURM and the Gaussian reward model side by side on the same features",
    ),
    "reward score": ("reward.score", "try a reward on a file: each part, the weights and the total"),
    "world": ("world.click_log", "write a click log of simulated users, for when there is none"),
    "small-policy": ("sft.small_policy", "build a tokenizer and a small policy from a click log"),
    "plugins": ("list_plugins", "list the plugins, or show the options of one"),
    "doctor": ("host.doctor", "versions, devices, and whether each extension point of OpenRLHF is where it was"),
    "ablation": ("evaluation.ablation", "arms of recipes/ablate_rewards.sh and ablate_sft.sh over their seeds"),
    "follow": ("host.follow", "show the progress of a training run that is piped into it"),
}
EPILOG = """\
The whole way in one command:   bash recipes/grpo_garm.sh
On your own clicks:             CLICK_LOG=clicks.jsonl RUN=runs/mine bash recipes/grpo_garm.sh
With other rewards:             REWARD=garm,ood,rules RUN=runs/three bash recipes/grpo_garm.sh
After sft, garm and grpo any flag of OpenRLHF may follow; ours begin with --qs.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``openrlhf-qs``. Errors of a user's making are one line on stderr and exit status 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if " ".join(argv[:2]) in TOOLS:  # a command of two words, as `garm eval`
        argv = [" ".join(argv[:2]), *argv[2:]]
    parser = _parser(argv[0] if argv else "")
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in host.ENTRY_POINTS:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        if args.command in host.ENTRY_POINTS:
            from openrlhf_qs.host.checks import prepare

            settings = prepare(args.command, args, rest)
        else:
            _module(args.command).run(args)
    except ValueError as error:
        print(f"openrlhf-qs {args.command}: {error}", file=sys.stderr)
        sys.exit(2)
    if args.command in host.ENTRY_POINTS and not vars(args)["qs.check_enable"]:
        host.run(args.command, settings, rest)


def _module(command: str):
    return importlib.import_module("openrlhf_qs." + {**STAGES, **TOOLS}[command][0])


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="openrlhf-qs",
        description="Generative query suggestion, aligned with clicks: plugins of OpenRLHF.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, what) in {**STAGES, **TOOLS}.items():
        one = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        if name != command:
            continue
        if name in host.ENTRY_POINTS:
            host.add_arguments(one, name)
            one.epilog = (
                f"Every other flag goes to {host.ENTRY_POINTS[name]}: see python -m {host.ENTRY_POINTS[name]} --help"
            )
        else:
            _module(name).add_arguments(one)
    return parser


if __name__ == "__main__":
    main()
