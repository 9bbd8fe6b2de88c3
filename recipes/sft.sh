#!/usr/bin/env bash
# SFT.  Reads $RUN/data/sft.jsonl (with DISTIL=1 $RUN/distil/candidates.jsonl), writes $RUN/sft: the policy that RFT, or with
# RFT=0 GRPO, starts from, and GRPO's reference.
#   POLICY=Qwen/Qwen3-4B GPUS=8 bash recipes/sft.sh --adam.eps 1e-7      # any flag of OpenRLHF's train_sft may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${SFT_SAVE_STEPS:=100}"      # steps between checkpoints
SET=$RUN/data/sft.jsonl
[ "$DISTIL" != 1 ] || SET=$RUN/distil/candidates.jsonl
if [ "$FORM" = gpu ]; then
   : "${SFT_BATCH:=256}" "${SFT_MICRO_BATCH:=4}" "${SFT_EPOCHS:=2}" "${SFT_LR:=1e-5}"
elif [ -n "$POLICY" ]; then
   : "${SFT_BATCH:=16}" "${SFT_EPOCHS:=1}" "${SFT_LR:=1e-4}"   # a pretrained model such as smollm2
else   # an untrained policy needs a high learning rate and enough steps, however short the log (docs/EVIDENCE.md)
   : "${SFT_BATCH:=32}" "${SFT_LR:=2e-3}"
   : "${SFT_EPOCHS:=$(epochs_for 4 "$SFT_BATCH" "$SET")}"
fi

begin sft "$@"
[ -z "$EMBEDDER" ] || OPTION="$OPTION $SFT_DATASET.embedder=$EMBEDDER"
sft_flags SFT "$SET" "$RUN/sft" "${POLICY:-$RUN/data/policy}"
expect "${POLICY:-$RUN/data/policy}" --taught "$SFT_EPOCHS" "$SET"
launch sft "${SFT_FLAGS[@]}" --qs.sft_dataset "$SFT_DATASET" "${TASK[@]/#--/--qs.}" "$@"
finish
