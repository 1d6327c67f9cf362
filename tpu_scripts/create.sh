#!/usr/bin/env bash
# Creates the TPUs of a settings file and waits until they are ready.
#
#   tpu_scripts/create.sh SETTINGS [--no-wait] [--dry-run]
#
#   SETTINGS    a filled-in copy of tpu_scripts/example.env
#   --no-wait   come back as soon as the request is accepted
#   --dry-run   print the commands, run nothing
#
# CREATE_WITH=queued-resource asks for NODES slices in one request that waits in a queue;
# CREATE_WITH=tpu-vm makes one slice at once or fails. TPUs cost money from the moment they are
# ready until tpu_scripts/teardown.sh has deleted them, whether or not anything runs on them.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

WAIT=yes
while (($#)); do
  case $1 in
    --no-wait) WAIT=no ;;
    *) common_option "$1" ;;
  esac
  shift
done
load_settings
need_commands gcloud

FLAGS=("--accelerator-type=$ACCELERATOR_TYPE")
if [[ $CREATE_WITH == tpu-vm ]]; then
  FLAGS+=("--version=$RUNTIME_VERSION")
elif ((NODES == 1)); then
  FLAGS+=("--runtime-version=$RUNTIME_VERSION" "--node-id=$NAME")
else
  FLAGS+=("--runtime-version=$RUNTIME_VERSION" "--node-count=$NODES" "--node-prefix=$NAME")
fi
case $CAPACITY in
  spot) FLAGS+=(--spot) ;;
  reserved) FLAGS+=(--reserved) ;;
esac
[[ -z $VALID_UNTIL ]] || FLAGS+=("--valid-until-duration=$VALID_UNTIL")
[[ -z $NETWORK ]] || FLAGS+=("--network=$NETWORK")
[[ -z $SUBNETWORK ]] || FLAGS+=("--subnetwork=$SUBNETWORK")
[[ -z $SERVICE_ACCOUNT ]] || FLAGS+=("--service-account=$SERVICE_ACCOUNT")

trap warn_cost EXIT
tpu_command create "$NAME" "${FLAGS[@]}"
run "${TPU_COMMAND[@]}"
[[ $WAIT == no ]] || wait_for ready
