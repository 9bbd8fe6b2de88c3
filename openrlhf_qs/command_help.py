"""What ``--help`` shows for each command besides its flags: what it reads and writes, an example, and the page."""

from __future__ import annotations

from typing import NamedTuple


class Help(NamedTuple):
    """The help of one command.

    Attributes:
        reads, writes: in words.
        example: a whole command line.
        page: under ``docs/``.
    """

    reads: str
    writes: str
    example: str
    page: str


RUN = "runs/default"
_PAIRS = f"{RUN}/data/preferences.heldout.jsonl"
_TERMINAL = "the terminal"
HELP = {
    "data": Help(
        "a click log, JSON Lines or Parquet",
        "one folder with candidates, preferences, prompts and the held-out part of the log",
        "openrlhf-qs data --log clicks.jsonl --out runs/mine/data",
        "CLICK_LOG.md",
    ),
    "distil": Help(
        "conversations, and a teacher that writes single suggestions",
        "candidates for sft",
        f"openrlhf-qs distil --teacher {RUN}/distil/teacher --prompts {RUN}/data/prompts.jsonl --out candidates.jsonl",
        "DISTILLATION.md",
    ),
    "sft": Help(
        "candidates (data/sft.jsonl), and a policy",
        "the SFT policy",
        f"openrlhf-qs sft --data.dataset {RUN}/data/sft.jsonl --data.input_key prompt --data.output_key response "
        f"--data.apply_chat_template --model.model_name_or_path Qwen/Qwen3-0.6B --ckpt.output_dir {RUN}/sft",
        "ASSEMBLY.md",
    ),
    "garm": Help(
        "preferences (data/preferences.jsonl), and a backbone",
        "the reward model",
        f"openrlhf-qs garm --data.dataset {RUN}/data/preferences.jsonl --data.apply_chat_template "
        f"--model.model_name_or_path {RUN}/sft --ckpt.output_dir {RUN}/garm",
        "GARM.md",
    ),
    "fusion": Help(
        "impressions, the SFT policy's responses, the reward model",
        "weights.json",
        f"openrlhf-qs fusion --reference {RUN}/sft --reward_model {RUN}/garm --impressions {RUN}/data/fusion.jsonl "
        f"--responses {RUN}/fusion/responses.jsonl --out weights.json",
        "REWARDS.md",
    ),
    "rft": Help(
        "prompts, the SFT policy, the reward model",
        "the policy's own samples with their scores, as candidates for sft",
        f"openrlhf-qs rft --policy {RUN}/sft --reward_model {RUN}/garm --prompts {RUN}/data/prompts.jsonl "
        "--out candidates.jsonl",
        "EVIDENCE.md",
    ),
    "grpo": Help(
        "prompts, a policy, the reward model, the weights",
        "the final policy, statistics.jsonl, alarms.jsonl, samples.jsonl",
        f"openrlhf-qs grpo --data.prompt_dataset {RUN}/data/prompts.jsonl --data.input_key prompt "
        f"--data.label_key label --data.apply_chat_template --actor.model_name_or_path {RUN}/sft "
        f"--reward.model_name_or_path {RUN}/garm --qs.weights {RUN}/fusion/weights.json "
        f"--algo.advantage.estimator group_norm --ckpt.output_dir {RUN}/grpo",
        "REWARDS.md",
    ),
    "generate": Help(
        "conversations, and a policy",
        "a response to each, with its log-perplexity under a reference if one is given",
        f"openrlhf-qs generate --policy {RUN}/grpo --prompts {RUN}/data/heldout.jsonl --out responses.jsonl "
        "--n_max 100 --temperature 0.5",
        "EVALUATION.md",
    ),
    "evaluate": Help(
        "held-out impressions, and the policies' responses",
        "report/metrics.json and report/report.html",
        f"openrlhf-qs evaluate --run {RUN} --judge built_in_world",
        "EVALUATION.md",
    ),
    "log check": Help(
        "a click log",
        "the terminal, JSON or a page",
        "openrlhf-qs log check clicks.jsonl --html check.html",
        "CLICK_LOG.md",
    ),
    "lengths": Help(
        "the files of the stage data, and a policy",
        "the same files, cut to what the policy can read; lengths.json, max_new_tokens",
        f"openrlhf-qs lengths --data {RUN}/data --policy Qwen/Qwen3-0.6B --max_len 2048",
        "FILES.md",
    ),
    "log convert": Help(
        "logs in other formats: CSV, ShareGPT, OpenAI messages",
        "a click log",
        "openrlhf-qs log convert logged.csv --out clicks.jsonl",
        "CLICK_LOG.md",
    ),
    "assemble": Help(
        "candidates",
        "the SFT targets that sft would make of them",
        f"openrlhf-qs assemble {RUN}/data/sft.jsonl --out assembled.jsonl",
        "ASSEMBLY.md",
    ),
    "garm eval": Help(
        "preferences, and a reward model",
        "accuracy, calibration, position effects; with --plots also as plots",
        f"openrlhf-qs garm eval {_PAIRS} --model {RUN}/garm --reference {RUN}/sft",
        "GARM.md",
    ),
    "garm wide": Help(
        "preferences with clicks, and a separate set of them",
        "word crosses and trees on overlaps, into the reward model's folder, if they help",
        f"openrlhf-qs garm wide {RUN}/data/preferences.jsonl --kept_apart {RUN}/data/preferences.calibration.jsonl "
        f"--model {RUN}/garm",
        "GARM.md",
    ),
    "garm spread": Help(
        "preferences with user_id",
        "the reward model's standard deviation, into its folder",
        f"openrlhf-qs garm spread {RUN}/data/preferences.jsonl --model {RUN}/garm",
        "GARM.md",
    ),
    "garm calibrate": Help(
        "preferences that the model was not trained on",
        "one temperature, into its folder",
        f"openrlhf-qs garm calibrate {RUN}/data/preferences.calibration.jsonl --model {RUN}/garm",
        "GARM.md",
    ),
    "garm score": Help(
        "rows with a conversation and suggestions",
        "the same rows with mean and std",
        f"openrlhf-qs garm score rows.jsonl --model {RUN}/garm --out scored.jsonl",
        "GARM.md",
    ),
    "garm merge": Help(
        "a reward model with LoRA weights",
        "a full model without LoRA",
        f"openrlhf-qs garm merge {RUN}/garm --out merged",
        "GARM.md",
    ),
    "reward score": Help(
        "rows with a conversation and a response",
        "each part of the reward, and the total",
        f"openrlhf-qs reward score {RUN}/report/responses.grpo.jsonl --reward rules,relevance,diversity",
        "REWARDS.md",
    ),
    "plugins": Help("the installed plugins", _TERMINAL, "openrlhf-qs plugins ood", "PLUGINS.md"),
    "doctor": Help(
        "this environment",
        "the terminal; status 1 if something that every run needs is missing",
        "openrlhf-qs doctor",
        "HOST.md",
    ),
    "ab": Help(
        "a click log in which several policies showed their suggestions",
        _TERMINAL,
        "openrlhf-qs ab clicks.jsonl --control old --json",
        "EVALUATION.md",
    ),
    "seeds": Help(
        "report/metrics.json of several runs",
        "tables in Markdown: arms, lifts, the reward model",
        "openrlhf-qs seeds runs/seed0 runs/seed1 --out table.md",
        "EVALUATION.md",
    ),
    "ablation": Help(
        "the runs of an ablation recipe",
        "ablation.json, ablation.md, plots",
        "openrlhf-qs ablation --run runs/rewards",
        "EVIDENCE.md",
    ),
    "follow": Help(
        "the output of a training, piped in",
        "one line of progress, and the full output to a file",
        "openrlhf-qs follow --stage sft --log log.txt",
        "HOST.md",
    ),
    "expect": Help(
        "a run that has its data, and a model",
        "one line: how long a stage will take",
        f"openrlhf-qs expect --run {RUN} --stage sft --policy smollm2 --taught 600",
        "SMALL_MODELS.md",
    ),
    "serve": Help(
        "chats over HTTP",
        "suggestions, and a log of what was shown and clicked",
        f"openrlhf-qs serve --policy {RUN}/grpo --reward_model {RUN}/garm --log {RUN}/live",
        "SERVING.md",
    ),
    "suggest": Help(
        "a conversation, one argument per turn",
        _TERMINAL,
        f"openrlhf-qs suggest --policy {RUN}/grpo --reward_model {RUN}/garm 'How do I bake bread?' 'Mix, wait, bake.'",
        "SERVING.md",
    ),
    "log export": Help(
        "the log of a server", "a click log", f"openrlhf-qs log export {RUN}/live --out clicks.jsonl", "SERVING.md"
    ),
    "log forget": Help(
        "the log of a server",
        "the same log without one user",
        f"openrlhf-qs log forget user-17 --log {RUN}/live",
        "SERVING.md",
    ),
    "world": Help(
        "nothing",
        "a click log of simulated users",
        "openrlhf-qs world --out clicks.jsonl --n_impressions 2000",
        "WORLD.md",
    ),
    "cold-start": Help(
        "conversations",
        "a click log to be served, without clicks yet",
        "openrlhf-qs cold-start chats.jsonl --model Qwen/Qwen3-4B --out to_show.jsonl",
        "DISTILLATION.md",
    ),
    "small-policy": Help(
        "a click log",
        "a tokenizer and a policy with random weights",
        "openrlhf-qs small-policy --log clicks.jsonl --out policy",
        "SMALL_MODELS.md",
    ),
    "model": Help(
        "smollm2, or a GGUF file", "a Hugging Face folder", "openrlhf-qs model smollm2 --out policy", "SMALL_MODELS.md"
    ),
    "upworthy": Help(
        "packages of the Upworthy archive (CSV)",
        "preferences",
        "openrlhf-qs upworthy exploratory.csv --out preferences.jsonl",
        "GARM.md",
    ),
    "mimics": Help(
        "the folder of MIMICS-Duo", "preferences", "openrlhf-qs mimics mimics --out preferences.jsonl", "GARM.md"
    ),
    "benchmark assembly": Help(
        "nothing", _TERMINAL, "openrlhf-qs benchmark assembly --n_contexts 1000", "ASSEMBLY.md"
    ),
    "benchmark log": Help("nothing", _TERMINAL, "openrlhf-qs benchmark log --n_max 100000", "CLICK_LOG.md"),
    "benchmark garm-training": Help(
        "nothing", _TERMINAL, "openrlhf-qs benchmark garm-training --n_tokens 128", "GARM.md"
    ),
    "benchmark propensities": Help(
        "nothing", _TERMINAL, "openrlhf-qs benchmark propensities --n_logs 10", "POSITION_BIAS.md"
    ),
    "benchmark cold-start": Help(
        "nothing",
        "the terminal, and --out",
        "openrlhf-qs benchmark cold-start --model smollm2 --n_conversations 30",
        "SMALL_MODELS.md",
    ),
    "benchmark frozen-backbone": Help(
        "preferences to train on, and held-out ones",
        _TERMINAL,
        f"openrlhf-qs benchmark frozen-backbone {RUN}/data/preferences.jsonl --model smollm2 --n_train 500 {_PAIRS}",
        "SMALL_MODELS.md",
    ),
    "benchmark scoring": Help("nothing", _TERMINAL, "openrlhf-qs benchmark scoring --n_tokens 128", "GARM.md"),
    "benchmark grpo-overhead": Help(
        "nothing", _TERMINAL, "openrlhf-qs benchmark grpo-overhead --n_steps 10", "MONITORS.md"
    ),
    "benchmark ranker": Help("nothing", _TERMINAL, "openrlhf-qs benchmark ranker --n 30000,100000", "RGALIGN.md"),
    "benchmark reward-models": Help("nothing", _TERMINAL, "openrlhf-qs benchmark reward-models --seeds 3", "GARM.md"),
    "rank": Help(
        "a zero-query log, and its intents",
        "a ranker of intents",
        "openrlhf-qs rank --log zq/train.jsonl --intents zq/intents.jsonl --out zq/ranker",
        "RGALIGN.md",
    ),
    "rank data": Help(
        "a zero-query log, and its intents",
        "training data for ranker and reasoner, and held-out data",
        "openrlhf-qs rank data --log zq/clicks.jsonl --intents zq/intents.jsonl --out zq/data",
        "RGALIGN.md",
    ),
    "rank proposals": Help(
        "proposals, and how many people would accept each",
        "a ranker of proposals",
        "openrlhf-qs rank proposals proposals.jsonl --out ranker",
        "RGALIGN.md",
    ),
    "rank score": Help(
        "rows with features, or with events and a proposal",
        "the same rows with scores",
        "openrlhf-qs rank score rows.jsonl --model zq/ranker --out scored.jsonl",
        "RGALIGN.md",
    ),
    "rank best": Help(
        "queries that a reasoner sampled, and a ranker",
        "the queries that help the ranker most, for sft",
        "openrlhf-qs rank best --samples samples.jsonl --prompts zq/data/prompts.jsonl --ranker zq/ranker/reward "
        "--out best.jsonl",
        "RGALIGN.md",
    ),
    "dpo": Help(
        "prompts with a chosen and a rejected answer, as rank best --pairs writes them, and a policy",
        "a policy aligned to the chosen answers",
        "openrlhf-qs dpo --data.dataset pairs.jsonl --data.prompt_key prompt --data.apply_chat_template "
        "--model.model_name_or_path reasoner --ref.model_name_or_path reasoner --ckpt.output_dir aligned",
        "RGALIGN.md",
    ),
    "rank eval": Help(
        "held-out visits, and rankers",
        "a table, and JSON",
        "openrlhf-qs rank eval --log zq/data/heldout.jsonl --intents zq/intents.jsonl --arm two_towers=zq/ranker",
        "RGALIGN.md",
    ),
    "world zero-query": Help(
        "nothing", "a zero-query log and its intents", "openrlhf-qs world zero-query --out zq", "RGALIGN.md"
    ),
    "benchmark live-log": Help("nothing", _TERMINAL, "openrlhf-qs benchmark live-log --seconds 5", "SERVING.md"),
    "benchmark serving": Help(
        "a policy, and conversations",
        _TERMINAL,
        f"openrlhf-qs benchmark serving --policy {RUN}/grpo --conversations {RUN}/data/heldout.jsonl",
        "SERVING.md",
    ),
    "benchmark silence": Help(
        "suggestions with their scores", _TERMINAL, "openrlhf-qs benchmark silence scored.jsonl", "SERVING.md"
    ),
}
