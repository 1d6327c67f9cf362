#!/usr/bin/env bash
# What happens on a worker, a TPU VM: setup.sh copies this file there, the other scripts call it.
#
#   bash sr1_jax/worker.sh setup [--repo=URL --branch=NAME] --python=3.12 [--mount=BUCKET]
#   bash sr1_jax/worker.sh start ARGUMENT …      python ARGUMENT … in the background
#   bash sr1_jax/worker.sh status                idle, running, finished, stopped or failed
#   bash sr1_jax/worker.sh stop
#   bash sr1_jax/worker.sh log [--lines=N] [--follow]
#   bash sr1_jax/worker.sh pack WORKDIR [--checkpoints]   for fetch.sh
#
# Everything is in the folder of this file: code/, venv/, train.log, and hf_token if there is one.
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
install_python() {
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
  [[ -x $PYTHON ]] || uv venv --python "$1" venv
  uv pip install --python "$PYTHON" --editable code 'jax[tpu]'
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
  # A checkpoint is written under another name and then renamed, which is off by default.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 "$bucket" "$folder"
}

# A file in a mounted bucket is uploaded when it is closed or synced, and training keeps its
# metrics open to the end: a preemption would lose them.
upload() { # upload WORKDIR
  while alive; do
    sync "$1"/metrics.jsonl "$1"/tensorboard/* 2>/dev/null || true
    sleep "${UPLOAD_SECONDS:-60}"
  done
}

setup() {
  local repo='' branch=main python=3.12 bucket=''
  while (($#)); do
    case $1 in
      --repo=*) repo=${1#*=} ;;
      --branch=*) branch=${1#*=} ;;
      --python=*) python=${1#*=} ;;
      --mount=*) bucket=${1#*=} ;;
      *) die "setup: unknown option $1" ;;
    esac
    shift
  done
  ! alive || die "training is running here; end it first: launch.sh SETTINGS --stop"
  [[ ! -e hf_token ]] || chmod 600 hf_token
  rm -rf code exit_code pid
  if [[ -n $repo ]]; then
    git clone --quiet --depth 1 --branch "$branch" "$repo" code
  else
    mkdir code
    tar -xzf code.tar.gz -C code
  fi
  install_python "$python"
  printf '%s' "$bucket" >bucket
  if [[ -n $bucket ]]; then
    install_gcsfuse
    mount_bucket
  fi
  answer "is set up"
}

start() {
  [[ -x $PYTHON ]] || die "Python is not installed here yet: run setup.sh"
  ! alive || die "training is running already (process $(group)): launch.sh SETTINGS --restart ends it first"
  local argument workdir=''
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
  export PYTHONUNBUFFERED=1
  # A session of its own: it outlives the SSH connection, and stop can end all of it.
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid bash -c 'code=0; cd code && "$@" || code=$?; echo "$code" >"$0.new"; mv "$0.new" "$0"' \
    "$HOME_FOLDER/exit_code" "$PYTHON" "$@" >>train.log 2>&1 </dev/null &
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
    answer "failed, exit code $(<exit_code)"
  fi
}

stop() {
  local how=''
  if alive; then
    kill -TERM "-$(group)"
    for _ in {1..300}; do
      alive || break
      sleep 0.1
    done
    if alive; then
      kill -KILL "-$(group)" || true
      how=', killed after 30 s'
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
  local workdir=$1 without=(--exclude=./checkpoints --exclude=./base --exclude=./data)
  [[ ${2:-} != --checkpoints ]] || without=()
  [[ -d $workdir ]] || die "no folder $workdir on this worker"
  tar -czf results.tar.gz -C "$workdir" "${without[@]}" .
  answer "has packed $workdir"
}

case ${1:-} in
  setup | start | status | stop | log | pack | upload) "$@" ;;
  *) die "unknown command '${1:-}'; there are setup, start, status, stop, log, pack" ;;
esac
