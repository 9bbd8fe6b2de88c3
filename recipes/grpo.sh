#!/usr/bin/env bash
# GRPO.  Reads $RUN/data/prompts.jsonl, the RFT policy (SFT with RFT=0), the SFT policy as its reference, the GaRM and the weights,
# writes $RUN/grpo: the final policy.
#   POLICY=Qwen/Qwen3-4B GPUS=8 bash recipes/grpo.sh --algo.kl.use_loss    # any flag of OpenRLHF's train_ppo_ray may follow
#   POLICY=Qwen/Qwen3-4B GPUS=8 ASYNC=1 bash recipes/grpo.sh               # rollouts and training overlap
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${MONITOR:=warn}"          # signs of reward hacking: warn, stop (and keep the last good checkpoint) or off
: "${KL_COEF:=0.01}"          # of the KL penalty; above 0, because `ood` reads the reference's log-probs
: "${CREDIT:=suggestion}"     # reward that a token is credited with: its suggestion's or its response's
: "${GRPO_SAVE_STEPS:=10}"    # steps between checkpoints
if [ "$FORM" = gpu ]; then
   : "${STEPS:=500}" "${PROMPTS:=128}" "${N_SAMPLES:=8}" "${TRAIN_BATCH:=1024}" "${GRPO_MICRO_BATCH:=8}" "${GRPO_LR:=1e-6}"
elif [ -n "$POLICY" ]; then
   : "${STEPS:=10}" "${PROMPTS:=8}" "${N_SAMPLES:=4}" "${TRAIN_BATCH:=32}" "${GRPO_MICRO_BATCH:=8}" "${GRPO_LR:=1e-5}"   # for a model such as smollm2
else
   : "${STEPS:=150}" "${PROMPTS:=64}" "${N_SAMPLES:=8}" "${TRAIN_BATCH:=256}" "${GRPO_MICRO_BATCH:=64}" "${GRPO_LR:=7e-4}"
fi

begin grpo "$@"
response_tokens
training_flags "$RUN/grpo" "$GRPO_SAVE_STEPS"
DATA=(
   --data.prompt_dataset "$RUN/data/prompts.jsonl"
   --data.input_key prompt --data.label_key label   # the label is the conversation, for the rewards
   --data.apply_chat_template
   --data.max_len "$MAX_LEN" --rollout.max_new_tokens "$RESPONSE_TOKENS"
)
[ "$RFT" = 1 ] && START=$RUN/rft || START=$RUN/sft
MODELS=(
   --actor.model_name_or_path "$START"
   --qs.reference "$RUN/sft"
   --reward.model_name_or_path "$RUN/garm"
   --qs.reward "$REWARD"
   --qs.weights "$RUN/fusion/weights.json"
   --qs.monitor "$MONITOR"
   --qs.credit "$CREDIT"
)
ALGORITHM=(
   --algo.advantage.estimator group_norm   # GRPO
   --actor.lr_scheduler constant_with_warmup
   --algo.kl.init_coef "$KL_COEF"
)
if [ "$FORM" = gpu ]; then
   SIZE=(
      --actor.adam.lr "$GRPO_LR"
      --ds.zero_stage "$ZERO_STAGE" --ds.packing_samples --actor.gradient_checkpointing_enable
      --train.dynamic_batch_enable
      --vllm.tensor_parallel_size 1 --vllm.sync_backend nccl --vllm.enable_prefix_caching
   )
   if [ "$ASYNC" = 1 ]; then   # half of each node's GPUs generate rollouts, the other half train
      TRAIN_GPUS=$((GPUS / 2))
      SIZE+=(
         --train.async_enable --train.partial_rollout_enable --train.colocate_all
         --vllm.num_engines $(((GPUS - TRAIN_GPUS) * NODES)) --vllm.gpu_memory_utilization 0.9
      )
   else                        # rollouts and training share every GPU; each sleeps while the other works
      TRAIN_GPUS=$GPUS
      SIZE+=(
         --train.colocate_all --vllm.enable_sleep --ds.enable_sleep
         --vllm.num_engines $((GPUS * NODES)) --vllm.gpu_memory_utilization 0.6
      )
   fi
   for model in actor ref reward; do
      SIZE+=("--$model.num_nodes" "$NODES" "--$model.num_gpus_per_node" "$TRAIN_GPUS")
   done
else
   SIZE=(
      --actor.adam.lr "$GRPO_LR"
      --ds.zero_stage 0 --ds.attn_implementation sdpa
      --vllm.num_engines 1 --vllm.sync_backend gloo --vllm.enforce_eager --vllm.enable_prefix_caching
      --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --reward.num_gpus_per_node 1
   )
fi
# With fewer prompts than all steps take together, each is used several times.
N_PROMPTS=$((STEPS * PROMPTS))   # of a dry run, which may have no data yet
[ ! -f "$RUN/data/prompts.jsonl" ] || N_PROMPTS=$(wc -l < "$RUN/data/prompts.jsonl")
[ "$N_PROMPTS" -ge "$PROMPTS" ] || die "$RUN/data/prompts.jsonl has $N_PROMPTS prompts, and a step takes $PROMPTS: give PROMPTS=$N_PROMPTS or fewer"
EPISODES=$((1 + (STEPS - 1) / (N_PROMPTS / PROMPTS)))
STEPS_EACH=$((1 + (STEPS - 1) / EPISODES))
STEPS=$((EPISODES * STEPS_EACH))
ROLLOUT=(
   --rollout.batch_size "$PROMPTS" --rollout.n_samples_per_prompt "$N_SAMPLES"   # the group of GRPO
   --rollout.micro_batch_size "$GRPO_MICRO_BATCH" --rollout.temperature "$GRPO_TEMPERATURE"
   --train.batch_size "$TRAIN_BATCH" --train.micro_batch_size "$GRPO_MICRO_BATCH"
   --train.num_episodes "$EPISODES" --data.max_samples $((STEPS_EACH * PROMPTS))
)
N_ROLLOUTS=$((STEPS * PROMPTS * N_SAMPLES))   # the policy, the reference and the reward model read each
expect "$START" --written "$N_ROLLOUTS" --read $((3 * N_ROLLOUTS)) --taught "$N_ROLLOUTS"
launch grpo "${DATA[@]}" "${MODELS[@]}" "${ALGORITHM[@]}" "${TRAINING_FLAGS[@]}" "${SIZE[@]}" "${ROLLOUT[@]}" "$@"
finish
