"""The command line: one subcommand a stage, in the order of the way, then what helps around it."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable, Sequence

from openrlhf_qs import __version__
from openrlhf_qs.command_help import HELP
from openrlhf_qs.files.printable import printable
from openrlhf_qs.files.whole import FULL

# Modules are imported when their subcommand is called: `--help` must not wait for torch. The stages without one are
# OpenRLHF's entry points, which openrlhf_qs.host runs.
STAGES = {
    "data": ("clicks.data", "turn a click log into SFT candidates, preferences, prompts and held-out impressions"),
    "distil": ("sft.distil", "sample many suggestions per conversation from a teacher, for sft"),
    "sft": ("", "train the policy on assembled suggestions: OpenRLHF's train_sft with our dataset"),
    "garm": ("", "train the Gaussian reward model on preferences: OpenRLHF's train_rm with our head"),
    "fusion": ("reward.fusion", "learn the weights of the composite reward"),
    "rft": ("reward.rft", "sample responses from the SFT policy and score their suggestions, for its fine-tuning"),
    "grpo": ("", "train the policy on the composite reward: OpenRLHF's train_ppo_ray with our rewards"),
    "generate": ("models.generate", "let a policy answer conversations, for fusion and evaluate"),
    "evaluate": ("evaluation.evaluate", "A/B-test the policies on held-out conversations, and write the report"),
}
LOOKS = {
    "log check": ("clicks.check", "check a click log and describe it, in constant memory"),
    "lengths": ("clicks.lengths", "cut what is too long for a policy, and find how many tokens a response needs"),
    "log convert": ("clicks.convert", "convert CSV, ShareGPT, OpenAI messages and other kinds of log to a click log"),
    "assemble": ("sft.sft_set", "choose three of each conversation's candidates, as sft does, for inspection"),
    "garm eval": ("garm.eval", "measure a reward model's accuracy, calibration and position preference"),
    "garm wide": (
        "garm.fit_wide",
        "fit word crosses and conversation overlaps to clicks and add them to a reward model",
    ),
    "garm spread": (
        "garm.spread",
        "estimate how far users disagree from each user's clicks, and store it in a reward model",
    ),
    "garm calibrate": ("garm.calibrate", "fit one temperature on held-out preferences and store it in a reward model"),
    "garm score": ("garm.score", "add a reward model's mean and std to every row of a file"),
    "garm merge": ("garm.merge", "merge a LoRA-trained reward model into a full model, for grpo"),
    "reward score": ("reward.score", "try a reward on a file: each part, the weights and the total"),
    "rank": ("rank.train", "train an intent ranker for users who have not typed anything yet, on a zero-query log"),
    "rank data": ("rank.data", "turn a zero-query log into training data for ranker and reasoner, and held-out data"),
    "rank proposals": ("rank.proposals", "learn from people which of an assistant's proposals are accepted"),
    "rank score": ("rank.score", "add a ranker's scores to every row of a file"),
    "rank best": ("rank.best", "pick the reasoner's queries that help the ranker most, as training targets"),
    "dpo": ("", "train a policy on the better of two answers to a prompt: OpenRLHF's train_dpo"),
    "rank eval": ("rank.eval", "compare rankers on held-out visits: GAUC, Recall@3, NDCG@3, CTR@3, ECE"),
    "plugins": ("list_plugins", "list the plugins, or show the options of one"),
    "doctor": ("host.doctor", "check versions, devices and OpenRLHF's extension points"),
    "ab": (
        "evaluation.logged_ab",
        "evaluate a real A/B test from a click log: CTR, lift, sample ratio, always-valid intervals",
    ),
    "seeds": ("evaluation.seeds", "compare runs of several seeds: means, worst seed, lifts, as Markdown"),
    "ablation": (
        "evaluation.ablation",
        "compare the arms of recipes/ablate_rewards.sh and ablate_sft.sh over their seeds",
    ),
    "follow": ("host.follow", "show the progress of a training run whose output is piped into it"),
    "expect": (
        "host.expected_time",
        "estimate how long a stage will take with a real model on the CPU, before it begins",
    ),
}
LIVE = {
    "serve": ("serve.serve", "answer chats with suggestions over HTTP, and log what was shown and clicked"),
    "suggest": ("serve.suggest", "suggest follow-ups to a conversation: the best of n by a reward model"),
    "log export": ("serve.export", "export a server's log as a click log, for log check, ab and CLICK_LOG="),
    "log forget": ("serve.forget", "remove a user from a server's log"),
}
SOURCES = {
    "world": ("world.click_log", "write a click log of simulated users, if you have none"),
    "world zero-query": ("world.zero_query", "write a zero-query log of simulated visitors, and their knowledge base"),
    "cold-start": ("sft.cold_start", "let a language model write the first suggestions, before there are any clicks"),
    "small-policy": ("sft.small_policy", "build a tokenizer and a small policy from a click log"),
    "model": ("models.resolve", "convert smollm2, or any GGUF file, to a Hugging Face folder, once"),
    "upworthy": ("archives.upworthy", "turn the Upworthy archive's headline A/B tests into preferences"),
    "mimics": ("archives.mimics", "turn MIMICS-Duo's clarification panes into preferences"),
}
BENCHMARKS = {
    "benchmark assembly": ("benchmark.assembly", "contexts per second of the assembly, and what each option is worth"),
    "benchmark log": ("benchmark.log", "impressions per second of reading, checking and pairing a log, as it grows"),
    "benchmark garm-training": (
        "benchmark.garm_training",
        "impressions per second of reward-model training, OpenRLHF's own way and ours",
    ),
    "benchmark live-log": (
        "benchmark.live_log",
        "impressions per second that a server's log acknowledges, compared with a journal",
    ),
    "benchmark cold-start": (
        "benchmark.cold_start",
        "how many of a model's first suggestions can be shown, by template and temperature",
    ),
    "benchmark frozen-backbone": (
        "benchmark.frozen_backbone",
        "how well a frozen language model's layers predict what users like",
    ),
    "benchmark ranker": (
        "benchmark.ranker",
        "the intent ranker compared with LightGBM's LambdaMART, as the log grows",
    ),
    "benchmark propensities": (
        "benchmark.propensities",
        "how well the examination estimators recover a known truth: bias, coverage, false alarms",
    ),
    "benchmark scoring": (
        "benchmark.scoring",
        "scoring a GRPO group with the reward model at once, compared with one response at a time",
    ),
    "benchmark grpo-overhead": (
        "benchmark.grpo_overhead",
        "the composite reward's share of a GRPO step, and what batched scoring saves",
    ),
    "benchmark serving": (
        "benchmark.serving",
        "what a server costs on top of its engine: throughput and response time",
    ),
    "benchmark silence": ("benchmark.silence", "what staying silent brings: CTR and clicks lost by the share shown"),
    "benchmark reward-models": (
        "benchmark.reward_models",
        "Bradley-Terry, DPL, PURM and the Gaussian reward model compared on the same features",
    ),
}
GROUPS = {
    "stages, in order": STAGES,
    "to inspect, measure and try": LOOKS,
    "in real chats": LIVE,
    "if you have no log or model yet": SOURCES,
    "benchmarks": BENCHMARKS,
}
TOOLS = LOOKS | LIVE | SOURCES | BENCHMARKS
COMMANDS = STAGES | TOOLS
OPENRLHF = [name for name, (module, _) in COMMANDS.items() if not module]
FLAG_CUTOFF = 0.75  # from which a flag is near another: they have their dashes in common
EPILOG = """\
all stages in one command:
  bash recipes/grpo_garm.sh
on your own clicks:
  CLICK_LOG=clicks.jsonl RUN=runs/mine bash recipes/grpo_garm.sh
with other rewards:
  REWARD=garm,ood,rules RUN=runs/three bash recipes/grpo_garm.sh
with variables from a file, such as the one that every run leaves:
  CONFIG=runs/mine/variables.env RUN=runs/twin bash recipes/grpo_garm.sh

sft, garm, dpo and grpo also take any flag of OpenRLHF; our own begin with --qs.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``openrlhf-qs``. Errors of a user's making, and of the machine's, are one line on stderr and exit
    status 2."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # for users, who need no line of source
    try:
        _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has enough, as head has; nothing more is to be written at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return
    if " ".join(argv[:2]) in TOOLS:  # a command of two words, as `garm eval`
        argv = [" ".join(argv[:2]), *argv[2:]]
    command = argv[0]
    parser = _parser(command)
    if command not in ("--version", *COMMANDS) or _takes_no_word(command) and _is_word(argv[1:]):
        _say_what_there_is(parser, argv)
    if command in OPENRLHF and "--help-all" in argv:
        print(_everything(command))
        return
    args, rest = parser.parse_known_args(argv)
    if rest and command not in OPENRLHF:
        flags = [flag for action in _subparser(parser, command)._actions for flag in action.option_strings]
        parser.error(f"unknown arguments: {' '.join(rest)}{_near(rest[0].partition('=')[0], flags, FLAG_CUTOFF)}")
    try:
        if command in OPENRLHF:
            from openrlhf_qs.host.checks import prepare

            settings = prepare(command, args, rest)
        else:
            from openrlhf_qs.models.quiet import quiet_libraries

            quiet_libraries()
            _module(command).run(args)
    except ValueError as error:
        print(printable(f"openrlhf-qs {command}: {error}"), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(printable(f"openrlhf-qs {command}: {_of_the_machine(error)}"), file=sys.stderr)
        sys.exit(2)
    if command in OPENRLHF and vars(args)["qs.check_enable"]:
        print(f"{command}: ok, flags (including OpenRLHF's), plugins, data and models are valid; nothing was run")
    elif command in OPENRLHF:
        from openrlhf_qs.host import run as host

        host.run(command, settings, rest)


def _of_the_machine(error: OSError) -> str:
    """What went wrong with a file or a host, in one line, and what to do about a full disk."""
    what = " ".join(str(error).split()) or repr(error)
    if error.errno in FULL:
        return f"{what}: make room and call again to continue from what is finished"
    if "couldn't connect to" in what:  # transformers, of a model that is to be had from the hub
        return f"no such folder here, and the hub cannot be reached: give a path, or a name that the hub knows. {what}"
    return what


def overview() -> str:
    """What ``--help`` prints: every command with what it does, in groups."""
    lines = ["usage: openrlhf-qs COMMAND ...    (openrlhf-qs COMMAND --help: its flags)", ""]
    lines += ["Generative query suggestion, aligned with clicks: plugins of OpenRLHF.", ""]
    for group, commands in GROUPS.items():
        lines.append(f"{group}:")
        for name, (_, what) in commands.items():
            lines += textwrap.wrap(what, 78, initial_indent=f"  {name:<26}", subsequent_indent=" " * 28)
        lines.append("")
    return "\n".join([*lines, EPILOG])


def _takes_no_word(command: str) -> bool:
    """Whether a second word is a tool misspelt: OpenRLHF's entry points, `rank` and `world` take only flags."""
    return command in OPENRLHF or any(name.startswith(f"{command} ") for name in TOOLS)


def _is_word(rest: Sequence[str]) -> bool:
    """Whether there is a second word that is no flag."""
    return bool(rest) and not rest[0].startswith("-")


def _say_what_there_is(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """End with the commands that begin with the first word, that do what was typed, or are near to it."""
    if argv[0].startswith("-"):
        near = _near(argv[0], ["--help", "--version"], FLAG_CUTOFF) or "; openrlhf-qs --help lists the commands"
        parser.error(f"there is no flag {argv[0]!r}{near}")
    typed = " ".join(argv[:2]) if _is_word(argv[1:]) else argv[0]
    family = [name for name in TOOLS if name.startswith(f"{argv[0]} ")]
    if family and typed == argv[0] and argv[0] not in OPENRLHF:
        indent = " " * (max(map(len, family)) + 4)
        width = shutil.get_terminal_size().columns
        listed = [
            textwrap.fill(
                TOOLS[name][1], width, initial_indent=f"  {name}".ljust(len(indent)), subsequent_indent=indent
            )
            for name in family
        ]
        parser.error("\n".join([f"{argv[0]} what? There is", *listed]))
    doing = [name for name, (_, what) in COMMANDS.items() if what.split()[0] == typed]  # which `train` is no name of
    if doing:
        parser.error(f"there is no command {typed!r}; did you mean {' or '.join(map(repr, doing))}?")
    near = _near(typed, family or COMMANDS) or _near(argv[0], COMMANDS) or "; openrlhf-qs --help lists them"
    parser.error(f"there is no command {typed!r}{near}")


def _near(typed: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """As :func:`openrlhf_qs.registry.did_you_mean`, without its imports."""
    near = difflib.get_close_matches(typed, known, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def _module(command: str):
    return importlib.import_module("openrlhf_qs." + COMMANDS[command][0])


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="openrlhf-qs", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, what) in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=what,
            description=_description(name) if name == command else "",
            epilog=_example(name) if name == command else "",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != command:
            continue
        if name in OPENRLHF:
            from openrlhf_qs.host import run as host

            host.add_arguments(one, name)
            one.add_argument("--help-all", action="store_true", help="also show OpenRLHF's own flags, then exit")
        else:
            _module(name).add_arguments(one)
    return parser


def _subparser(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    return parser._subparsers._group_actions[0].choices[command]


def _description(command: str) -> str:
    """What a command is for, reads and writes."""
    _, what = COMMANDS[command]
    about = HELP[command]
    lines = textwrap.wrap(what[0].upper() + what[1:] + ".", 78)
    for name, text in (("reads", about.reads), ("writes", about.writes)):
        lines += textwrap.wrap(text, 78, initial_indent=f"  {name:<8}", subsequent_indent=" " * 10)
    return "\n".join(lines)


def _example(command: str) -> str:
    """An example that can be copied, and where more is told."""
    about = HELP[command]
    lines = ["example:"]
    for piece in about.example.replace(" --", "\n--").split("\n"):  # a flag with its value
        if len(lines) > 1 and len(lines[-1]) + len(piece) < 76:
            lines[-1] += f" {piece}"
        elif len(lines) > 1:
            lines[-1] += " \\"
            lines.append(f"     {piece}")
        else:
            lines.append(f"  {piece}")
    if command in OPENRLHF:
        lines += ["", f"Every other flag is OpenRLHF's: openrlhf-qs {command} --help-all lists them,"]
        recipe = "rgalign" if command == "dpo" else command
        lines += [f"bash recipes/{recipe}.sh fills them in."]
    return "\n".join([*lines, "", f"more: docs/{about.page}"])


def _everything(command: str) -> str:
    """The help of a stage that OpenRLHF runs, with that of OpenRLHF's own flags, and without its imports."""
    from openrlhf_qs.host.arguments import ENTRY_POINTS, host_parser

    ours = _subparser(_parser(command), command)
    theirs = host_parser(command)
    theirs.prog = f"openrlhf-qs {command}"
    flags = theirs.format_help().partition("\n\n")[2]
    return f"{ours.format_help()}\nflags of {ENTRY_POINTS[command]}, which go to it as they are:\n\n{flags}"


if __name__ == "__main__":
    main()
