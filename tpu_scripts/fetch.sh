#!/usr/bin/env bash
# Copies the results of a run to this machine: metrics, trajectories, result.json, curves, logs.
#
#   tpu_scripts/fetch.sh SETTINGS [--to=FOLDER] [--checkpoints] [--logs] [--dry-run]
#
#   SETTINGS        a filled-in copy of tpu_scripts/example.env
#   --to=FOLDER     where to (default runs/NAME); files that are there already are replaced
#   --checkpoints   also checkpoints/, base/ and data/, which can be large
#   --logs          also train.log of every worker, which must be up, as logs/NODE-WORKER.log
#   --dry-run       print the commands, run nothing
#
# A WORKDIR in a bucket is read from there, TPUs or not. Any other is fetched from worker 0 of
# slice 0, which must be up. Compiled programs (programs/) are never fetched.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

TARGET='' ALL=no LOGS=no
while (($#)); do
  case $1 in
    --to=?*) TARGET=${1#*=} ;;
    --checkpoints) ALL=yes ;;
    --logs) LOGS=yes ;;
    *) common_option "$1" ;;
  esac
  shift
done
load_settings
need_commands gcloud tar
TARGET=${TARGET:-runs/$NAME}

run mkdir -p "$TARGET"
if [[ $WORKDIR == gs://* ]]; then
  FLAGS=(--recursive '--exclude=^programs/.*')
  [[ $ALL == yes ]] || FLAGS=(--recursive '--exclude=^(checkpoints|base|data|programs)/.*')
  run gcloud storage rsync "$WORKDIR" "$TARGET" "--project=$PROJECT" "${FLAGS[@]}"
else
  PACK=(pack "$WORKDIR")
  [[ $ALL == no ]] || PACK+=(--checkpoints)
  run mkdir -p "$CACHE/$NAME"
  worker_command 0 0 "bash sr1_jax/worker.sh $(quote_all "${PACK[@]}")"
  run "${TPU_COMMAND[@]}"
  copy_from_worker 0 0 sr1_jax/results.tar.gz "$CACHE/$NAME/results.tar.gz"
  run tar -xzf "$CACHE/$NAME/results.tar.gz" -C "$TARGET"
fi
if [[ $LOGS == yes ]]; then
  run mkdir -p "$TARGET/logs"
  for ((node = 0; node < NODES; node++)); do
    for ((worker = 0; worker < VMS; worker++)); do
      copy_from_worker "$node" "$worker" sr1_jax/train.log "$TARGET/logs/$node-$worker.log"
    done
  done
fi
[[ $DRY_RUN == yes ]] || note "results are in $TARGET"
