#!/usr/bin/env bash
# Shows the state of the TPUs, of training on each worker, and the end of the logs.
#
#   tpu_scripts/watch.sh SETTINGS [--state] [--follow] [--worker=N|all] [--node=N|all] [--lines=N] [--dry-run]
#
#   SETTINGS     a filled-in copy of tpu_scripts/example.env
#   --follow     go on showing the log until Ctrl-C (training goes on)
#   --worker=N   which worker of a slice (default: all; with --follow 0)
#   --node=N     which slice of several (default: all; with --follow 0)
#   --lines=N    how much of the log (default 20)
#   --state      the state of the TPUs only
#   --dry-run    print the commands, run nothing

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

FOLLOW=no WORKER='' NODE='' LINES_SHOWN=20 STATE_ONLY=no
while (($#)); do
  case $1 in
    --follow) FOLLOW=yes ;;
    --state) STATE_ONLY=yes ;;
    --worker=all | --node=all | --worker=[0-9]* | --node=[0-9]*)
      [[ ${1#*=} == all ]] || whole_number "${1%%=*}" "${1#*=}" >/dev/null
      if [[ $1 == --worker=* ]]; then WORKER=${1#*=}; else NODE=${1#*=}; fi
      ;;
    --lines=*) LINES_SHOWN=$(whole_number --lines "${1#*=}") ;;
    *) common_option "$1" ;;
  esac
  shift
done
load_settings
need_commands gcloud
if [[ $FOLLOW == yes ]]; then
  WORKER=${WORKER:-0} NODE=${NODE:-0}
fi
WORKER=${WORKER:-all} NODE=${NODE:-all}
[[ $WORKER == all ]] || ((WORKER < VMS)) || usage_error "--worker=$WORKER: a slice of $ACCELERATOR_TYPE has workers 0 to $((VMS - 1))"
[[ $NODE == all ]] || ((NODE < NODES)) || usage_error "--node=$NODE: there are slices 0 to $((NODES - 1))"

if [[ $DRY_RUN == yes ]]; then
  state_command
  run "${TPU_COMMAND[@]}"
else
  STATE=$(resource_state)
  note "$NAME is $STATE"
  [[ $(phase_of "$STATE") == ready || $STATE_ONLY == yes ]] || die "no log to show: $NAME is $STATE"
fi
[[ $STATE_ONLY == no ]] || exit 0

VIEW="bash sr1_jax/worker.sh log --lines=$LINES_SHOWN"
if [[ $FOLLOW == yes ]]; then
  VIEW+=" --follow"
else
  status_command "$NODE" "$WORKER"
  run "${TPU_COMMAND[@]}"
fi
worker_command "$NODE" "$WORKER" "$VIEW"
run "${TPU_COMMAND[@]}"
