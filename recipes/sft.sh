#!/usr/bin/env bash
# SFT.  Reads $RUN/data/sft.jsonl, or under DISTIL=1 $RUN/distil/candidates.jsonl, writes $RUN/sft: the
# policy that GRPO starts from, and its reference.
#   POLICY=Qwen/Qwen3-4B GPUS=8 bash recipes/sft.sh --adam.lr 5e-6      # any flag of OpenRLHF's train_sft may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

set_up
skip_if_done sft
SET=$RUN/data/sft.jsonl
[ "$DISTIL" = 1 ] && SET=$RUN/distil/candidates.jsonl
[ -z "$EMBEDDER" ] || OPTION="$OPTION $SFT_DATASET.embedder=$EMBEDDER"
sft_flags "$SET" "$RUN/sft" "${POLICY:-$RUN/data/policy}"
launch sft "${SFT_FLAGS[@]}" --qs.sft_dataset "$SFT_DATASET" "$@"
finish
