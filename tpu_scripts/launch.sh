#!/usr/bin/env bash
# Starts training on all workers, in the background; it goes on when this shell ends.
#
#   tpu_scripts/launch.sh SETTINGS [--restart | --stop] [--dry-run] [-- ARGUMENT …]
#
#   SETTINGS              a filled-in copy of tpu_scripts/example.env
#   --restart             end a run that is still going first
#   --stop                end the run, start none
#   --print-environment   print the environment of training, secrets included, and run nothing
#   --dry-run             print the commands, run nothing
#   ARGUMENT              further arguments of sr1_jax.train, such as --config.seed=3
#
# A run started again with the same WORKDIR goes on from its last checkpoint. A run that is ended may
# save first, at most GRACE_SECONDS. The output of each worker is in sr1_jax/train.log in its home
# folder, which tpu_scripts/watch.sh shows, and every minute in WORKDIR/logs.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

STOP=no START=yes PRINT=no MORE=()
while (($#)); do
  case $1 in
    --restart) STOP=yes ;;
    --stop) STOP=yes START=no ;;
    --print-environment) PRINT=yes ;;
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
if [[ $PRINT == yes ]]; then
  environment_lines
  exit
fi
need_commands gcloud

ARG+=("${MORE[@]}")
training_arguments
[[ $STOP == no ]] || on_all_workers "is stopped" "stop --seconds=$GRACE_SECONDS"
[[ $START == yes ]] || exit 0
write_environment
OPTIONS=("--log=$RUN_FOLDER/logs")
if [[ -n $ENV_FILE ]]; then
  copy_to_workers "$ENV_FILE" sr1_jax/environment
  OPTIONS+=(--environment)
fi
on_all_workers "is started" "$(quote_all start "${OPTIONS[@]}" "${TRAINING[@]}")"
[[ $DRY_RUN == yes ]] || note "started on $WORKERS workers; to look: $SCRIPTS/watch.sh $SETTINGS --follow"
