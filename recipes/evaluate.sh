#!/usr/bin/env bash
# Evaluate.  Reads held-out impressions and the policies. Writes metrics.json and report.html to $RUN/report, and each policy's
# serving temperature to its generation_config.json.
#   JUDGE=my_users.py bash recipes/evaluate.sh                           # any flag of `openrlhf-qs evaluate` may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# N_HELDOUT: held-out conversations that each policy answers
# TEMPERATURES: at which it answers them, separated by spaces; policies are compared at their best temperature
# N_SELECTION: conversations of the fusion split on which the serving temperature is chosen
# BEST_OF: samples of the first and the last policy at the second temperature; the one with the largest reward is an arm; 1: no such arm
if [ "$FORM" = cpu ] && [ -n "$POLICY" ]; then
   : "${N_HELDOUT:=200}" "${TEMPERATURES:=1 .7 .4}" "${N_SELECTION:=50}" "${BEST_OF:=4}"   # for a model such as smollm2
else
   : "${N_HELDOUT:=1000}" "${TEMPERATURES:=1 .7 .5 .3}" "${N_SELECTION:=250}" "${BEST_OF:=8}"
fi

[ -n "$JUDGE" ] || { [ -n "$CLICK_LOG" ] && JUDGE=none || JUDGE=built_in_world; }   # the run knows whose users clicked
begin evaluate "$@"
check_plugins
response_tokens
plugin_flags --
[ "$RFT" = 1 ] && TUNED=rft || TUNED=
read -a AT <<< "$TEMPERATURES"
N_ALL=$((${#AT[@]} * (2 + RFT) + 2 * (BEST_OF - 1)))   # responses to a conversation, of all policies
expect "$RUN/sft" --written "$N_ALL" "$RUN/data/fusion.jsonl" "$N_SELECTION" --written "$N_ALL" "$RUN/data/heldout.jsonl" "$N_HELDOUT" \
   --read "$N_ALL" "$RUN/data/fusion.jsonl" "$N_SELECTION" --read "$N_ALL" "$RUN/data/heldout.jsonl" "$N_HELDOUT"
for policy in sft $TUNED grpo; do
   N_SAMPLES_AT=()
   for temperature in $TEMPERATURES; do N_SAMPLES_AT+=(1); done
   [ "$policy" = rft ] || N_SAMPLES_AT[${#N_SAMPLES_AT[@]} > 1]=$BEST_OF   # at 1 the best of several is worse (docs/EVIDENCE.md)
   [ -f "$RUN/report/responses.$policy.jsonl" ] || followed openrlhf-qs generate --policy "$RUN/$policy" \
      --reference "$RUN/sft" --reference_temperature "$GRPO_TEMPERATURE" \
      --prompts "$RUN/data/fusion.jsonl" "$RUN/data/heldout.jsonl" --n_max "$N_SELECTION" "$N_HELDOUT" \
      --out "$RUN/report/selection.$policy.jsonl" "$RUN/report/responses.$policy.jsonl" \
      --temperature $TEMPERATURES --n_samples "${N_SAMPLES_AT[@]}" --max_new_tokens "$RESPONSE_TOKENS" --seed "$SEED"
done
run openrlhf-qs evaluate --run "$RUN" --judge "$JUDGE" --embedder "$EMBEDDER" --seed "$SEED" \
   "${PLUGIN_FLAGS[@]}" "$@"
finish
