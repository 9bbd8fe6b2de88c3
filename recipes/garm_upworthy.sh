#!/usr/bin/env bash
# GaRM on real clicks.  Reads packages.train.csv.gz and packages.dev.csv.gz of the Upworthy archive in DATA_DIR, writes
# $RUN/data (pairs), $RUN/garm (reward model) and $RUN/eval (metrics.json, plots).
#   bash recipes/garm_upworthy.sh DATA_DIR                                  # any flag of OpenRLHF's train_rm may follow
#   SEED=1 REWARD_MODEL=bradley_terry RUN=runs/upworthy_bt bash recipes/garm_upworthy.sh DATA_DIR    # the usual head, for comparison
set -euo pipefail
[ $# -eq 0 ] || { DATA_DIR=$1; shift; }
: "${DATA_DIR:=}"             # or the recipe's first argument
[ -n "$DATA_DIR" ] || { echo "DATA_DIR is missing: give the folder with packages.train.csv.gz and packages.dev.csv.gz" >&2; exit 1; }
: "${RUN:=runs/upworthy}"
: "${REWARD_MODEL:=gaussian}" # headlines come as pairs with soft labels
: "${MAX_LEN:=64}"            # tokens of a headline
: "${GARM_BASE:=minilm}"       # from a package, so no hub access is needed
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${GARM_EPOCHS:=2}"         # passes over the tests
: "${GARM_LR:=5e-5}"
: "${GARM_BATCH:=16}"         # tests per step, with all their headlines
: "${GARM_SAVE_STEPS:=100}"   # steps between checkpoints
: "${CALIBRATE:=significant}" # temperature, fitted to: significant (outcomes with |z| > 1.96), soft (labels) or no

begin garm "$@"
run openrlhf-qs upworthy "$DATA_DIR/packages.train.csv.gz" --out "$RUN/data/preferences.jsonl" \
   --calibration "$RUN/data/preferences.calibration.jsonl"
run openrlhf-qs upworthy "$DATA_DIR/packages.dev.csv.gz" --out "$RUN/data/preferences.dev.jsonl"

training_flags "$RUN/garm" "$GARM_SAVE_STEPS"
TRAIN=(
   --data.dataset "$RUN/data/preferences.jsonl"
   --data.apply_chat_template
   --data.max_len "$MAX_LEN"
   --qs.reward_model "$REWARD_MODEL"
   --model.model_name_or_path "$GARM_BASE"
   --train.batch_size "$GARM_BATCH" --train.micro_batch_size "$GARM_BATCH"
   --train.max_epochs "$GARM_EPOCHS" --adam.lr "$GARM_LR"
   "${TRAINING_FLAGS[@]}"
   --ds.zero_stage 0 --ds.attn_implementation sdpa
)
launch garm "${TRAIN[@]}" "$@"
[ "$CALIBRATE" = no ] ||
   run openrlhf-qs garm calibrate "$RUN/data/preferences.calibration.jsonl" --model "$RUN/garm" --on "$CALIBRATE"
run openrlhf-qs garm eval "$RUN/data/preferences.dev.jsonl" --model "$RUN/garm" --equal_weights \
   --train "$RUN/data/preferences.jsonl" --out "$RUN/eval/metrics.json" --plots "$RUN/eval"
finish
