#!/usr/bin/env bash
# Starts training on all workers, in the background; it goes on when this shell ends.
#
#   tpu_scripts/launch.sh SETTINGS [--restart | --stop] [--dry-run] [-- ARGUMENT …]
#
#   SETTINGS    a filled-in copy of tpu_scripts/example.env
#   --restart   end a run that is still going first
#   --stop      end the run, start none
#   --dry-run   print the commands, run nothing
#   ARGUMENT    further arguments of sr1_jax.train, such as --config.seed=3
#
# A run started again with the same WORKDIR goes on from its last checkpoint. The output of each
# worker is in sr1_jax/train.log in its home folder: tpu_scripts/watch.sh shows it.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

STOP=no START=yes MORE=()
while (($#)); do
  case $1 in
    --restart) STOP=yes ;;
    --stop) STOP=yes START=no ;;
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

ARG+=("${MORE[@]}")
training_arguments
[[ $STOP == no ]] || on_all_workers "is stopped" stop
[[ $START == no ]] || on_all_workers "is started" "$(quote_all start "${TRAINING[@]}")"
[[ $DRY_RUN == yes || $START == no ]] || note "started on $WORKERS workers; to look: $SCRIPTS/watch.sh $SETTINGS --follow"
