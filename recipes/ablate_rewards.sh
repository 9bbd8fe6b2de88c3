#!/usr/bin/env bash
# Measures what each part of the reward contributes when the policy is pushed hard: with a tenth of the KL penalty of
# recipes/grpo.sh, and at a high learning rate for its batches, a reward's errors show up within a few steps. Each seed has one
# full run, the arm `all`.
# Every other arm shares its data, SFT policy and GaRM, and runs fusion, grpo and evaluate with a different reward. Writes
# $RUN/seedN/ARM, then a table and plots to $RUN.
#   bash recipes/ablate_rewards.sh                                    # every arm, three seeds
#   SEEDS=0 ARMS="mean no_ood" bash recipes/ablate_rewards.sh         # reward hacking and its cure
#   DRY_RUN=1 bash recipes/ablate_rewards.sh                                     # prints what would be run
# A second call continues where the first one stopped. For all other variables see recipes/common.sh and each stage's recipe.
set -euo pipefail
: "${RUN:=runs/ablation}"
: "${RFT:=0}"                 # 0: every GRPO starts from the same SFT policy
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${SEEDS:=0 1 2}"           # separated by spaces; each has its own click log and models
: "${N_HELDOUT:=800}"         # held-out conversations that each policy answers
: "${KL_COEF:=0.001}"          # a tenth of that in recipes/grpo.sh
if [ "$FORM" = gpu ]; then
   : "${STEPS:=500}" "${GRPO_LR:=2e-6}"
else
   : "${STEPS:=80}" "${PROMPTS:=16}" "${TRAIN_BATCH:=64}" "${GRPO_LR:=3e-4}"
fi
export N_HELDOUT KL_COEF STEPS PROMPTS TRAIN_BATCH GRPO_LR RFT
[ "$AGAIN" != 1 ] || export AGAIN=differing
: "${GOLD:=${JUDGE:-built_in_world}}"   # whose clicks are gold: a registered judge

PARTS=${REWARD//,/ }
MINUS=$(printf 'no_%s ' $PARTS)
#   mean, ppl, rules: one more part each; the next ones are no_relevance and all · sigma: mean and GaRM's negative
#   deviation · no_X: all except X ·
#   only_X: X alone, `mean` is only_garm · bradley_terry: a scalar reward model ·
#   equal, pareto: other weights · constraint: the weight of `ood` is adapted so that log-perplexity stays near that of SFT's samples
: "${ARMS:=mean sigma ppl rules $MINUS only_ood bradley_terry equal pareto constraint}"

# arm NAME: its variables, in the array ARM.
arm() {
   ARM=()
   case $1 in
      mean) ARM=(REWARD=garm) ;;
      sigma) ARM=(REWARD=garm,garm_sigma) ;;
      ppl) ARM=(REWARD=garm,ood) ;;
      rules) ARM=(REWARD=garm,ood,rules) ;;
      no_*)
         local part kept=()
         for part in $PARTS; do [ "$part" = "${1#no_}" ] || kept+=("$part"); done
         [ ${#kept[@]} -lt "$(wc -w <<< "$PARTS")" ] || die "arm $1: ${1#no_} is not in REWARD=$REWARD"
         ARM=("REWARD=$(IFS=,; echo "${kept[*]}")")
         ;;
      only_*)
         [[ ",$REWARD," = *",${1#only_},"* ]] || die "arm $1: ${1#only_} is not in REWARD=$REWARD"
         ARM=("REWARD=${1#only_}")
         ;;
      bradley_terry) ARM=(REWARD_MODEL=bradley_terry "REWARD=$(sed 's/garm_sigma,//; s/,garm_sigma//' <<< "$REWARD")") ;;
      equal | pareto) ARM=("FUSION=$1") ;;
      constraint) ARM=("OPTION=$OPTION ood.form=constraint ood.slack=0.1") ;;
      *) die "unknown arm $1; known: mean sigma ppl rules $MINUS only_X bradley_terry equal pareto constraint" ;;
   esac
}

# stage NAME FLAGS...: a recipe, in the folder of the arm.
stage() { attached env RUN="$FOLDER" SEED="$seed" "${ARM[@]}" bash "$RECIPES/$1.sh" "${@:2}"; }

# share WORD...: stages, or files of one, of the arm `all`.
share() { [ "$DRY_RUN" = 1 ] || record share --run "$FOLDER" --from "$BASE" "$@"; }

# train_and_evaluate: what differs between arms.
train_and_evaluate() {
   stage fusion
   stage grpo --qs.monitor_judge "$GOLD" --actor.lr_scheduler cosine_with_min_lr   # with which docs/EVIDENCE.md was measured
   stage evaluate
}

set_up
[ "$DISTIL" = 1 ] && DISTILLED=distil || DISTILLED=
for name in $ARMS; do arm "$name"; done   # an unknown one is an error before the work
for seed in $SEEDS; do
   BASE=$RUN/seed$seed/all FOLDER=$RUN/seed$seed/all ARM=()
   for name in data $DISTILLED sft garm; do stage "$name"; done
   train_and_evaluate
   for name in $ARMS; do
      echo "# seed $seed, arm $name"
      FOLDER=$RUN/seed$seed/$name
      arm "$name"
      share data sft
      if [ "$name" = bradley_terry ]; then stage garm; else share garm; fi
      share fusion/responses.jsonl report/selection.sft.jsonl report/responses.sft.jsonl   # of the SFT policy, whatever the reward
      train_and_evaluate
   done
done
run openrlhf-qs ablation --run "$RUN" --gold "$GOLD"
