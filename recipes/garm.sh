#!/usr/bin/env bash
# GaRM.  Reads $RUN/data/preferences.jsonl, writes $RUN/garm: a mean and a standard deviation for a suggestion.
#   GARM_BASE=Qwen/Qwen3-4B GPUS=8 bash recipes/garm.sh --adam.lr 2e-6    # any flag of OpenRLHF's train_rm may follow
#   REWARD_MODEL=bradley_terry bash recipes/garm.sh                       # the usual scalar head, to compare
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${CALIBRATE:=soft}"        # the temperature is fitted on pairs kept apart: to their labels (soft), or not at all (no)
: "${MAX_LEN:=512}"           # tokens of a conversation with one suggestion; of longer ones the beginning is cut

set_up
skip_if_done garm
DATA=(
   --data.dataset "$RUN/data/preferences.jsonl"
   --data.apply_chat_template
   --data.max_len "$MAX_LEN"
   --qs.reward_model "$REWARD_MODEL"
)
CKPT=(
   --ckpt.output_dir "$RUN/garm"
   --ckpt.path "$RUN/garm/ckpt"
   --ckpt.save_steps "${SAVE_STEPS:-100}"   # what an interruption costs at most
   --ckpt.load_enable                       # goes on where a checkpoint is
   --ckpt.max_num 1
   --logger.tensorboard_dir "$RUN/garm/tensorboard"
   --train.seed "$SEED"
)
if [ "$FORM" = gpu ]; then
   SIZE=(
      --model.model_name_or_path "${GARM_BASE:-$RUN/sft}"
      --train.batch_size "${BATCH:-256}" --train.micro_batch_size "${MICRO_BATCH:-8}"
      --train.max_epochs "${EPOCHS:-1}" --adam.lr "${LR:-5e-6}"
      --ds.zero_stage 3 --ds.packing_samples --model.gradient_checkpointing_enable
   )
else
   SIZE=(
      --model.model_name_or_path "${GARM_BASE:-$RUN/sft}"
      --train.batch_size "${BATCH:-32}" --train.micro_batch_size "${BATCH:-32}"
      --train.max_epochs "${EPOCHS:-1}" --adam.lr "${LR:-1e-3}"
      --ds.zero_stage 0 --ds.attn_implementation sdpa
   )
fi
launch garm "${DATA[@]}" "${CKPT[@]}" "${SIZE[@]}" "$@"
[ "$CALIBRATE" = no ] ||
   run openrlhf-qs garm calibrate "$RUN/data/preferences.calibration.jsonl" --model "$RUN/garm" --on "$CALIBRATE"
finish
