#!/usr/bin/env bash
# SFT.  Reads $RUN/data/sft.jsonl, writes $RUN/sft: the policy that GRPO starts from, and its reference.
#   POLICY=Qwen/Qwen3-4B GPUS=8 bash recipes/sft.sh --adam.lr 5e-6      # any flag of OpenRLHF's train_sft may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${MAX_LEN:=512}"           # tokens of a conversation with its response

set_up
skip_if_done sft
DATA=(
   --data.dataset "$RUN/data/sft.jsonl"
   --data.input_key prompt --data.output_key response   # as the assembly names them
   --data.apply_chat_template
   --data.max_len "$MAX_LEN"
   --qs.sft_dataset "$SFT_DATASET"
)
CKPT=(
   --ckpt.output_dir "$RUN/sft"
   --ckpt.path "$RUN/sft/ckpt"
   --ckpt.save_steps "${SAVE_STEPS:-100}"   # what an interruption costs at most
   --ckpt.load_enable                       # goes on where a checkpoint is
   --ckpt.max_num 1
   --logger.tensorboard_dir "$RUN/sft/tensorboard"
   --train.seed "$SEED"
)
if [ "$FORM" = gpu ]; then
   SIZE=(
      --model.model_name_or_path "${POLICY:-$RUN/data/policy}"
      --train.batch_size "${BATCH:-256}" --train.micro_batch_size "${MICRO_BATCH:-4}"
      --train.max_epochs "${EPOCHS:-2}" --adam.lr "${LR:-1e-5}"
      --ds.zero_stage 3 --ds.packing_samples --model.gradient_checkpointing_enable
   )
else
   SIZE=(
      --model.model_name_or_path "${POLICY:-$RUN/data/policy}"
      --train.batch_size "${BATCH:-32}" --train.micro_batch_size "${BATCH:-32}"
      --train.max_epochs "${EPOCHS:-6}" --adam.lr "${LR:-2e-3}"   # a policy without any training wants a high rate
      --ds.zero_stage 0 --ds.attn_implementation sdpa
   )
fi
launch sft "${DATA[@]}" "${CKPT[@]}" "${SIZE[@]}" "$@"
finish
