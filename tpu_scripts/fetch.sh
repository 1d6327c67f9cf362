#!/usr/bin/env bash
# Copies the results of a run to this machine: metrics, trajectories, result.json, curves.
#
#   tpu_scripts/fetch.sh SETTINGS [--to=FOLDER] [--checkpoints] [--dry-run]
#
#   SETTINGS        a filled-in copy of tpu_scripts/example.env
#   --to=FOLDER     where to (default runs/NAME); files that are there already are replaced
#   --checkpoints   also checkpoints/, base/ and data/, which can be large
#   --dry-run       print the commands, run nothing
#
# A WORKDIR in a bucket is read from there, TPUs or not. Any other is fetched from worker 0 of
# slice 0, which must be up.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

TARGET='' ALL=no
while (($#)); do
  case $1 in
    --to=?*) TARGET=${1#*=} ;;
    --checkpoints) ALL=yes ;;
    *) common_option "$1" ;;
  esac
  shift
done
load_settings
need_commands gcloud tar
TARGET=${TARGET:-runs/$NAME}

run mkdir -p "$TARGET"
if [[ $WORKDIR == gs://* ]]; then
  FLAGS=(--recursive)
  [[ $ALL == yes ]] || FLAGS+=('--exclude=^(checkpoints|base|data)/.*')
  run gcloud storage rsync "$WORKDIR" "$TARGET" "--project=$PROJECT" "${FLAGS[@]}"
else
  PACK=(pack "$WORKDIR")
  [[ $ALL == no ]] || PACK+=(--checkpoints)
  run mkdir -p "$CACHE/$NAME"
  worker_command 0 0 "bash sr1_jax/worker.sh $(quote_all "${PACK[@]}")"
  run "${TPU_COMMAND[@]}"
  NODE_FLAG=()
  [[ $CREATE_WITH == tpu-vm ]] || NODE_FLAG=(--node=0)
  tpu_command scp "$NAME:sr1_jax/results.tar.gz" "$CACHE/$NAME/results.tar.gz" "${NODE_FLAG[@]}" --worker=0
  run "${TPU_COMMAND[@]}"
  run tar -xzf "$CACHE/$NAME/results.tar.gz" -C "$TARGET"
fi
[[ $DRY_RUN == yes ]] || note "results are in $TARGET"
