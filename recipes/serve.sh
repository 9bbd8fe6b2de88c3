#!/usr/bin/env bash
# Serve.  Answers chats with the suggestions of a policy of $RUN over HTTP, and keeps what was shown and clicked in $RUN/live.
#   UPSTREAM=http://localhost:8000/v1 bash recipes/serve.sh --rate 5       # any flag of `openrlhf-qs serve` may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${SERVED:=grpo}"             # stage whose policy is served: grpo, rft or sft
: "${ARM:=}"                    # an experiment in its place, separated by spaces: "old=runs/1/grpo:.9 new=runs/2/grpo:.1"
: "${SERVE_SAMPLES:=4}"         # responses of which the best suggestions are shown; each costs time
: "${FILTER:=asked_before,users_language}"   # plugins, separated by commas: what is not shown
: "${MIN_CLICK_CHANCE:=0}"      # nothing is shown where the reward model finds a click less likely than this
: "${EXPLORE:=0}"               # share of the answers in which one place is left to chance (--explore_by), for estimates off the policy
: "${UPSTREAM:=}"               # OpenAI-compatible server of all other tasks; empty: a demo partner on the page
: "${UPSTREAM_MODEL:=}"         # its model where a chat asks for one of ours
: "${LIVE_LOG:=$RUN/live}"      # folder of the log, on a local disk
: "${LISTEN:=127.0.0.1}"        # another than a loopback address needs KEY_FILE, a key a line
: "${KEY_FILE:=}"

STAGE=serve
[ -z "${PORT:-}" ] || [ -n "${SERVE_PORT:-}" ] ||
   die "PORT=$PORT is not read: SERVE_PORT=$PORT is the server's. If it is not meant for it, unset it"
: "${SERVE_PORT:=8765}"
case " $* " in
   *" --help "* | *" -h "*) show_help; set_up; echo; openrlhf-qs serve --help; exit ;;
esac
set_up
response_tokens
plugin_flags --
POLICIES=()
for one in $ARM; do POLICIES+=(--arm "$one"); done
[ -n "$ARM" ] || POLICIES=(--policy "$RUN/$SERVED")
[ "$FORM" = cpu ] || POLICIES+=(--tensor_parallel_size "$GPUS")
run openrlhf-qs serve "${POLICIES[@]}" --reward_model "$RUN/garm" --log "$LIVE_LOG" --n_samples "$SERVE_SAMPLES" \
   --max_new_tokens "$RESPONSE_TOKENS" --filter "$FILTER" --min_click_chance "$MIN_CLICK_CHANCE" --explore "$EXPLORE" \
   --upstream "$UPSTREAM" --upstream_model "$UPSTREAM_MODEL" --host "$LISTEN" --port "$SERVE_PORT" --key_file "$KEY_FILE" \
   --seed "$SEED" "${PLUGIN_FLAGS[@]}" "$@"
