#!/usr/bin/env bash
# Evaluate.  Reads held-out impressions and the policies, writes $RUN/report: metrics.json and report.html.
#   JUDGE=my_users.py bash recipes/evaluate.sh                           # any flag of `openrlhf-qs evaluate` may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${N_HELDOUT:=2000}"        # held-out conversations that each policy answers

[ -n "$JUDGE" ] || { [ -n "$CLICK_LOG" ] && JUDGE=none || JUDGE=built_in_world; }   # the run knows whose users clicked
begin evaluate "$@"
plugin_flags --
for policy in sft grpo; do
   [ -f "$RUN/report/responses.$policy.jsonl" ] || followed openrlhf-qs generate --policy "$RUN/$policy" \
      --reference "$RUN/sft" --prompts "$RUN/data/heldout.jsonl" --out "$RUN/report/responses.$policy.jsonl" \
      --max_new_tokens "$MAX_NEW_TOKENS" --n_max "$N_HELDOUT" --seed "$SEED"
done
run openrlhf-qs evaluate --run "$RUN" --judge "$JUDGE" --embedder "$EMBEDDER" --seed "$SEED" \
   "${PLUGIN_FLAGS[@]}" "$@"
finish
