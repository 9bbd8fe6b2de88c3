#!/usr/bin/env bash
# Serve.  Serves the suggestions of a policy in $RUN to chats over HTTP, and logs what was shown and clicked to $RUN/live.
#   UPSTREAM=http://localhost:8000/v1 bash recipes/serve.sh --rate 5       # any flag of `openrlhf-qs serve` may follow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${SERVED:=grpo}"             # stage whose policy is served: grpo, rft or sft
: "${ARM:=}"                    # arms of an experiment instead, separated by spaces: "old=runs/1/grpo:.9 new=runs/2/grpo:.1"
: "${SERVE_SAMPLES:=4}"         # sampled responses, the best suggestions of which are shown; each costs time
: "${FILTER:=asked_before,users_language}"   # plugins that drop suggestions, separated by commas
: "${MIN_CLICK_CHANCE:=0}"      # nothing is shown if the reward model's click probability is below this
: "${EXPLORE:=0}"               # share of answers with one randomised position (--explore_by), for off-policy estimates
: "${UPSTREAM:=}"               # OpenAI-compatible server for all other requests; empty: a demo partner on the page
: "${UPSTREAM_MODEL:=}"         # the upstream model to use if a chat asks for one of ours
: "${LIVE_LOG:=$RUN/live}"      # folder of the log, on a local disk
: "${LISTEN:=127.0.0.1}"        # an address other than loopback needs KEY_FILE, one key per line
: "${KEY_FILE:=}"

STAGE=serve
[ -z "${PORT:-}" ] || [ -n "${SERVE_PORT:-}" ] ||
   die "PORT=$PORT is not read: give SERVE_PORT=$PORT. If PORT is not meant for the server, unset it"
: "${SERVE_PORT:=8765}"
case " $* " in
   *" --help "* | *" -h "*) answer_help serve ;;
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
