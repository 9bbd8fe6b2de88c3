#!/usr/bin/env bash
# Fusion.  Reads the SFT policy, the GaRM and impressions that neither has seen, writes $RUN/fusion/weights.json.
#   REWARD=garm,ood,rules FUSION=equal bash recipes/fusion.sh            # any flag of `openrlhf-qs fusion` may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${NORMALISATION:=sft}"     # of the reward parts, here and in grpo: sft, group, running
: "${N_SAMPLED:=4}"           # responses per conversation; 1 says nothing about the best of several

begin fusion "$@"
check_plugins
response_tokens
plugin_flags --
if [ ! -f "$RUN/fusion/responses.jsonl" ]; then
   expect "$RUN/sft" --written "$N_SAMPLED" "$RUN/data/fusion.jsonl" 250 --read "$N_SAMPLED" "$RUN/data/fusion.jsonl" 250
   followed openrlhf-qs generate --policy "$RUN/sft" --reference "$RUN/sft" --prompts "$RUN/data/fusion.jsonl" \
      --out "$RUN/fusion/responses.jsonl" --max_new_tokens "$RESPONSE_TOKENS" --n_max 250 --n_samples "$N_SAMPLED" --seed "$SEED" \
      --temperature "$GRPO_TEMPERATURE" --reference_temperature "$GRPO_TEMPERATURE"
fi
run openrlhf-qs fusion --reward "$REWARD" --fusion "$FUSION" --normalisation "$NORMALISATION" \
   --reference "$RUN/sft" --temperature "$GRPO_TEMPERATURE" --reward_model "$RUN/garm" --propensities "$RUN/data/log.json" \
   --impressions "$RUN/data/fusion.jsonl" --responses "$RUN/fusion/responses.jsonl" --out "$RUN/fusion/weights.json" \
   "${PLUGIN_FLAGS[@]}" "$@"
finish
