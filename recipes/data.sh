#!/usr/bin/env bash
# Data.  Reads $CLICK_LOG, writes $RUN/data: SFT candidates, preference pairs, prompts, held-out impressions.
#   CLICK_LOG=clicks.jsonl bash recipes/data.sh --position_policy skip_above     # any flag of `openrlhf-qs data` may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${REFUSED_ROLES:=fold}"    # if the policy's chat template rejects the roles: fold (system into user, merge), drop the rows, or stop
if [ "$FORM" = cpu ] && [ -n "$POLICY" ]; then
   : "${N_IMPRESSIONS:=4000}" "${N_CONTEXTS:=1500}"   # sized for two hours with a model like smollm2, all stages together
else
   : "${N_IMPRESSIONS:=32000}" "${N_CONTEXTS:=10000}"   # impressions and conversations of the simulated log, used if $CLICK_LOG is empty
fi

begin data "$@"
check_plugins
if [ -z "$CLICK_LOG" ]; then
   LOG=("$RUN/data/clicks.jsonl")
   [ -f "${LOG[0]}" ] || run openrlhf-qs world --out "${LOG[0]}" --n_impressions "$N_IMPRESSIONS" --n_contexts "$N_CONTEXTS" \
      --n_suggestions "$N_SUGGESTIONS" --seed "$SEED"
elif [ -e "$CLICK_LOG" ]; then
   LOG=("$CLICK_LOG")
else
   read -a LOG <<< "$CLICK_LOG"   # files or globs, separated by spaces; "\ " is a blank in a name
fi
run openrlhf-qs data --log "${LOG[@]}" --out "$RUN/data" --seed "$SEED" "${TASK[@]}" "$@"
if [ -z "$POLICY" ]; then
   run openrlhf-qs small-policy --log "${LOG[@]}" --out "$RUN/data/policy" --seed "$SEED" "${TASK[@]}"
fi
run openrlhf-qs lengths --data "$RUN/data" --policy "${POLICY:-$RUN/data/policy}" --max_len "$MAX_LEN" \
   --refused_roles "$REFUSED_ROLES" "${TASK[@]}"
finish
