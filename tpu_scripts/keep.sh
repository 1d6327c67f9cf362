#!/usr/bin/env bash
# Keeps a run going until it is finished: creates, sets up, launches, and after a preemption or a
# crash does so again with the same WORKDIR, so that training resumes from its last checkpoint.
#
#   tpu_scripts/keep.sh SETTINGS [--teardown] [--dry-run] [-- ARGUMENT …]
#
#   SETTINGS     a filled-in copy of tpu_scripts/example.env
#   --teardown   delete the TPUs at the end, finished or given up
#   --dry-run    print the commands of a run without trouble, and those of a recovery as comments
#   ARGUMENT     further arguments of sr1_jax.train, such as --config.seed=3
#
# Looks every POLL_SECONDS. After trouble it waits BACKOFF_SECONDS, twice as long after each further
# trouble without a healthy look in between (at most an hour), and gives up after MAX_RESTARTS. Where
# training says by its exit code that it would fail again (bad input, a defect, a full disk, diverged:
# sr1_jax/exit_codes.py) nothing is started again, and this script ends with that code.
# TPUs and runs that are there already are taken over; one that failed before is set up and launched
# again. Ctrl-C ends the watch, not the run.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

TEARDOWN=no MORE=()
while (($#)); do
  case $1 in
    --teardown) TEARDOWN=yes ;;
    --)
      shift
      MORE=("$@")
      break
      ;;
    *) common_option "$1" ;;
  esac
  shift
done
load_settings
need_commands gcloud
if [[ $CAPACITY == spot && $WORKDIR != gs://* ]]; then
  note "WORKDIR=$WORKDIR must be storage that outlives the TPU VMs, or a preemption loses the run"
fi

RESTARTS=0 IN_A_ROW=0 MISSES=0 LAST=
FLAGS=()
[[ $DRY_RUN == no ]] || FLAGS=(--dry-run)

step() { # step SCRIPT [OPTION …]: one of the other scripts, for the same settings
  local script=$1
  shift
  "$SCRIPTS/$script" "$SETTINGS" "${FLAGS[@]}" "$@"
}

launch() { step launch.sh --restart -- "${MORE[@]}"; }

set_up_and_launch() { step setup.sh && launch; }

bring_up() { step create.sh && set_up_and_launch; }

make_anew() { step teardown.sh --yes && bring_up; }

# What training does, over all workers: running, finished, idle, failed, unreachable, or "final N"
# where it failed with a code N after which it is not started again.
training_state() {
  local answers errors failed running finished code
  status_command all all
  errors=$(mktemp) # gcloud says there how it connects, every time
  if ! answers=$("${TPU_COMMAND[@]}" 2>"$errors"); then
    cat "$errors" >&2
    rm -f "$errors"
    echo unreachable
    return
  fi
  rm -f "$errors"
  failed=$(grep -cE '^SR1_WORKER [^ ]+ (failed|stopped)' <<<"$answers" || true)
  running=$(grep -cE '^SR1_WORKER [^ ]+ running' <<<"$answers" || true)
  finished=$(grep -cE '^SR1_WORKER [^ ]+ finished' <<<"$answers" || true)
  if ((failed)); then
    grep -E '^SR1_WORKER [^ ]+ (failed|stopped)' <<<"$answers" >&2
    for code in "${FINAL_CODES[@]}"; do
      if grep -qE "^SR1_WORKER [^ ]+ failed, exit code $code(:|$)" <<<"$answers"; then
        echo "final $code"
        return
      fi
    done
    echo failed
  elif ((finished == WORKERS)); then
    echo finished
  elif ((running + finished == WORKERS)); then
    echo running
  elif grep -qE '^SR1_WORKER [^ ]+ idle' <<<"$answers"; then
    echo idle
  else
    echo unreachable
  fi
}

# trouble WHAT ACTION: counts, waits, acts; an action that fails is trouble at the next look.
trouble() {
  local delay
  ((RESTARTS < MAX_RESTARTS)) || finish 1 "$1; given up after MAX_RESTARTS=$MAX_RESTARTS restarts"
  delay=$((BACKOFF_SECONDS << (IN_A_ROW > 10 ? 10 : IN_A_ROW)))
  ((delay <= 3600)) || delay=3600
  RESTARTS=$((RESTARTS + 1)) IN_A_ROW=$((IN_A_ROW + 1)) MISSES=0
  note "$1; restart $RESTARTS of at most $MAX_RESTARTS in $delay s: $2"
  pause "$delay"
  "$2" || note "$2 failed"
}

finish() {
  note "$2"
  trap - EXIT
  if [[ $TEARDOWN == no ]] || ! step teardown.sh --yes; then warn_cost; fi
  exit "$1"
}

if [[ $DRY_RUN == yes ]]; then
  state_command
  run "${TPU_COMMAND[@]}"
  bring_up
  remark "every $POLL_SECONDS s, until all $WORKERS workers have finished"
  state_command
  run "${TPU_COMMAND[@]}"
  status_command all all
  run "${TPU_COMMAND[@]}"
  remark "after a preemption, at most $MAX_RESTARTS times:"
  make_anew | sed 's/^/# /'
  if [[ $TEARDOWN == yes ]]; then step teardown.sh --yes; fi
  exit 0
fi

trap warn_cost EXIT
trap 'note "the watch is over; training goes on"; exit 130' INT TERM
STATE=$(resource_state)
case $(phase_of "$STATE") in
  gone) bring_up || note "the first start failed" ;;
  ready)
    note "$NAME exists and is $STATE: taken over"
    # What failed for good before was mended since, or this script would not have been started.
    [[ $(training_state) != @(idle|final*) ]] || set_up_and_launch || note "the first start failed"
    ;;
esac

while true; do
  STATE=$(resource_state)
  case $(phase_of "$STATE") in
    ready)
      TRAINING_STATE=$(training_state)
      [[ $TRAINING_STATE == "$LAST" ]] || note "$NAME is $STATE, training is $TRAINING_STATE"
      LAST=$TRAINING_STATE
      case $TRAINING_STATE in
        finished) finish 0 "training is finished" ;;
        running) IN_A_ROW=0 MISSES=0 ;;
        idle) trouble "nothing runs on $NAME" set_up_and_launch ;;
        failed) trouble "training failed" launch ;;
        final*) finish "${TRAINING_STATE#final }" "training failed with exit code ${TRAINING_STATE#final }, after which it is not started again: mend what it says above" ;;
        *)
          MISSES=$((MISSES + 1))
          note "workers of $NAME do not answer ($MISSES of 3)"
          ((MISSES < 3)) || trouble "workers of $NAME do not answer" make_anew
          ;;
      esac
      ;;
    over) trouble "$NAME is $STATE" make_anew ;;
    gone) trouble "$NAME is gone" bring_up ;;
    *)
      note "$NAME is $STATE"
      [[ $STATE == UNKNOWN ]] || MISSES=-1
      MISSES=$((MISSES + 1))
      ((MISSES < 10)) || finish 1 "ten times in a row gcloud could not tell the state of $NAME"
      ;;
  esac
  pause "$POLL_SECONDS"
done
