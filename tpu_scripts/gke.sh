#!/usr/bin/env bash
# Runs training on Google Kubernetes Engine, as a JobSet: one job a slice, one pod a host.
#
#   tpu_scripts/gke.sh ACTION SETTINGS [OPTION …] [-- ARGUMENT …]
#
#   render         print the manifest (jobset.yaml.template, filled in)
#   image          build GKE_IMAGE from this checkout with docker, and push it
#   pools          create a node pool for each slice
#   apply          start the run: token, environment, headless service, JobSet
#   watch          state and logs: [--follow] [--lines=N]
#   delete         end the run: [--yes]; what is in buckets stays, the node pools stay
#   delete-pools   delete the node pools of this run: [--yes]
#
#   SETTINGS    a filled-in copy of tpu_scripts/example.env, with GKE_CLUSTER, GKE_LOCATION, GKE_IMAGE
#   --dry-run   print the commands, run nothing
#   ARGUMENT    further arguments of sr1_jax.train, for render and apply
#   --print-environment   with render: print the environment instead, secrets included
#
# The cluster needs the JobSet controller, 0.8 or newer. After a preemption or a crash it restarts all
# slices, at most MAX_RESTARTS times; training goes on from the last checkpoint in WORKDIR. Where the
# exit code says that it would fail again (sr1_jax/exit_codes.py) the JobSet fails at once. Node pools
# cost money as long as they have nodes, whether or not anything runs on them.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

ACTION='' FOLLOW=() LINES_SHOWN=20 PRINT=no MORE=()
while (($#)); do
  case $1 in
    --follow) FOLLOW=(--follow) ;;
    --lines=*) LINES_SHOWN=$(whole_number --lines "${1#*=}") ;;
    --yes) ASSUME_YES=yes ;;
    --print-environment) PRINT=yes ;;
    --)
      shift
      MORE=("$@")
      break
      ;;
    render | image | pools | apply | watch | delete | delete-pools) ACTION=$1 ;;
    -*) common_option "$1" ;;
    *)
      [[ -n $ACTION ]] || usage_error "unknown action $1"
      common_option "$1"
      ;;
  esac
  shift
done
[[ -n $ACTION ]] || usage_error "which action?"
load_settings
if [[ $PRINT == yes ]]; then
  environment_lines
  exit
fi

ARG+=("${MORE[@]}")
MANIFEST=$CACHE/$NAME/jobset.yaml
CLUSTER=("--project=$PROJECT" "--location=$GKE_LOCATION")
KUBECTL=(kubectl "--context=gke_${PROJECT}_${GKE_LOCATION}_$GKE_CLUSTER" "--namespace=$GKE_NAMESPACE")
SELECTOR=--selector=jobset.sigs.k8s.io/jobset-name=$NAME

# GKE has slices of several hosts and those of one; multislice takes the former only, so two and
# more slices of eight chips are of two hosts each.
# Source: https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
check_gke() {
  local key chips=1 axes=2 factor factors problems=()
  [[ $ACCELERATOR_TYPE != @(v4|v5p|tpu7x)-* ]] || axes=3
  for key in GKE_CLUSTER GKE_LOCATION GKE_IMAGE; do
    [[ -n ${!key} ]] || problems+=("$SETTINGS: $key is missing; gke.sh needs it")
  done
  HOSTS=$VMS
  if ((NODES > 1 && VMS == 1)); then
    HOSTS=$((CHIPS / 4))
    ((HOSTS > 1)) || problems+=("$(setting_at NODES): on GKE several slices need more than one host each, $ACCELERATOR_TYPE has one")
  fi
  CHIPS_PER_HOST=$((HOSTS > 0 ? CHIPS / HOSTS : CHIPS))
  if [[ -n $GKE_TOPOLOGY ]]; then
    IFS=x read -ra factors <<<"$GKE_TOPOLOGY"
    for factor in "${factors[@]}"; do chips=$((chips * 10#$factor)); done
    if ((chips != CHIPS)); then
      problems+=("$(setting_at GKE_TOPOLOGY): that is $chips chips, $ACCELERATOR_TYPE has $CHIPS")
    elif ((${#factors[@]} != axes)); then
      problems+=("$(setting_at GKE_TOPOLOGY): $ACCELERATOR_TYPE needs $axes numbers")
    fi
    TOPOLOGY=$GKE_TOPOLOGY
  elif [[ -z $TOPOLOGY ]]; then
    problems+=("$SETTINGS: GKE_TOPOLOGY is missing; $ACCELERATOR_TYPE comes in several shapes")
  fi
  if ((${#problems[@]})); then
    printf 'tpu_scripts: error: %s\n' "${problems[@]}" >&2
    exit 2
  fi
}

# A string as JSON, which YAML reads, too.
json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf '"%s"' "${text//$'\t'/\\t}"
}

# Kubernetes reads $(NAME) in commands as a variable, and $$ as a dollar sign.
command_list() {
  local word separator=
  printf '['
  for word; do
    printf '%s' "$separator"
    json "${word//\$/\$\$}"
    separator=', '
  done
  printf ']'
}

# A block of the manifest, or none: lines without anything are left out.
fill() { MANIFEST_TEXT=${MANIFEST_TEXT//"@$1@"/"$2"}; }

render() {
  local folder annotations='' account='' spot='' mounts='' volumes='' environment='' start
  start="exec python -m sr1_jax.logged --folder=$(quote "$RUN_FOLDER/logs") -- python \"\$@\""
  if [[ -n $BUCKET ]]; then
    # The sidecar's usual quarter of a core, 256 MiB and 5 GiB are less than one checkpoint needs.
    # "0": no limit, as the machine is ours alone.
    # Source: https://cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-sidecar
    annotations=$'            metadata:\n              annotations:\n                gke-gcsfuse/volumes: "true"'
    for folder in cpu-limit memory-limit ephemeral-storage-limit; do
      annotations+=$'\n                gke-gcsfuse/'"$folder"$': "0"'
    done
    for folder in cpu-request:2 memory-request:4Gi ephemeral-storage-request:50Gi; do
      annotations+=$'\n                gke-gcsfuse/'"${folder%:*}: \"${folder#*:}\""
    done
    mounts+=$'\n                    - name: bucket\n                      mountPath: '"$(json "/mnt/$BUCKET")"
    volumes+=$'\n                - name: bucket\n                  csi:\n                    driver: gcsfuse.csi.storage.gke.io'
    volumes+=$'\n                    volumeAttributes:\n                      bucketName: '"$(json "$BUCKET")"
    volumes+=$'\n                      mountOptions: implicit-dirs,rename-dir-limit=200000,write:enable-streaming-writes:false'
    # Files that training keeps open are uploaded when they are synced; see upload in worker.sh.
    folder=$(quote "$RUN_FOLDER")
    start="while sleep 60; do sync $folder/metrics.jsonl $folder/tensorboard/*; done 2>/dev/null & $start"
  fi
  if [[ -n $HF_TOKEN_FILE ]]; then
    # shellcheck disable=SC2016 # expanded in the pod
    start='HF_TOKEN=$(cat /etc/sr1_jax/hf_token); export HF_TOKEN; '$start
    mounts+=$'\n                    - name: token\n                      mountPath: /etc/sr1_jax\n                      readOnly: true'
    volumes+=$'\n                - name: token\n                  secret:\n                    secretName: '"$NAME-token"
  fi
  if [[ -n $(environment_lines) ]]; then
    environment=$'                  envFrom:\n                    - secretRef:\n                        name: '"$NAME-environment"
  fi
  [[ -z $GKE_SERVICE_ACCOUNT ]] || account="              serviceAccountName: $GKE_SERVICE_ACCOUNT"
  if [[ $CAPACITY == spot ]]; then
    spot=$'                cloud.google.com/gke-spot: "true"\n              tolerations:\n                - key: cloud.google.com/gke-spot'
    spot+=$'\n                  operator: Equal\n                  value: "true"\n                  effect: NoSchedule'
  fi
  training_arguments
  MANIFEST_TEXT=$(<"$SCRIPTS/jobset.yaml.template")
  fill SCRIPT tpu_scripts/gke.sh
  fill NAME "$NAME"
  fill NAMESPACE "$GKE_NAMESPACE"
  fill MAX_RESTARTS "$MAX_RESTARTS"
  fill FINAL_CODES "$(IFS=, && echo "${FINAL_CODES[*]}")"
  fill GRACE_SECONDS "$GRACE_SECONDS"
  fill ENVIRONMENT "$environment"
  fill NODES "$NODES"
  fill HOSTS "$HOSTS"
  fill POD_ANNOTATIONS "$annotations"
  fill SERVICE_ACCOUNT "$account"
  fill GKE_ACCELERATOR "$GKE_ACCELERATOR"
  fill TOPOLOGY "$TOPOLOGY"
  fill SPOT "$spot"
  fill CHIPS_PER_HOST "$CHIPS_PER_HOST"
  fill VOLUME_MOUNTS "${mounts:+                  volumeMounts:$mounts}"
  fill VOLUMES "${volumes:+              volumes:$volumes}"
  # Last, so that nothing in them is taken for a name to fill in.
  fill IMAGE "$(json "$GKE_IMAGE")"
  fill COMMAND "$(command_list bash -c "$start" train)"
  fill ARGS "$(command_list "${TRAINING[@]}")"
  grep -v '^$' <<<"$MANIFEST_TEXT"
}

apply() {
  run gcloud container clusters get-credentials "$GKE_CLUSTER" "${CLUSTER[@]}" --quiet
  if [[ -n $HF_TOKEN_FILE ]]; then
    run "${KUBECTL[@]}" delete secret "$NAME-token" --ignore-not-found
    run "${KUBECTL[@]}" create secret generic "$NAME-token" "--from-file=hf_token=$HF_TOKEN_FILE"
  fi
  write_environment
  if [[ -n $ENV_FILE ]]; then
    run "${KUBECTL[@]}" delete secret "$NAME-environment" --ignore-not-found
    run "${KUBECTL[@]}" create secret generic "$NAME-environment" "--from-env-file=$ENV_FILE"
  fi
  run mkdir -p "$CACHE/$NAME"
  if [[ $DRY_RUN == yes ]]; then
    printf '%s > %s\n' "$(quote_all "$SCRIPTS/gke.sh" render "$SETTINGS" ${MORE[@]+-- "${MORE[@]}"})" "$(quote "$MANIFEST")"
  else
    render >"$MANIFEST"
  fi
  run "${KUBECTL[@]}" apply "--filename=$MANIFEST"
  [[ $DRY_RUN == yes ]] || note "to look: $(quote_all "$SCRIPTS/gke.sh" watch "$SETTINGS" --follow)"
}

# TPU7x slices of several hosts are placed by a policy, which is of a region, instead of a flag.
# Source: https://cloud.google.com/kubernetes-engine/docs/concepts/tpu-ironwood and
# https://cloud.google.com/sdk/gcloud/reference/compute/resource-policies/create/workload-policy
PLACE=("--project=$PROJECT" "--region=${ZONE%-*}")
placed_by_policy() { [[ $ACCELERATOR_TYPE == tpu7x-* ]] && ((HOSTS > 1)); }

pools() {
  # Better none than a pool that is paid for twice.
  [[ $CAPACITY != reserved || -n $RESERVATION ]] || die "$SETTINGS: CAPACITY=reserved needs RESERVATION, the name of one"
  local slice flags=("--machine-type=$GKE_MACHINE-${CHIPS_PER_HOST}t" "--num-nodes=$HOSTS")
  if placed_by_policy; then
    run gcloud compute resource-policies create workload-policy "$NAME-$TOPOLOGY" "${PLACE[@]}" --type=HIGH_THROUGHPUT "--accelerator-topology=$TOPOLOGY" --quiet
    flags+=("--placement-policy=$NAME-$TOPOLOGY")
  elif ((HOSTS > 1)); then
    flags+=("--tpu-topology=$TOPOLOGY")
  fi
  case $CAPACITY in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reservation-affinity=specific "--reservation=$RESERVATION") ;;
  esac
  [[ $DRY_RUN == yes ]] || trap 'note "node pools cost money until they are deleted: $(quote_all "$SCRIPTS/gke.sh" delete-pools "$SETTINGS")"' EXIT
  for ((slice = 0; slice < NODES; slice++)); do
    run gcloud container node-pools create "$NAME-$slice" "--cluster=$GKE_CLUSTER" "${CLUSTER[@]}" "--node-locations=$ZONE" "${flags[@]}" --quiet
  done
}

delete_pools() {
  local slice left=()
  confirm "Delete the $NODES node pool(s) $NAME-0 … of cluster $GKE_CLUSTER in $PROJECT?"
  for ((slice = 0; slice < NODES; slice++)); do
    # One that cannot be deleted, or is gone, should not let the others cost on.
    (run gcloud container node-pools delete "$NAME-$slice" "--cluster=$GKE_CLUSTER" "${CLUSTER[@]}" --quiet) || left+=("$NAME-$slice")
  done
  ((${#left[@]} == 0)) || die "not deleted, and may cost money: ${left[*]}; look: $(quote_all gcloud container node-pools list "--cluster=$GKE_CLUSTER" "${CLUSTER[@]}")"
  if placed_by_policy; then
    run gcloud compute resource-policies delete "$NAME-$TOPOLOGY" "${PLACE[@]}" --quiet
  fi
}

delete_run() {
  confirm "Delete JobSet $NAME in namespace $GKE_NAMESPACE of cluster $GKE_CLUSTER in $PROJECT?"
  run "${KUBECTL[@]}" delete "jobset/$NAME" "service/$NAME" "secret/$NAME-token" "secret/$NAME-environment" --ignore-not-found
  [[ $DRY_RUN == yes ]] || note "node pools stay and may cost money; to delete them: $(quote_all "$SCRIPTS/gke.sh" delete-pools "$SETTINGS")"
}

watch() {
  if ((${#FOLLOW[@]} == 0)); then
    run "${KUBECTL[@]}" get "jobset/$NAME"
    run "${KUBECTL[@]}" get pods "$SELECTOR" --output=custom-columns=POD:.metadata.name,PHASE:.status.phase,NODE:.spec.nodeName,CODE:.status.containerStatuses[*].state.terminated.exitCode
  fi
  run "${KUBECTL[@]}" logs "$SELECTOR" --prefix "--tail=$LINES_SHOWN" "--max-log-requests=$((NODES * HOSTS))" "${FOLLOW[@]}"
}

check_gke
case $ACTION in
  render) render ;;
  image)
    need_commands docker
    run docker build "--file=$SCRIPTS/Dockerfile" "--build-arg=EXTRAS=$EXTRAS" "--tag=$GKE_IMAGE" "$ROOT"
    run docker push "$GKE_IMAGE"
    ;;
  pools)
    need_commands gcloud
    pools
    ;;
  apply)
    need_commands gcloud kubectl
    apply
    ;;
  watch)
    need_commands kubectl
    watch
    ;;
  delete)
    need_commands kubectl
    delete_run
    ;;
  delete-pools)
    need_commands gcloud
    delete_pools
    ;;
esac
