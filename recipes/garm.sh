#!/usr/bin/env bash
# GaRM.  Reads $RUN/data/preferences.jsonl, writes $RUN/garm: a mean and a standard deviation for a suggestion.
#   GARM_BASE=Qwen/Qwen3-4B GPUS=8 bash recipes/garm.sh --adam.eps 1e-7   # any flag of OpenRLHF's train_rm may follow
#   REWARD_MODEL=bradley_terry RUN=runs/bt bash recipes/grpo_garm.sh      # the usual scalar head on pairs, for comparison
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${CALIBRATE:=soft}"        # temperature, fitted on separate pairs: to their labels (soft), or not at all (no)
: "${OBJECTIVE:=}"            # plugin, the loss on an impression: clicks, listwise, pairs; empty: the reward model's own
: "${WIDE:=1}"               # 1: adds word crosses and conversation overlaps to the head if they help; 0: never
: "${SPREAD:=1}"             # 1: user disagreement is estimated from each user's clicks, if the log has user_id; 0: a constant
: "${GARM_SAVE_STEPS:=100}"   # steps between checkpoints
if [ "$FORM" = gpu ]; then
   : "${GARM_BATCH:=256}" "${GARM_MICRO_BATCH:=8}" "${GARM_EPOCHS:=1}" "${GARM_LR:=5e-6}" "${GARM_DROPOUT:=0}"
elif [ -n "$GARM_BASE$POLICY" ]; then
   : "${GARM_BATCH:=16}" "${GARM_EPOCHS:=1}" "${GARM_LR:=5e-5}" "${GARM_DROPOUT:=0.1}"   # a pretrained model such as smollm2
else
   : "${GARM_BATCH:=16}" "${GARM_EPOCHS:=2}" "${GARM_LR:=7e-4}" "${GARM_DROPOUT:=0.1}"
fi

begin garm "$@"
training_flags "$RUN/garm" "$GARM_SAVE_STEPS"
DATA=(
   --data.dataset "$RUN/data/preferences.jsonl"
   --data.apply_chat_template
   --data.max_len "$MAX_LEN"     # of longer ones the beginning is cut
   --qs.reward_model "$REWARD_MODEL" --qs.objective "$OBJECTIVE" --qs.dropout "$GARM_DROPOUT"
)
SIZE=(
   --model.model_name_or_path "${GARM_BASE:-$RUN/sft}"
   --train.batch_size "$GARM_BATCH" --train.micro_batch_size "${GARM_MICRO_BATCH:-$GARM_BATCH}"
   --train.max_epochs "$GARM_EPOCHS" --adam.lr "$GARM_LR"
)
if [ "$FORM" = gpu ]; then
   SIZE+=(--ds.zero_stage "$ZERO_STAGE" --ds.packing_samples --model.gradient_checkpointing_enable)
else
   SIZE+=(--ds.zero_stage 0 --ds.attn_implementation sdpa)
   SIZE+=(--adam.weight_decay 0.05)  # with the dropout, against learning the log by heart (docs/GARM.md)
   SIZE+=(--qs.exact_match_enable)   # what a small backbone cannot learn to look up
fi
expect "${GARM_BASE:-$RUN/sft}" --taught "$GARM_EPOCHS" "$RUN/data/prompts.jsonl" --read 1 "$RUN/data/prompts.jsonl"
launch garm "${DATA[@]}" "${TRAINING_FLAGS[@]}" "${SIZE[@]}" "$@"
[ "$REWARD_MODEL" != click_gaussian ] || [ "$WIDE" = 0 ] ||
   run openrlhf-qs garm wide "$RUN/data/preferences.jsonl" --kept_apart "$RUN/data/preferences.calibration.jsonl" \
      --model "$RUN/garm"
[ "$CALIBRATE" = no ] ||
   run openrlhf-qs garm calibrate "$RUN/data/preferences.calibration.jsonl" --model "$RUN/garm" --on "$CALIBRATE"
[ "$REWARD_MODEL" != click_gaussian ] || [ "$SPREAD" = 0 ] ||
   run openrlhf-qs garm spread "$RUN/data/preferences.jsonl" --model "$RUN/garm" --optional_enable
finish
