#!/usr/bin/env bash
# What happens on a worker, a TPU VM: setup.sh copies this file there, the other scripts call it.
#
#   bash sr1_jax/worker.sh choose [--repo=URL --branch=NAME] --python=3.12 [--extras=A,B]
#   bash sr1_jax/worker.sh setup [--repo=URL --branch=NAME] --python=3.12 [--mount=BUCKET]
#   bash sr1_jax/worker.sh start [--log=FOLDER] [--environment] ARGUMENT …
#                                                python ARGUMENT … in the background
#   bash sr1_jax/worker.sh status                idle, running, finished, stopped or failed
#   bash sr1_jax/worker.sh stop [--seconds=N]
#   bash sr1_jax/worker.sh log [--lines=N] [--follow]
#   bash sr1_jax/worker.sh pack WORKDIR [--checkpoints]   for fetch.sh
#
# Everything is in the folder of this file: code/, venv/, requirements.lock (the versions that setup
# installs, written by choose), train.log, and hf_token and environment if there are any.
# Answers are lines "SR1_WORKER host …".

set -euo pipefail
HOME_FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$HOME_FOLDER"
PYTHON=$HOME_FOLDER/venv/bin/python

answer() { printf 'SR1_WORKER %s %s\n' "$(hostname)" "$*"; }

die() {
  printf 'worker.sh on %s: error: %s\n' "$(hostname)" "$*" >&2
  exit 1
}

# pid holds the process group and the boot it belongs to: numbers are reused after a reboot.
boot() { cat /proc/sys/kernel/random/boot_id; }
group() { cut -d ' ' -f 1 pid; }
alive() {
  # A zombie that nobody has collected yet is not alive.
  [[ -s pid && $(<pid) == *" $(boot)" ]] && pgrep --pgroup "$(group)" --runstates D,R,S,T,t,I >/dev/null
}

# The system Python of TPU images is too old (3.10 on Ubuntu 22.04); uv brings its own.
install_uv() {
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
}

# Exactly the versions of requirements.lock, whatever has been released since they were chosen.
install_python() {
  install_uv
  [[ -x $PYTHON ]] || uv venv --python "$1" venv
  uv pip install --python "$PYTHON" --requirement requirements.lock
  uv pip install --python "$PYTHON" --no-deps --editable code
  # Not jax.devices(): on a slice of several hosts that waits for all of them.
  "$PYTHON" -c 'import importlib.metadata, sr1_jax.train; print("jax", importlib.metadata.version("jax"))'
}

# Source: https://cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
  command -v gcsfuse >/dev/null && return
  local key=/usr/share/keyrings/cloud.google.asc release
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  curl --silent --show-error --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$release main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -y -qq gcsfuse
}

# Mounts are gone after a reboot, so each start looks again.
mount_bucket() {
  [[ -s bucket ]] || return 0
  local bucket folder
  bucket=$(<bucket) folder=/mnt/$(<bucket)
  mountpoint --quiet "$folder" && return
  sudo mkdir -p "$folder"
  sudo chown "$(id -u):$(id -g)" "$folder"
  # A checkpoint is written under another name and then renamed, which is off by default. Streamed
  # files would not be there before they are closed, synced or not.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --enable-streaming-writes=false "$bucket" "$folder"
}

# A file in a mounted bucket is uploaded when it is closed or synced, and training keeps its
# metrics open to the end: a preemption would lose them.
upload() { # upload WORKDIR
  while alive; do
    sync "$1"/metrics.jsonl "$1"/tensorboard/* 2>/dev/null || true
    sleep "${UPLOAD_SECONDS:-60}"
  done
}

# What choose and setup are told; sets the variables below.
REPO='' BRANCH=main PYTHON_VERSION=3.12 BUCKET='' EXTRAS=''
source_options() {
  local what=$1
  shift
  while (($#)); do
    case $1 in
      --repo=*) REPO=${1#*=} ;;
      --branch=*) BRANCH=${1#*=} ;;
      --python=*) PYTHON_VERSION=${1#*=} ;;
      --mount=*) BUCKET=${1#*=} ;;
      --extras=*) EXTRAS=${1#*=} ;;
      *) die "$what: unknown option $1" ;;
    esac
    shift
  done
}

# The code, in a folder that gives way only to a whole one.
get_code() {
  rm -rf code.new
  if [[ -n $REPO ]]; then
    git clone --quiet --depth 1 --branch "$BRANCH" "$REPO" code.new
  else
    mkdir code.new
    tar -xzf code.tar.gz -C code.new
  fi
  rm -rf code
  mv code.new code
}

# Chooses the versions of all packages and installs nothing.
choose() {
  source_options choose "$@"
  ! alive || die "training is running here; end it first: launch.sh SETTINGS --stop"
  get_code
  install_uv
  local extra extras options=()
  IFS=, read -ra extras <<<"$EXTRAS"
  for extra in "${extras[@]}"; do options+=("--extra=$extra"); done
  rm -f requirements.lock
  uv pip compile --quiet --python-version "$PYTHON_VERSION" "${options[@]}" --output-file requirements.lock code/setup.py - <<<'jax[tpu]'
  answer "has chosen $(grep -c == requirements.lock) versions"
}

setup() {
  source_options setup "$@"
  ! alive || die "training is running here; end it first: launch.sh SETTINGS --stop"
  [[ -s requirements.lock ]] || die "there is no requirements.lock: setup.sh brings it"
  [[ ! -e hf_token ]] || chmod 600 hf_token
  rm -f exit_code pid
  get_code
  install_python "$PYTHON_VERSION"
  printf '%s' "$BUCKET" >bucket
  if [[ -n $BUCKET ]]; then
    install_gcsfuse
    mount_bucket
  fi
  answer "is set up"
}

start() {
  local argument workdir='' log='' environment=no line command
  while (($#)); do
    case $1 in
      --log=*) log=${1#*=} ;;
      --environment) environment=yes ;;
      *) break ;;
    esac
    shift
  done
  [[ -x $PYTHON ]] || die "Python is not installed here yet: run setup.sh"
  ! alive || die "training is running already (process $(group)): launch.sh SETTINGS --restart ends it first"
  for argument; do
    if [[ $argument == --workdir=* ]]; then workdir=${argument#*=}; fi
  done
  mount_bucket
  rm -f exit_code
  echo "==== $(date --utc +%FT%TZ) python $*" >>train.log
  if [[ -s hf_token ]]; then
    HF_TOKEN=$(<hf_token)
    export HF_TOKEN
  fi
  if [[ $environment == yes ]]; then
    chmod 600 environment
    while IFS= read -r line; do export "${line?}"; done <environment
  fi
  export PYTHONUNBUFFERED=1
  command=("$PYTHON" "$@")
  [[ -z $log ]] || command=("$PYTHON" -m sr1_jax.logged "--folder=$log" -- "${command[@]}")
  # A session of its own: it outlives the SSH connection, and stop can end all of it.
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid bash -c 'code=0; cd code && "$@" || code=$?; echo "$code" >"$0.new"; mv "$0.new" "$0"' \
    "$HOME_FOLDER/exit_code" "${command[@]}" >>train.log 2>&1 </dev/null &
  local process=$!
  echo "$process $(boot)" >pid
  # The session is there a moment after the process; before that status would miss it.
  for _ in {1..100}; do
    ! alive && [[ ! -e exit_code ]] || break
    sleep 0.05
  done
  if [[ -s bucket ]]; then
    setsid bash "$HOME_FOLDER/worker.sh" upload "$workdir" >/dev/null 2>&1 </dev/null &
  fi
  answer "is started, process $process"
}

# The last error that training told, for status.
last_error() {
  tail --bytes=100000 train.log 2>/dev/null | sed -n 's/^error: //p' | tail --lines=1
}

status() {
  if alive; then
    answer "running, process $(group)"
  elif [[ ! -s pid ]]; then
    answer "idle"
  elif [[ ! -s exit_code ]]; then
    answer "failed, it vanished without an exit code (out of memory, or a reboot)"
  elif [[ $(<exit_code) == 0 ]]; then
    answer "finished"
  elif [[ $(<exit_code) == stopped ]]; then
    answer "stopped"
  else
    answer "failed, exit code $(<exit_code): $(last_error)"
  fi
}

stop() {
  local how='' seconds=600 until
  case ${1:-} in
    '') ;;
    --seconds=*) seconds=${1#*=} ;;
    *) die "stop: unknown option $1" ;;
  esac
  if alive; then
    kill -TERM "-$(group)"
    until=$((SECONDS + seconds))
    while alive && ((SECONDS < until)); do sleep 0.1; done
    if alive; then
      kill -KILL "-$(group)" || true
      how=", killed after $seconds s"
    fi
    echo stopped >exit_code
  fi
  answer "is stopped$how"
}

log() {
  local lines=20 follow=()
  while (($#)); do
    case $1 in
      --lines=*) lines=${1#*=} ;;
      --follow) follow=(--follow=name --retry) ;;
      *) die "log: unknown option $1" ;;
    esac
    shift
  done
  [[ -e train.log ]] || die "no log yet: training was not started here"
  tail --lines="$lines" "${follow[@]}" train.log | sed --unbuffered "s/^/[$(hostname)] /"
}

pack() {
  local workdir=$1 without=(--exclude=./programs --exclude=./checkpoints --exclude=./base --exclude=./data)
  [[ ${2:-} != --checkpoints ]] || without=(--exclude=./programs)
  [[ -d $workdir ]] || die "no folder $workdir on this worker"
  tar -czf results.tar.gz -C "$workdir" "${without[@]}" .
  answer "has packed $workdir"
}

case ${1:-} in
  choose | setup | start | status | stop | log | pack | upload) "$@" ;;
  *) die "unknown command '${1:-}'; there are choose, setup, start, status, stop, log, pack" ;;
esac
