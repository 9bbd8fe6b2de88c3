#!/usr/bin/env bash
# GRPO.  Reads $RUN/data/prompts.jsonl, the SFT policy, the GaRM and the weights, writes $RUN/grpo: the final policy.
#   GPUS=8 bash recipes/grpo.sh --actor.adam.lr 1e-6                     # any flag of OpenRLHF's train_ppo_ray may follow
#   GPUS=8 ASYNC=1 bash recipes/grpo.sh                                  # rollouts and training overlap
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${MAX_LEN:=512}"           # tokens of a conversation with its response
: "${MAX_NEW_TOKENS:=64}"     # tokens of a response
: "${MONITOR:=warn}"          # signs of reward hacking: warn, stop (and keep the last good checkpoint) or off
: "${KL_COEF:=0.01}"          # of the KL penalty; above 0, for `ood` reads the reference's log-probs

set_up
skip_if_done grpo
DATA=(
   --data.prompt_dataset "$RUN/data/prompts.jsonl"
   --data.input_key prompt --data.label_key label   # the label is the conversation, for the rewards
   --data.apply_chat_template
   --data.max_len "$MAX_LEN" --rollout.max_new_tokens "$MAX_NEW_TOKENS"
)
MODELS=(
   --actor.model_name_or_path "$RUN/sft"
   --reward.model_name_or_path "$RUN/garm"
   --qs.reward "$REWARD"
   --qs.weights "$RUN/fusion/weights.json"
   --qs.monitor "$MONITOR"
)
ALGORITHM=(
   --algo.advantage.estimator group_norm   # GRPO
   --algo.kl.init_coef "$KL_COEF"
   --train.seed "$SEED"
)
CKPT=(
   --ckpt.output_dir "$RUN/grpo"
   --ckpt.path "$RUN/grpo/ckpt"
   --ckpt.save_steps "${SAVE_STEPS:-10}"   # what an interruption costs at most
   --ckpt.load_enable                      # goes on where a checkpoint is
   --ckpt.max_num 1
   --logger.tensorboard_dir "$RUN/grpo/tensorboard"
)
if [ "$FORM" = gpu ]; then
   : "${STEPS:=500}" "${PROMPTS:=128}" "${N_SAMPLES:=8}" "${MICRO_BATCH:=8}" "${TRAIN_BATCH:=1024}"
   SIZE=(
      --actor.adam.lr "${LR:-1e-6}"
      --ds.zero_stage 3 --ds.packing_samples --actor.gradient_checkpointing_enable
      --train.dynamic_batch_enable
      --vllm.tensor_parallel_size 1 --vllm.sync_backend nccl --vllm.enable_prefix_caching
   )
   if [ "$ASYNC" = 1 ]; then   # half of each node's GPUs roll out, the other half trains
      [ "$GPUS" -ge 2 ] || die "ASYNC=1 wants at least 2 GPUs a node, one to roll out and one to train; found GPUS=$GPUS"
      TRAIN_GPUS=$((GPUS / 2))
      SIZE+=(
         --train.async_enable --train.partial_rollout_enable --train.colocate_all
         --vllm.num_engines $(((GPUS - TRAIN_GPUS) * NODES)) --vllm.gpu_memory_utilization 0.9
      )
   else                        # everything shares every GPU, and sleeps while the other works
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
   : "${STEPS:=50}" "${PROMPTS:=16}" "${N_SAMPLES:=8}" "${MICRO_BATCH:=64}" "${TRAIN_BATCH:=64}"
   SIZE=(
      --actor.adam.lr "${LR:-5e-4}"
      --ds.zero_stage 0 --ds.attn_implementation sdpa
      --vllm.num_engines 1 --vllm.sync_backend gloo --vllm.enforce_eager
      --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --reward.num_gpus_per_node 1
   )
fi
ROLLOUT=(
   --rollout.batch_size "$PROMPTS" --rollout.n_samples_per_prompt "$N_SAMPLES"   # the group of GRPO
   --rollout.micro_batch_size "$MICRO_BATCH"
   --train.batch_size "$TRAIN_BATCH" --train.micro_batch_size "$MICRO_BATCH"
   --data.max_samples $((PROMPTS * STEPS))
)
launch grpo "${DATA[@]}" "${MODELS[@]}" "${ALGORITHM[@]}" "${CKPT[@]}" "${SIZE[@]}" "${ROLLOUT[@]}" "$@"
finish
