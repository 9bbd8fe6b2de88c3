#!/usr/bin/env bash
# The whole way: click log -> SFT -> GaRM -> fusion -> GRPO -> evaluation and report.  Sets up the environment first.
#   bash recipes/grpo_garm.sh                                             # 2 CPU cores, simulated users
#   CLICK_LOG=clicks.jsonl bash recipes/grpo_garm.sh                      # your clicks
#   REWARD=garm,ood,rules bash recipes/grpo_garm.sh                       # other rewards
#   POLICY=Qwen/Qwen3-4B CLICK_LOG=clicks.jsonl GPUS=8 bash recipes/grpo_garm.sh
#   DRY_RUN=1 GPUS=8 bash recipes/grpo_garm.sh                            # what would be run
# A second call goes on where the first one ended. Every variable: recipes/common.sh and the recipe of each stage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
export RUN
set_up
[ "$DISTIL" = 1 ] && DISTILLED=distil || DISTILLED=
for stage in data $DISTILLED sft garm fusion grpo evaluate; do
   bash "$RECIPES/$stage.sh"
done
