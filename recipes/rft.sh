#!/usr/bin/env bash
# RFT, rejection-sampling fine-tuning.  Reads the prompts, the SFT policy and the GaRM, writes $RUN/rft: the SFT policy
# fine-tuned on the best distinct suggestions in its own samples. GRPO starts from it; with RFT=0 this stage is skipped and GRPO
# starts from SFT.
#   POLICY=Qwen/Qwen3-4B GPUS=8 bash recipes/rft.sh --adam.eps 1e-7      # any flag of OpenRLHF's train_sft may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${RFT_SAMPLES:=8}"           # responses of the SFT policy per conversation
: "${RFT_TEMPERATURE:=0.7}"     # at which they are sampled
: "${RFT_SAVE_STEPS:=100}"      # steps between checkpoints
if [ "$FORM" = gpu ]; then
   : "${N_RFT:=20000}" "${RFT_BATCH:=256}" "${RFT_MICRO_BATCH:=4}" "${RFT_EPOCHS:=2}" "${RFT_LR:=5e-6}"
elif [ -n "$POLICY" ]; then
   : "${N_RFT:=200}" "${RFT_BATCH:=16}" "${RFT_EPOCHS:=1}" "${RFT_LR:=5e-5}"   # for a model such as smollm2
else
   : "${N_RFT:=5000}" "${RFT_BATCH:=32}" "${RFT_EPOCHS:=4}" "${RFT_LR:=1.5e-3}"   # N_RFT: conversations, the last of the prompts; GRPO begins with the first
fi

begin rft "$@"
response_tokens
[ -z "$EMBEDDER" ] || OPTION="$OPTION diverse.embedder=$EMBEDDER"
expect "$RUN/sft" --written "$RFT_SAMPLES" "$RUN/data/prompts.jsonl" "$N_RFT" --read "$RFT_SAMPLES" "$RUN/data/prompts.jsonl" "$N_RFT" \
   --taught "$RFT_EPOCHS" "$RUN/data/prompts.jsonl" "$N_RFT"
if [ ! -f "$RUN/rft/candidates.jsonl" ] || [ "$DRY_RUN" = 1 ]; then
   run openrlhf-qs rft --policy "$RUN/sft" --reward_model "$RUN/garm" --prompts "$RUN/data/prompts.jsonl" \
      --out "$RUN/rft/candidates.jsonl" --n_max "$N_RFT" --n_samples "$RFT_SAMPLES" --temperature "$RFT_TEMPERATURE" \
      --max_new_tokens "$RESPONSE_TOKENS" --seed "$SEED"
fi
sft_flags RFT "$RUN/rft/candidates.jsonl" "$RUN/rft" "$RUN/sft"
launch sft "${SFT_FLAGS[@]}" --qs.sft_dataset diverse "${TASK[@]/#--/--qs.}" "$@"
finish
