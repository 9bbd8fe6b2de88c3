#!/usr/bin/env bash
# The full pipeline: click log -> SFT -> GaRM -> fusion -> RFT -> GRPO -> evaluation and report.  Sets up the environment first.
#   bash recipes/grpo_garm.sh                                             # 2 CPU cores, simulated users
#   CLICK_LOG=clicks.jsonl RUN=runs/mine bash recipes/grpo_garm.sh        # your clicks
#   REWARD=garm,ood,rules RUN=runs/three bash recipes/grpo_garm.sh        # other rewards
#   POLICY=Qwen/Qwen3-4B CLICK_LOG=clicks.jsonl GPUS=8 RUN=runs/qwen bash recipes/grpo_garm.sh
#   CONFIG=mine.env bash recipes/grpo_garm.sh                             # variables from a file, one NAME=value per line
#   DRY_RUN=1 bash recipes/grpo_garm.sh                                   # prints what would be run
# A second call continues where the first one stopped, with the same settings. If it asks for different ones, it reports the
# difference and stops; AGAIN=1 then redoes the affected stage and everything that builds on it. For all variables see
# recipes/common.sh and each stage's recipe.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1:-} in
   "") ;;
   --help | -h) show_help; exit ;;
   *) die "grpo_garm.sh takes no flags (found $*), only variables, see --help; flags go to the recipe of a stage, as in bash recipes/sft.sh $*" ;;
esac
export RUN
[ "$AGAIN" != 1 ] || export AGAIN=differing
[ "$DRY_RUN" = 1 ] || lock_run
[ "$DISTIL" = 1 ] && DISTILLED=distil || DISTILLED=
[ "$RFT" = 1 ] && TUNED=rft || TUNED=
for stage in data $DISTILLED sft garm fusion $TUNED grpo evaluate; do
   attached bash "$RECIPES/$stage.sh"
done
