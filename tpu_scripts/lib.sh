# shellcheck shell=bash
# Shared by all scripts of this folder: messages, options, running commands, gcloud.
#
# A script sources this file, hands each option it does not know to `common_option`, and calls
# `load_settings`. After that every key of the settings file is a variable of the same name, and
# `run` is the only way anything is executed: with --dry-run it prints the command instead.
# shellcheck disable=SC2034,SC2153 # much is set here for the scripts, or by settings.sh

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "tpu_scripts: bash 4.4 or newer is needed, this is $BASH_VERSION (macOS: brew install bash)" >&2
  exit 2
fi

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$SCRIPTS")
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/sr1_jax
DRY_RUN=no
ASSUME_YES=no
SETTINGS=
ARG=() # further arguments of the training command, one each
ENVIRONMENT=() # NAME=value of its environment, one each

# Exit codes after which training is not started again: mending comes first. All others but 0 are
# trouble that may pass. The same as FINAL in sr1_jax/exit_codes.py, which says what they mean.
FINAL_CODES=(2 70 74 79 130)

# shellcheck source=SCRIPTDIR/settings.sh
source "$SCRIPTS/settings.sh"

# --- messages ------------------------------------------------------------------------------------

note() { echo "tpu_scripts: $*" >&2; }

die() {
  note "error: $*"
  exit 1
}

usage_error() {
  note "error: $*; see $(basename "$0") --help"
  exit 2
}

# The comment at the head of a script is its help.
show_help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# A remark between the commands of a dry run; a comment, so that the whole output is a script.
remark() { [[ $DRY_RUN == no ]] || printf '# %s\n' "$*"; }

# --- quoting and running -------------------------------------------------------------------------

# One word, quoted for any POSIX shell if it has to be.
quote() {
  local plain='^[A-Za-z0-9_./:,@%+=-]+$' flag='^(--[a-z-]+=)(.*)$'
  if [[ $1 =~ $plain ]]; then
    printf '%s' "$1"
  elif [[ $1 =~ $flag && -n ${BASH_REMATCH[2]} ]]; then
    printf '%s%s' "${BASH_REMATCH[1]}" "$(quote "${BASH_REMATCH[2]}")"
  else
    printf "'%s'" "${1//\'/\'\\\'\'}"
  fi
}

quote_all() {
  local word separator=
  for word; do
    printf '%s' "$separator"
    quote "$word"
    separator=' '
  done
}

# Runs a command, or prints it in a dry run. A command that fails ends the script.
run() {
  if [[ $DRY_RUN == yes ]]; then
    quote_all "$@"
    echo
    return
  fi
  local code=0
  echo "+ $(quote_all "$@")" >&2
  "$@" || code=$?
  ((code == 0)) || die "exit code $code of: $(quote_all "$@")"
}

pause() { (($1 == 0)) || sleep "$1"; }

need_commands() {
  local name
  [[ $DRY_RUN == no ]] || return 0
  for name; do
    command -v "$name" >/dev/null ||
      die "$name is not on PATH; for gcloud and kubectl see https://cloud.google.com/sdk/docs/install"
  done
}

# Asks before something is lost; --yes answers.
confirm() {
  local answer=
  [[ $DRY_RUN == no && $ASSUME_YES == no ]] || return 0
  printf '%s [y/N] ' "$1" >&2
  read -r answer || true
  [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || die "nothing was deleted (no was the answer; --yes asks nothing)"
}

# --- options ----------------------------------------------------------------------------------

# The options every script has; anything else that begins with a dash is an error.
common_option() {
  case $1 in
    -h | --help)
      show_help
      exit 0
      ;;
    --dry-run) DRY_RUN=yes ;;
    -*) usage_error "unknown option $1" ;;
    *)
      [[ -z $SETTINGS ]] || usage_error "one settings file, not two: $SETTINGS and $1 (arguments of training go after --)"
      SETTINGS=$1
      ;;
  esac
}

# The value of an option that must be a whole number: `whole_number --lines 20`.
whole_number() {
  [[ $2 =~ ^[0-9]+$ ]] || usage_error "$1=$2 is no whole number"
  printf '%s' "$2"
}

# --- the TPU resource ----------------------------------------------------------------------------

# tpu_command VERB ARGUMENT … [--FLAG …]: sets TPU_COMMAND, on the queued resource or the TPU VM.
tpu_command() {
  local surface=queued-resources
  [[ $CREATE_WITH == queued-resource ]] || surface=tpu-vm
  TPU_COMMAND=(gcloud compute tpus "$surface")
  while (($#)) && [[ $1 != --* ]]; do
    TPU_COMMAND+=("$1")
    shift
  done
  TPU_COMMAND+=("--project=$PROJECT" "--zone=$ZONE" --quiet "$@")
}

state_command() {
  local field=state.state
  [[ $CREATE_WITH == queued-resource ]] || field=state
  tpu_command describe "$NAME" "--format=value($field)"
}

# Prints the state of the resource: ABSENT if there is none, UNKNOWN if gcloud cannot tell.
resource_state() {
  local answer errors
  state_command
  errors=$(mktemp)
  if answer=$("${TPU_COMMAND[@]}" 2>"$errors"); then
    answer=${answer:-UNKNOWN}
  elif grep -q NOT_FOUND "$errors"; then
    answer=ABSENT
  else
    cat "$errors" >&2
    answer=UNKNOWN
  fi
  rm -f "$errors"
  printf '%s' "$answer"
}

# ready: training can run. over: it never will again, the resource must be made anew. gone: there
# is none. moving: wait.
# Source: QueuedResourceState.State and Node.State of the Cloud TPU API, v2.
phase_of() {
  case $1 in
    ACTIVE | READY) echo ready ;;
    SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED | HIDDEN) echo over ;;
    ABSENT) echo gone ;;
    *) echo moving ;;
  esac
}

# wait_for PHASE: polls until the resource is ready or gone.
wait_for() {
  local wanted=$1 state last='' unknown=0 began limit=$READY_TIMEOUT_SECONDS
  [[ $wanted == ready ]] || limit=1200
  began=$(date +%s)
  if [[ $DRY_RUN == yes ]]; then
    _print_wait "$wanted"
    return
  fi
  while true; do
    state=$(resource_state)
    [[ $state == "$last" ]] || note "$NAME is $state"
    last=$state
    case $(phase_of "$state") in
      "$wanted") return ;;
      over | gone)
        [[ $wanted == gone ]] || _give_up "$state"
        ;;
    esac
    if [[ $state == UNKNOWN ]]; then unknown=$((unknown + 1)); else unknown=0; fi
    ((unknown < 5)) || die "five times in a row gcloud could not tell the state of $NAME"
    ((limit == 0 || $(date +%s) - began < limit)) || die "$NAME is still $state after $limit s, and not $wanted"
    pause "$POLL_SECONDS"
  done
}

_give_up() {
  if [[ $1 != ABSENT ]]; then
    tpu_command describe "$NAME"
    "${TPU_COMMAND[@]}" >&2 || true
  fi
  die "$NAME is $1: it will not become ready by waiting"
}

_print_wait() {
  local ready=ACTIVE
  [[ $CREATE_WITH == queued-resource ]] || ready=READY
  state_command
  if [[ $1 == ready ]]; then
    # shellcheck disable=SC2016 # the printed command shall be expanded, not this line
    printf 'until [ "$(%s)" = %s ]; do sleep %s; done\n' "$(quote_all "${TPU_COMMAND[@]}")" "$ready" "$POLL_SECONDS"
  else
    printf 'while %s; do sleep %s; done\n' "$(quote_all "${TPU_COMMAND[@]}")" "$POLL_SECONDS"
  fi
}

# Says what costs money and how to end that; for the EXIT trap of scripts that create something.
warn_cost() {
  [[ $DRY_RUN == no ]] || return 0
  note "what exists of $NAME ($NODES x $ACCELERATOR_TYPE, $CAPACITY) costs money until it is deleted: $(quote_all "$SCRIPTS/teardown.sh" "$SETTINGS")"
}

# --- workers -------------------------------------------------------------------------------------

# worker_command NODE WORKER COMMAND: sets TPU_COMMAND to run a shell command there ("all": everywhere).
worker_command() {
  local nodes=()
  [[ $CREATE_WITH == tpu-vm ]] || nodes=("--node=$1")
  tpu_command ssh "$NAME" "${nodes[@]}" "--worker=$2" "--command=$3"
}

# status_command NODE WORKER: sets TPU_COMMAND to ask what training does; without setup it is idle.
status_command() {
  # shellcheck disable=SC2016 # expanded on the worker
  worker_command "$1" "$2" 'bash sr1_jax/worker.sh status 2>/dev/null || echo "SR1_WORKER $(hostname) idle"'
}

# copy_to_workers FILE … FOLDER: copies to all workers, FOLDER below the home folder there.
copy_to_workers() {
  local nodes=()
  [[ $CREATE_WITH == tpu-vm ]] || nodes=(--node=all)
  tpu_command scp "${@:1:$#-1}" "$NAME:${*: -1}" "${nodes[@]}" --worker=all
  run "${TPU_COMMAND[@]}"
}

# copy_from_worker NODE WORKER FILE TARGET: FILE below the home folder there.
copy_from_worker() {
  local nodes=()
  [[ $CREATE_WITH == tpu-vm ]] || nodes=("--node=$1")
  tpu_command scp "$NAME:$3" "$4" "${nodes[@]}" "--worker=$2"
  run "${TPU_COMMAND[@]}"
}

# The environment of training, as lines NAME=value: what PASS_ENV names of this shell's, then ENV.
environment_lines() {
  local name pattern patterns
  local -A values=()
  read -ra patterns <<<"$PASS_ENV"
  for pattern in "${patterns[@]}"; do
    while IFS= read -r name; do
      # shellcheck disable=SC2053 # a pattern, such as WANDB_*
      [[ $name != $pattern ]] || values[$name]=${!name}
    done < <(compgen -e)
  done
  for name in "${ENVIRONMENT[@]}"; do values[${name%%=*}]=${name#*=}; done
  for name in "${!values[@]}"; do
    [[ ${values[$name]} != *$'\n'* ]] || die "the environment variable $name has several lines, which cannot be passed on"
    printf '%s=%s\n' "$name" "${values[$name]}"
  done | sort
}

# Writes that to ENV_FILE, which only its owner can read; ENV_FILE is empty where there is nothing.
# Values never stand in a command, a log or a dry run.
write_environment() {
  local lines
  lines=$(environment_lines)
  ENV_FILE=
  [[ -n $lines ]] || return 0
  ENV_FILE=$CACHE/$NAME/environment
  run mkdir -p "$CACHE/$NAME"
  if [[ $DRY_RUN == yes ]]; then
    printf '(umask 077 && %s > %s)\n' "$(quote_all "$0" ${ACTION:+render} "$SETTINGS" --print-environment)" "$(quote "$ENV_FILE")"
  else
    rm -f "$ENV_FILE"
    (umask 077 && printf '%s\n' "$lines" >"$ENV_FILE")
  fi
}

# on_all_workers DONE COMMAND: runs a command of worker.sh everywhere and counts the answers.
# gcloud leaves out nodes it cannot prepare and still succeeds, so its exit code is not enough.
on_all_workers() {
  local answers code=0 count
  worker_command all all "bash sr1_jax/worker.sh $2"
  if [[ $DRY_RUN == yes ]]; then
    run "${TPU_COMMAND[@]}"
    return
  fi
  answers=$("${TPU_COMMAND[@]}" | tee >(cat >&2)) || code=$?
  ((code == 0)) || die "exit code $code of: $(quote_all "${TPU_COMMAND[@]}")"
  count=$(grep -c "^SR1_WORKER [^ ]* $1" <<<"$answers" || true)
  ((count == WORKERS)) || die "'$1' was answered by $count of $WORKERS workers; on several workers the SSH key must be in the agent: ssh-add ~/.ssh/google_compute_engine"
}

# The arguments of python on each worker; ARG holds those of the settings file and after --.
training_arguments() {
  TRAINING=(-m sr1_jax.train --distributed "--config=$CONFIG" "--workdir=$RUN_FOLDER" "${ARG[@]}")
}
