#!/usr/bin/env bash
# Deletes the TPUs of a settings file, asks first, and makes sure that nothing is left.
#
#   tpu_scripts/teardown.sh SETTINGS [--yes] [--dry-run]
#
#   SETTINGS    a filled-in copy of tpu_scripts/example.env
#   --yes       do not ask
#   --dry-run   print the commands, run nothing
#
# Everything on the disks of the TPU VMs is lost; what is in buckets stays.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

while (($#)); do
  case $1 in
    --yes) ASSUME_YES=yes ;;
    *) common_option "$1" ;;
  esac
  shift
done
load_settings
need_commands gcloud

# The nodes that the request makes, by their exact names: another run may be called $NAME-7.
NODE_NAMES=$NAME
((NODES == 1)) || NODE_NAMES="$NAME-($(seq -s '|' 0 $((NODES - 1))))"
LIST=(gcloud compute tpus tpu-vm list "--project=$PROJECT" "--zone=$ZONE" --quiet
  "--filter=name~\"/nodes/$NODE_NAMES\$\"" '--format=value(name.basename())')

if [[ $DRY_RUN == yes ]]; then
  state_command
  run "${TPU_COMMAND[@]}"
  STATE=ACTIVE
else
  STATE=$(resource_state)
fi
[[ $STATE != UNKNOWN ]] || die "gcloud cannot tell whether $NAME exists; nothing was deleted, it may cost money"

trap '[[ $? == 0 ]] || warn_cost' EXIT
if [[ $STATE == ABSENT ]]; then
  note "there is no $NAME in $ZONE of $PROJECT"
else
  confirm "Delete $NAME ($NODES x $ACCELERATOR_TYPE, $STATE) in $ZONE of $PROJECT, and all on its disks?"
  FORCE=()
  [[ $CREATE_WITH == tpu-vm ]] || FORCE=(--force) # its nodes, too
  tpu_command delete "$NAME" "${FORCE[@]}"
  [[ $STATE == DELETING ]] || run "${TPU_COMMAND[@]}"
  wait_for gone
fi

remark "nodes that are left are deleted, too"
if [[ $DRY_RUN == yes ]]; then
  run "${LIST[@]}"
else
  LEFT=$("${LIST[@]}") || die "cannot list the nodes in $ZONE: look at https://console.cloud.google.com/compute/tpus"
  for NODE in $LEFT; do
    confirm "Delete node $NODE, left over in $ZONE of $PROJECT?"
    run gcloud compute tpus tpu-vm delete "$NODE" "--project=$PROJECT" "--zone=$ZONE" --quiet
  done
  note "nothing of $NAME is left in $ZONE of $PROJECT"
fi
