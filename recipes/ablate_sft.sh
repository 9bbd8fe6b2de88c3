#!/usr/bin/env bash
# Measures what the teacher and the assembly's diversity contribute: the same users compare SFT policies. Each seed has one
# click log and one teacher. Writes $RUN/seedN/ARM/sft, and $RUN/seedN/report with the A/B test.
#   bash recipes/ablate_sft.sh                                          # four arms, three seeds
#   SEEDS=0 ARMS="raw distilled" SFT_EPOCHS=2 bash recipes/ablate_sft.sh    # a short version
#   DRY_RUN=1 bash recipes/ablate_sft.sh                                # prints what would be run
# A second call continues where the first one stopped. For all other variables see recipes/common.sh and each stage's recipe.
set -euo pipefail
: "${RUN:=runs/ablation_sft}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${SEEDS:=0 1 2}"           # separated by spaces; each has its own click log and teacher
: "${N_HELDOUT:=1000}"        # held-out conversations that each policy answers
: "${TEMPERATURES:=1 .7 .5 .3}"   # at which it answers them; arms are compared at their best temperature
: "${N_SELECTION:=250}"       # conversations of the fusion split on which an arm's temperature is chosen
: "${GOLD:=${JUDGE:-built_in_world}}"   # whose clicks are gold: a registered judge
#   raw: the three with the most clicks · clicks: three distinct ones of those shown · distilled: the teacher's three most
#   likely · distilled_diverse: three distinct ones of the teacher's
: "${ARMS:=raw clicks distilled distilled_diverse}"
ALIKE="diverse.max_similarity=1 diverse.near_duplicate=1"   # only exact duplicates are dropped

# arm NAME: its variables, in the array ARM.
arm() {
   case $1 in
      raw) ARM=(DISTIL=0 SFT_DATASET=raw EMBEDDER=) ;;
      clicks) ARM=(DISTIL=0 SFT_DATASET=diverse) ;;
      distilled) ARM=(DISTIL=1 SFT_DATASET=diverse "OPTION=$OPTION $ALIKE") ;;
      distilled_diverse) ARM=(DISTIL=1 SFT_DATASET=diverse) ;;
      *) die "unknown arm $1; known: raw clicks distilled distilled_diverse" ;;
   esac
}

set_up
[ "$AGAIN" != 1 ] || export AGAIN=differing
for name in $ARMS; do arm "$name"; done   # an unknown one is an error before the work
for seed in $SEEDS; do
   BASE=$RUN/seed$seed
   attached env RUN="$BASE" SEED="$seed" bash "$RECIPES/data.sh"
   SHARED=data
   case $ARMS in *distilled*) attached env RUN="$BASE" SEED="$seed" bash "$RECIPES/distil.sh"; SHARED="data distil" ;; esac
   for name in $ARMS; do
      echo "# seed $seed, arm $name"
      arm "$name"
      [ "$DRY_RUN" = 1 ] || record share --run "$BASE/$name" --from "$BASE" $SHARED
      attached env RUN="$BASE/$name" SEED="$seed" "${ARM[@]}" bash "$RECIPES/sft.sh"
      RUN=$BASE response_tokens
      STAGE=seed$seed/$name STAGE_DIR=$BASE/$name
      [ -f "$BASE/report/responses.$name.jsonl" ] || followed openrlhf-qs generate --policy "$BASE/$name/sft" \
         --reference "$BASE/$name/sft" --prompts "$BASE/data/fusion.jsonl" "$BASE/data/heldout.jsonl" \
         --n_max "$N_SELECTION" "$N_HELDOUT" --temperature $TEMPERATURES --max_new_tokens "$RESPONSE_TOKENS" --seed "$seed" \
         --out "$BASE/report/selection.$name.jsonl" "$BASE/report/responses.$name.jsonl"
   done
   plugin_flags --
   run openrlhf-qs evaluate --run "$BASE" --judge "$GOLD" --seed "$seed" --embedder "${EMBEDDER:-minilm}" "${PLUGIN_FLAGS[@]}"
done
run openrlhf-qs ablation --run "$RUN"
