#!/usr/bin/env bash
# Intents before the first message: zero-query log -> ranker -> reasoner -> alignment by the ranker, in rounds -> evaluation.
#   bash recipes/rgalign.sh                                                    # 2 CPU cores, simulated visitors
#   CLICK_LOG=zero.jsonl INTENTS=base.jsonl RUN=runs/mine bash recipes/rgalign.sh      # your log and knowledge base
#   ALIGN="sft dpo grpo" RUN=runs/three bash recipes/rgalign.sh               # three alignment methods, compared in one table
#   POLICY=Qwen/Qwen3-0.6B CLICK_LOG=... INTENTS=... GPUS=8 RUN=runs/qwen bash recipes/rgalign.sh
#   bash recipes/rgalign.sh align                                              # one stage: intents, rank, reason, align, foresee
# A second call continues where the first one stopped, as in recipes/grpo_garm.sh. docs/RGALIGN.md describes each stage.
set -euo pipefail
: "${RUN:=runs/rgalign}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${INTENTS:=}"              # knowledge base: JSON Lines of id and text; if this and CLICK_LOG are empty: the simulated one
: "${N_VISITS:=40000}"        # in the simulated log, used if $CLICK_LOG is empty
: "${N_ASKED:=4000}"          # training visits that get a query, from the ranker's half; 0: all of it
: "${ENCODER:=words}"         # text encoder of the ranker: words (hashed), minilm, a sentence-transformers model
: "${QUERY_ENCODER:=}"        # encoder of the queries; empty: as ENCODER; reasoner: the reasoner's last hidden state; or a model name
: "${INFO_NCE:=0}"            # weight of InfoNCE between queries and intents in the ranker's loss on queries
: "${RANK_WORKERS:=0}"        # Ray Train workers that share a ranker's training, on $RAY_ADDRESS if set; 0: none
: "${ROUNDS:=2}"              # of the closed loop: ranker, reasoner, ranker on the new queries
: "${ALIGN:=sft}"             # how a round uses the ranker's gain: sft (trains on the best of N queries), dpo (best against
                              # worst), grpo (as the reward); several, separated by spaces, are compared
: "${ALIGN_SAMPLES:=4}"       # queries per visit, the best of which is the target; the group size of GRPO
: "${ALIGN_TEMPERATURE:=1.0}" # at which they are sampled
: "${ALIGN_STEPS:=40}"        # GRPO steps per round
: "${ALIGN_PROMPTS:=32}"      # visits per GRPO step
: "${DPO_BETA:=0.1}"          # how closely dpo stays to the reasoner it starts from
: "${CONTROLS:=0}"            # 1: also a round trained on shuffled gains, and queries of an untrained reasoner
: "${REASON_SAVE_STEPS:=100}" "${ALIGN_SAVE_STEPS:=100}"   # steps between checkpoints
: "${QUERY_TOKENS:=24}"       # maximum tokens per query
: "${QUERY_SAMPLES:=4}"       # queries per visit that the ranker reads together: what it might be about, and how likely
if [ "$FORM" = gpu ]; then
   : "${REASON_BATCH:=256}" "${REASON_MICRO_BATCH:=8}" "${REASON_EPOCHS:=2}" "${REASON_LR:=1e-5}"
   : "${ALIGN_BATCH:=256}" "${ALIGN_MICRO_BATCH:=8}" "${ALIGN_EPOCHS:=1}" "${ALIGN_LR:=5e-6}" "${DPO_LR:=5e-7}" "${GRPO_LR:=1e-6}"
elif [ -n "$POLICY" ]; then   # a pretrained model such as smollm2
   : "${REASON_BATCH:=16}" "${REASON_EPOCHS:=1}" "${REASON_LR:=1e-4}"
   : "${ALIGN_BATCH:=16}" "${ALIGN_EPOCHS:=1}" "${ALIGN_LR:=5e-5}" "${DPO_LR:=5e-6}" "${GRPO_LR:=1e-5}"
else
   : "${REASON_BATCH:=16}" "${REASON_LR:=4e-3}"   # from scratch: many small steps at a high learning rate
   : "${REASON_EPOCHS:=$(epochs_for 3 "$REASON_BATCH" "$RUN/intents/sft.jsonl")}"
   : "${ALIGN_BATCH:=32}" "${ALIGN_EPOCHS:=1}" "${ALIGN_LR:=5e-4}" "${DPO_LR:=5e-5}" "${GRPO_LR:=2e-4}"
fi
STAGES=(intents rank reason align foresee)
case ${1:-} in
   --help | -h) show_help; exit ;;
   "") ;;
   intents | rank | reason | align | foresee) [ $# = 1 ] || die "rgalign.sh $1 takes no flags, only variables, see --help" ;;
   *) die "rgalign.sh $1: give no argument, or one of ${STAGES[*]}; everything else is a variable, see --help" ;;
esac
[ -n "${ALIGN// /}" ] || die "ALIGN is empty: give sft, dpo or grpo, or several"
for how in $ALIGN; do
   case $how in sft | dpo | grpo) ;; *) die "ALIGN=$ALIGN: give sft, dpo or grpo, or several, separated by spaces" ;; esac
done
[ -n "$CLICK_LOG" ] && [ -z "$INTENTS" ] && die "CLICK_LOG=$CLICK_LOG without INTENTS: name the knowledge base too"
[ -z "$CLICK_LOG" ] && [ -n "$INTENTS" ] && die "INTENTS=$INTENTS without CLICK_LOG: leave it out, the simulated log has its own"
if [ $# = 0 ]; then
   export RUN
   [ "$AGAIN" != 1 ] || export AGAIN=differing
   [ "$DRY_RUN" = 1 ] || lock_run
   for stage in "${STAGES[@]}"; do attached bash "$RECIPES/rgalign.sh" "$stage"; done
   exit
fi

DATA=$RUN/intents
KB=${INTENTS:-$DATA/world/intents.jsonl}
LEARN=(--log "$DATA/train.jsonl" --intents "$KB" --n_workers "$RANK_WORKERS" --seed "$SEED")
HOW=(--encoder "$ENCODER")

# third REASONER QUERIES BASE FOLDER [FLAGS]: a ranker on top of BASE, which learns from queries the third tower alone.
third() {
   local encoder=$QUERY_ENCODER
   [ "$encoder" != reasoner ] || encoder=$1
   made "$4/ranker.json" openrlhf-qs rank "${LEARN[@]}" --base "$3" --queries "$2" --query_encoder "$encoder" \
      --info_nce "$INFO_NCE" --out "$4" "${@:5}"
}

# made FILE COMMAND...: runs it unless the file is there, for a stage of several steps goes on with the step it was at.
made() {
   if [ -e "$1" ] && [ "$DRY_RUN" != 1 ]; then
      touch "$1"   # a stage that was killed after its last step has made something, too
   else
      run "${@:2}"
   fi
}

# ask POLICY PROMPTS FILE SAMPLES TEMPERATURE: queries of a reasoner.
ask() {
   made "$3" openrlhf-qs distil --teacher "$1" --prompts "$2" --out "$3" --n_samples "$4" --temperature "$5" \
      --max_new_tokens "$QUERY_TOKENS" --chunk 4096 --seed "$SEED"
}

# teach REASON|ALIGN ROWS FOLDER MODEL: SFT on single queries.
teach() {
   if [ -e "$3/.taught" ] && [ "$DRY_RUN" != 1 ]; then
      touch "$3"/*.safetensors   # as in made
      return 0
   fi
   sft_flags "$1" "$2" "$3" "$4"
   launch sft "${SFT_FLAGS[@]}" --qs.sft_dataset single --qs.prompt_template "$DATA/instruction.txt"
   [ "$DRY_RUN" = 1 ] || touch "$3/.taught"
}

# prefer PAIRS FOLDER MODEL: DPO on the best query of a visit against the worst, the model itself the reference.
prefer() {
   [ ! -e "$2/.taught" ] || [ "$DRY_RUN" = 1 ] || return 0
   training_flags "$2" "$ALIGN_SAVE_STEPS"
   local size=(--ds.zero_stage 0 --ds.attn_implementation sdpa)
   [ "$FORM" != gpu ] || size=(--ds.zero_stage "$ZERO_STAGE" --model.gradient_checkpointing_enable)
   launch dpo --data.dataset "$1" --data.prompt_key prompt --data.apply_chat_template --data.max_len "$MAX_LEN" \
      --model.model_name_or_path "$3" --ref.model_name_or_path "$3" --model.beta "$DPO_BETA" --adam.lr "$DPO_LR" \
      --train.batch_size "$ALIGN_BATCH" --train.micro_batch_size "${ALIGN_MICRO_BATCH:-$ALIGN_BATCH}" \
      --train.max_epochs "$ALIGN_EPOCHS" "${TRAINING_FLAGS[@]}" "${size[@]}"
   [ "$DRY_RUN" = 1 ] || touch "$2/.taught"
}

# reinforce FOLDER MODEL RANKER: GRPO with the reward `ranking`.
reinforce() {
   [ ! -e "$1/.taught" ] || [ "$DRY_RUN" = 1 ] || return 0
   training_flags "$1" "$ALIGN_SAVE_STEPS"
   local micro=${ALIGN_MICRO_BATCH:-64} places=1 model size=()
   if [ "$FORM" = gpu ]; then
      places=$GPUS
      size=(
         --ds.zero_stage "$ZERO_STAGE" --train.colocate_all --vllm.enable_sleep --ds.enable_sleep --vllm.sync_backend nccl
         --vllm.num_engines "$GPUS" --vllm.tensor_parallel_size 1 --vllm.gpu_memory_utilization 0.6
      )
   else
      size=(
         --ds.zero_stage 0 --ds.attn_implementation sdpa
         --vllm.num_engines 1 --vllm.sync_backend gloo --vllm.enforce_eager --vllm.enable_prefix_caching
      )
   fi
   for model in actor ref; do size+=("--$model.num_nodes" 1 "--$model.num_gpus_per_node" "$places"); done
   OPTION="ranking.ranker=$3"
   STEPS=$ALIGN_STEPS launch grpo --data.prompt_dataset "$DATA/prompts.jsonl" --data.input_key prompt --data.label_key label \
      --data.apply_chat_template --data.max_len "$MAX_LEN" --rollout.max_new_tokens "$QUERY_TOKENS" \
      --data.max_samples $((ALIGN_PROMPTS * ALIGN_STEPS)) \
      --actor.model_name_or_path "$2" --actor.adam.lr "$GRPO_LR" --qs.reward ranking --qs.reference "$RUN/reason" \
      --algo.advantage.estimator group_norm --algo.kl.init_coef 0.01 \
      --rollout.batch_size "$ALIGN_PROMPTS" --rollout.n_samples_per_prompt "$ALIGN_SAMPLES" \
      --rollout.micro_batch_size "$micro" --rollout.temperature "$ALIGN_TEMPERATURE" \
      --train.batch_size $((ALIGN_PROMPTS * ALIGN_SAMPLES / 2)) --train.micro_batch_size "$micro" \
      "${TRAINING_FLAGS[@]}" "${size[@]}"
   [ "$DRY_RUN" = 1 ] || touch "$1/.taught"
}

intents() {   # the log, cut by time; what the reasoner is taught; the visits that need a query
   local log=("$CLICK_LOG")
   if [ -z "$CLICK_LOG" ]; then
      log=("$DATA/world/clicks.jsonl")
      made "$KB" openrlhf-qs world zero-query --out "$DATA/world" --n_impressions "$N_VISITS" --seed "$SEED"
   fi
   run openrlhf-qs rank data --log "${log[@]}" --intents "$KB" --out "$DATA" --n_visits "$N_ASKED" --seed "$SEED"
   [ -n "$POLICY" ] || run openrlhf-qs small-policy --log "$DATA/reasoner.jsonl" --out "$DATA/policy" --n_suggestions 1 --hidden_size 128 --seed "$SEED"
}

rank() {      # the rankers that need no reasoner: two towers, and the same where the features' words look themselves up
   made "$RUN/rank/two/ranker.json" openrlhf-qs rank "${LEARN[@]}" "${HOW[@]}" --no_words --no_reward --out "$RUN/rank/two"
   made "$RUN/rank/words/ranker.json" openrlhf-qs rank "${LEARN[@]}" "${HOW[@]}" --out "$RUN/rank/words"
}

reason() {    # cold start: the reasoner is taught the wording of what was clicked, and asked about all visits
   teach REASON "$DATA/sft.jsonl" "$RUN/reason" "${POLICY:-$DATA/policy}"
   ask "$RUN/reason" "$DATA/visits.jsonl" "$RUN/reason/queries.jsonl" "$QUERY_SAMPLES" 1
}

# place HOW ROUND: where the ranker and the samples of that round are; every way begins with the same ones.
place() { [ "$2" = 1 ] && echo "$RUN/align/start" || echo "$RUN/align/$1/$2"; }

align() {     # a round: the ranker learns on the queries, judges new ones for visits it has not seen, and these teach
   local how round before here at
   for how in $ALIGN; do
      before=$RUN/reason
      for round in $(seq "$ROUNDS"); do
         here=$RUN/align/$how/$round
         at=$(place "$how" "$round")
         third "$before" "$before/queries.jsonl" "$RUN/rank/words" "$at/ranker"
         if [ "$how" = grpo ]; then
            reinforce "$here" "$before" "$at/ranker/reward"
         else
            ask "$before" "$DATA/prompts.jsonl" "$at/samples.jsonl" "$ALIGN_SAMPLES" "$ALIGN_TEMPERATURE"
            made "$at/best.jsonl" openrlhf-qs rank best --samples "$at/samples.jsonl" --prompts "$DATA/prompts.jsonl" \
               --ranker "$at/ranker/reward" --out "$at/best.jsonl" --pairs "$at/pairs.jsonl"
            if [ "$how" = dpo ]; then prefer "$at/pairs.jsonl" "$here" "$before"; else teach ALIGN "$at/best.jsonl" "$here" "$before"; fi
         fi
         ask "$here" "$DATA/visits.jsonl" "$here/queries.jsonl" "$QUERY_SAMPLES" 1
         before=$here
      done
      third "$before" "$before/queries.jsonl" "$RUN/rank/words" "$RUN/align/$how/ranker" --no_reward
   done
}

foresee() {   # rankings of the held-out visits, side by side, and the controls
   local out=$RUN/foresee how round last arms=() judge=()
   arms+=(--arm "two_towers=$RUN/rank/two" --arm "features_in_words=$RUN/rank/words")
   arms+=(--arm "cold_start=$RUN/align/start/ranker:$RUN/reason/queries.jsonl")
   for how in $ALIGN; do
      for round in $(seq 2 "$ROUNDS"); do
         arms+=(--arm "${how}_$((round - 1))=$RUN/align/$how/$round/ranker:$RUN/align/$how/$((round - 1))/queries.jsonl")
      done
      last=$RUN/align/$how/$ROUNDS
      arms+=(--arm "${how}_$ROUNDS=$RUN/align/$how/ranker:$last/queries.jsonl")
   done
   third "$last" "$last/queries.jsonl" "$RUN/rank/words" "$out/shuffled" --shuffle_queries --no_reward
   third "$last" "$last/queries.jsonl" "$RUN/rank/two" "$out/alone" --no_reward
   arms+=(--arm "queries_without_words=$out/alone:$last/queries.jsonl")
   arms+=(--arm "shuffled_queries=$out/shuffled:$last/queries.jsonl" --shuffle_queries shuffled_queries)
   if [ "$CONTROLS" = 1 ]; then
      ask "${POLICY:-$DATA/policy}" "$DATA/visits.jsonl" "$out/untrained.jsonl" "$QUERY_SAMPLES" 1
      third "${POLICY:-$DATA/policy}" "$out/untrained.jsonl" "$RUN/rank/words" "$out/untrained" --no_reward
      ask "$RUN/reason" "$DATA/prompts.jsonl" "$RUN/align/start/samples.jsonl" "$ALIGN_SAMPLES" "$ALIGN_TEMPERATURE"
      made "$out/by_chance.jsonl" openrlhf-qs rank best --samples "$RUN/align/start/samples.jsonl" --prompts "$DATA/prompts.jsonl" \
         --ranker "$RUN/align/start/ranker/reward" --shuffle_scores --out "$out/by_chance.jsonl"
      teach ALIGN "$out/by_chance.jsonl" "$out/by_chance" "$RUN/reason"
      ask "$out/by_chance" "$DATA/visits.jsonl" "$out/by_chance/queries.jsonl" "$QUERY_SAMPLES" 1
      third "$out/by_chance" "$out/by_chance/queries.jsonl" "$RUN/rank/words" "$out/by_chance/ranker" --no_reward
      arms+=(--arm "untrained_reasoner=$out/untrained:$out/untrained.jsonl")
      arms+=(--arm "shuffled_gains=$out/by_chance/ranker:$out/by_chance/queries.jsonl")
   fi
   [ -n "$CLICK_LOG" ] || judge=(--judge "${JUDGE:-zero_query_world}")
   run openrlhf-qs rank eval --log "$DATA/heldout.jsonl" --train "$DATA/train.jsonl" --intents "$KB" "${arms[@]}" \
      --over two_towers --over features_in_words --over cold_start \
      "${judge[@]}" --out "$out/metrics.json" --examples "$out/examples.jsonl" --rounds "$out/rounds.svg" --seed "$SEED"
}

begin "$1"
"$1"
finish
