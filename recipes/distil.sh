#!/usr/bin/env bash
# Distil.  Reads $RUN/data, writes $RUN/distil: a teacher trained on single clicked suggestions (teacher/), and its
# suggestions for every conversation (candidates.jsonl), which the stage sft uses with DISTIL=1.
#   TEACHER=Qwen/Qwen3-8B POLICY=Qwen/Qwen3-4B GPUS=8 bash recipes/distil.sh --temperature 0.8    # any flag of `openrlhf-qs distil` may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${TEACHER:=}"                # base model of the teacher, in the form of POLICY; empty: the same as the policy's
: "${N_CANDIDATES:=16}"         # samples per conversation
: "${TEACHER_SAVE_STEPS:=100}"
if [ "$FORM" = gpu ]; then
   : "${TEACHER_BATCH:=256}" "${TEACHER_MICRO_BATCH:=4}" "${TEACHER_EPOCHS:=2}" "${TEACHER_LR:=1e-5}"
elif [ -n "$TEACHER$POLICY" ]; then
   : "${TEACHER_BATCH:=16}" "${TEACHER_EPOCHS:=1}" "${TEACHER_LR:=1e-4}"   # a pretrained model such as smollm2
else
   : "${TEACHER_BATCH:=32}" "${TEACHER_LR:=2e-3}"   # an untrained model needs a high learning rate and enough steps
   : "${TEACHER_EPOCHS:=$(epochs_for 4 "$TEACHER_BATCH" "$RUN/data/sft.jsonl")}"
fi

begin distil "$@"
if [ ! -f "$RUN/distil/teacher/.done" ] || [ "$DRY_RUN" = 1 ]; then
   sft_flags TEACHER "$RUN/data/sft.jsonl" "$RUN/distil/teacher" "${TEACHER:-${POLICY:-$RUN/data/policy}}"
   expect "${TEACHER:-${POLICY:-$RUN/data/policy}}" --taught "$TEACHER_EPOCHS" "$RUN/data/sft.jsonl"
   launch sft "${SFT_FLAGS[@]}" --qs.sft_dataset single
   [ "$DRY_RUN" = 1 ] || touch "$RUN/distil/teacher/.done"
fi
expect "$RUN/distil/teacher" --written "$N_CANDIDATES" "$RUN/data/prompts.jsonl"
run openrlhf-qs distil --teacher "$RUN/distil/teacher" --prompts "$RUN/data/prompts.jsonl" \
   --out "$RUN/distil/candidates.jsonl" --n_samples "$N_CANDIDATES" --seed "$SEED" "$@"
finish
