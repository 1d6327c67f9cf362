# shellcheck shell=bash
# Settings files: which keys there are, what their values must look like, what follows from an
# accelerator type. Read by lib.sh; nothing in a settings file is ever executed.
# shellcheck disable=SC2034 # much of what is set here is for the scripts

# key;default;pattern;what is expected. "required" stands for a missing default.
KEYS=(
  'PROJECT;required;^[a-z][a-z0-9.:-]{4,}[a-z0-9]$;a Google Cloud project id such as my-project-123'
  'ZONE;required;^[a-z]+-[a-z]+[0-9]+-[a-z]$;a zone such as us-east5-b (a region and a letter)'
  'NAME;required;^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$;at most 40 lower-case letters, digits and dashes, a letter first'
  'ACCELERATOR_TYPE;required;^;a type such as v4-8, v5litepod-16, v5p-32, v6e-8, tpu7x-16'
  'RUNTIME_VERSION;;^[a-z0-9.-]*$;a TPU software version such as v2-alpha-tpuv6e, or nothing for the usual one'
  'NODES;1;^[1-9][0-9]{0,2}$;the number of slices, 1 or more'
  'CREATE_WITH;queued-resource;^(queued-resource|tpu-vm)$;queued-resource or tpu-vm'
  'CAPACITY;required;^(spot|on-demand|reserved)$;spot, on-demand or reserved'
  'RESERVATION;;^[a-z0-9./-]*$;the name of a reservation for gke.sh, or nothing'
  'VALID_UNTIL;;^([0-9]+[smhd])*$;how long a request may wait, such as 6h, or nothing'
  'NETWORK;;^[a-z0-9./-]*$;the name of a network, or nothing'
  'SUBNETWORK;;^[a-z0-9./-]*$;the name of a subnetwork, or nothing'
  'SERVICE_ACCOUNT;;^([^@ ]+@[^@ ]+)?$;the e-mail address of a service account, or nothing'
  'REPO;;^((https|ssh)://[^ ]+|git@[^ ]+)?$;a git URL to clone, or nothing to copy this checkout'
  'BRANCH;main;^[A-Za-z0-9][A-Za-z0-9._/-]*$;a branch or tag of REPO'
  'PYTHON_VERSION;3.12;^3\.[0-9]+$;a Python version such as 3.12'
  'CONFIG;required;^[^ -][^ ]*\.py(:[^ ]*)?$;a config file such as configs/demo.py'
  'WORKDIR;required;^(gs://[a-z0-9][a-z0-9._-]+/[^ ]+|/[^ ]+)$;gs://bucket/folder or an absolute path'
  'MOUNT;no;^(yes|no)$;yes (gcsfuse mounts the bucket of WORKDIR) or no'
  'EXTRAS;;^([a-z]+(,[a-z]+)*)?$;extras of setup.py with commas, such as wandb, or nothing'
  'LOCK_FILE;;^[^ ]*$;a file of pinned versions, or nothing for one that setup.sh makes'
  'PASS_ENV;;^([A-Za-z_][A-Za-z0-9_]*\*?( +|$))*$;names of environment variables with spaces, such as XLA_FLAGS WANDB_*'
  'HF_TOKEN_FILE;;^.*$;a file that holds a Hugging Face token, or nothing'
  'POLL_SECONDS;30;^[0-9]+$;whole seconds'
  'READY_TIMEOUT_SECONDS;0;^[0-9]+$;whole seconds, 0 for no limit'
  'MAX_RESTARTS;20;^[0-9]+$;a whole number'
  'BACKOFF_SECONDS;60;^[0-9]+$;whole seconds'
  'GRACE_SECONDS;600;^[1-9][0-9]*$;whole seconds, 1 or more'
  'GKE_CLUSTER;;^[a-z0-9-]*$;the name of a GKE cluster'
  'GKE_LOCATION;;^([a-z]+-[a-z]+[0-9]+(-[a-z])?)?$;the region or zone of the cluster, such as us-east5'
  'GKE_NAMESPACE;default;^[a-z0-9-]+$;a Kubernetes namespace'
  'GKE_IMAGE;;^[^ ]*$;a container image such as us-docker.pkg.dev/my-project/images/sr1_jax:1'
  'GKE_SERVICE_ACCOUNT;;^[a-z0-9-]*$;a Kubernetes service account, or nothing'
  'GKE_TOPOLOGY;;^([0-9]+(x[0-9]+){1,2})?$;a topology such as 4x4x8, or nothing for the usual one'
)

_problems=()
_problem() { _problems+=("$1"); }

# Where a key was set, as "file:line: KEY=value".
setting_at() {
  local line=_line_$1
  if [[ -n ${!line:-} ]]; then
    printf '%s:%s: %s=%s' "$SETTINGS" "${!line}" "$1" "${!1}"
  else
    printf '%s: %s is %s (default)' "$SETTINGS" "$1" "${!1:-empty}"
  fi
}

# Reads the lines of the settings file into variables. Nothing in the file is executed.
_read_settings() {
  local text number=0 key value row known=' ARG ENV '
  local double='^"([^"]*)"[[:space:]]*(#.*)?$' single="^'([^']*)'[[:space:]]*(#.*)?\$"
  for row in "${KEYS[@]}"; do known+="${row%%;*} "; done
  while IFS= read -r text || [[ -n $text ]]; do
    number=$((number + 1))
    text=${text%$'\r'}
    [[ $text =~ ^[[:space:]]*(#.*)?$ ]] && continue
    if ! [[ $text =~ ^[[:space:]]*([A-Za-z_][A-Za-z_0-9]*)=[[:space:]]*(.*)$ ]]; then
      _problem "$SETTINGS:$number: '$text' is not KEY=value"
      continue
    fi
    key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    if [[ $value =~ $double || $value =~ $single ]]; then
      value=${BASH_REMATCH[1]}
    elif [[ $value == [\"\']* ]]; then
      _problem "$SETTINGS:$number: $key=$value: the quote is not closed at the end of the line"
      continue
    else
      value=${value%%[[:space:]]#*}
      value=${value%"${value##*[![:space:]]}"}
    fi
    if [[ $known != *" $key "* ]]; then
      _problem "$SETTINGS:$number: $key=$value: unknown key; there are:$known"
    elif [[ $key == ARG ]]; then
      ARG+=("$value")
    elif [[ $key == ENV ]]; then
      if [[ $value =~ ^[A-Za-z_][A-Za-z_0-9]*= ]]; then
        ENVIRONMENT+=("$value")
      else
        _problem "$SETTINGS:$number: ENV=$value: expected NAME=value"
      fi
    elif line=_line_$key && [[ -n ${!line:-} ]]; then
      _problem "$SETTINGS:$number: $key=$value: already set in line ${!line}"
    else
      printf -v "$key" '%s' "$value"
      printf -v "_line_$key" '%s' "$number"
    fi
  done <"$SETTINGS"
}

# Fills in defaults and holds each value against its pattern.
_check_values() {
  local row key default pattern expected
  for row in "${KEYS[@]}"; do
    key=${row%%;*} row=${row#*;}
    default=${row%%;*} row=${row#*;}
    pattern=${row%%;*} expected=${row#*;}
    if [[ $default == required && -z ${!key:-} ]]; then
      _problem "$SETTINGS: $key is missing; expected $expected"
      printf -v "$key" '%s' ''
      continue
    fi
    [[ -n ${!key:-} ]] || printf -v "$key" '%s' "$default"
    [[ ${!key} =~ $pattern ]] || _problem "$(setting_at "$key"): expected $expected"
  done
}

# What no single value shows.
_check_together() {
  local other
  if ! [[ $ACCELERATOR_TYPE =~ -[1-9][0-9]{0,4}$ ]] || ! accelerator_facts "$ACCELERATOR_TYPE"; then
    [[ -z $ACCELERATOR_TYPE ]] || _problem "$(setting_at ACCELERATOR_TYPE): unknown accelerator type; there are $ACCELERATOR_TYPES"
  elif [[ -z $RUNTIME_VERSION ]]; then
    RUNTIME_VERSION=${USUAL_RUNTIME:-}
  else
    for other in v2-alpha-tpuv5 v2-alpha-tpuv5-lite v2-alpha-tpuv6e tpu-ubuntu2204-base; do
      if [[ $RUNTIME_VERSION == "$other" && $other != "$USUAL_RUNTIME" ]]; then
        _problem "$(setting_at RUNTIME_VERSION): $ACCELERATOR_TYPE needs $USUAL_RUNTIME"
      fi
    done
  fi
  if [[ $ACCELERATOR_TYPE == tpu7x-* && $(basename "$0") != gke.sh ]]; then
    _problem "$(setting_at ACCELERATOR_TYPE): Google has this chip on Kubernetes only; use gke.sh"
  fi
  if [[ -n $LOCK_FILE && ! -s $LOCK_FILE ]]; then
    _problem "$(setting_at LOCK_FILE): there is no such file, or it is empty (write the path in full, no ~)"
  fi
  local name names
  read -ra names <<<"$PASS_ENV"
  for name in "${names[@]}"; do
    if [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && -z ${!name+set} ]]; then
      _problem "$(setting_at PASS_ENV): $name is not set in this environment"
    fi
  done
  if [[ $CREATE_WITH == tpu-vm && $NODES != 1 ]]; then
    _problem "$(setting_at NODES): several slices need CREATE_WITH=queued-resource"
  fi
  if [[ $CREATE_WITH == tpu-vm && -n $VALID_UNTIL ]]; then
    _problem "$(setting_at VALID_UNTIL): only a queued resource waits; leave it out with CREATE_WITH=tpu-vm"
  fi
  if [[ -n $HF_TOKEN_FILE && ! -s $HF_TOKEN_FILE ]]; then
    _problem "$(setting_at HF_TOKEN_FILE): there is no such file, or it is empty (write the path in full, no ~)"
  fi
  if [[ -z $REPO && -n $CONFIG && ! -f $ROOT/${CONFIG%%:*} ]]; then
    _problem "$(setting_at CONFIG): there is no such file in $ROOT"
  fi
}

# Reads and checks the settings file; lists everything that is wrong with it and ends, or sets one
# variable per key.
load_settings() {
  [[ -n $SETTINGS ]] || usage_error "which settings file? (a filled-in copy of $SCRIPTS/example.env)"
  [[ -f $SETTINGS ]] || usage_error "$SETTINGS: no such settings file"
  local row
  # A variable of the caller's shell must not pass for a setting.
  for row in "${KEYS[@]}"; do unset "${row%%;*}"; done
  _read_settings
  _check_values
  _check_together
  if ((${#_problems[@]})); then
    printf 'tpu_scripts: error: %s\n' "${_problems[@]}" >&2
    exit 2
  fi
  WORKERS=$((NODES * VMS))
  # What training gets as --workdir, and the bucket that must be mounted for it.
  BUCKET='' RUN_FOLDER=$WORKDIR
  if [[ $WORKDIR == gs://* && $MOUNT == no && ,$EXTRAS, != *,gcs,* ]]; then
    EXTRAS=gcs${EXTRAS:+,$EXTRAS} # training reads and writes the bucket itself
  elif [[ $WORKDIR == gs://* && $MOUNT == yes ]]; then
    BUCKET=${WORKDIR#gs://} RUN_FOLDER=/mnt/${WORKDIR#gs://}
    BUCKET=${BUCKET%%/*}
  fi
}

# --- accelerator types ---------------------------------------------------------------------------

ACCELERATOR_TYPES='v4-{8,16,32,64 or a multiple of 128 up to 8192}, v5litepod-{1,4,8,16,32,64,128,256}, v5p-{8,16,32,64 or a multiple of 128 up to 12288}, v6e-{1,4,8,16,32,64,128,256}, on GKE tpu7x-{8,16,32,64 or a multiple of 128 up to 18432}'

# Sets what follows from a type: CHIPS and VMS of a slice, its usual TOPOLOGY, GKE's names for it.
# v4, v5p and tpu7x types count TensorCores, two a chip; v5litepod and v6e types count chips.
# Source: https://cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} and .../runtimes,
# https://cloud.google.com/kubernetes-engine/docs/concepts/{plan-tpus,tpu-ironwood}
accelerator_facts() {
  local family=${1%-*} size=${1##*-}
  case $family in
    v4) USUAL_RUNTIME=tpu-ubuntu2204-base GKE_ACCELERATOR=tpu-v4-podslice GKE_MACHINE=ct4p-hightpu ;;
    v5litepod) USUAL_RUNTIME=v2-alpha-tpuv5-lite GKE_ACCELERATOR=tpu-v5-lite-podslice GKE_MACHINE=ct5lp-hightpu ;;
    v5p) USUAL_RUNTIME=v2-alpha-tpuv5 GKE_ACCELERATOR=tpu-v5p-slice GKE_MACHINE=ct5p-hightpu ;;
    v6e) USUAL_RUNTIME=v2-alpha-tpuv6e GKE_ACCELERATOR=tpu-v6e-slice GKE_MACHINE=ct6e-standard ;;
    tpu7x) USUAL_RUNTIME='' GKE_ACCELERATOR=tpu7x GKE_MACHINE=tpu7x-standard ;;
    *) return 1 ;;
  esac
  case $family in
    v4) _facts_3d "$size" 4096 ;;
    v5p) _facts_3d "$size" 6144 ;;
    tpu7x) _facts_3d "$size" 9216 ;;
    *) _facts_2d "$size" ;;
  esac
}

_facts_3d() {
  CHIPS=$(($1 / 2)) VMS=$(($1 / 8)) TOPOLOGY=
  (($1 % 8 == 0 && CHIPS >= 4 && CHIPS <= $2)) || return 1
  case $CHIPS in
    4) TOPOLOGY=2x2x1 ;;
    8) TOPOLOGY=2x2x2 ;;
    16) TOPOLOGY=2x2x4 ;;
    32) TOPOLOGY=2x4x4 ;;
    64) TOPOLOGY=4x4x4 ;;
    128) TOPOLOGY=4x4x8 ;;
    256) TOPOLOGY=4x8x8 ;;
    512) TOPOLOGY=8x8x8 ;;
    1024) TOPOLOGY=8x8x16 ;;
    2048) TOPOLOGY=8x16x16 ;;
    4096) TOPOLOGY=16x16x16 ;;
    6144) TOPOLOGY=16x16x24 ;;
    *) ((CHIPS % 64 == 0)) ;; # whole cubes come in several shapes: GKE_TOPOLOGY says which
  esac
}

# Up to eight chips share one machine; larger slices are made of machines with four.
_facts_2d() {
  CHIPS=$1 VMS=$(($1 <= 8 ? 1 : $1 / 4))
  case $1 in
    1) TOPOLOGY=1x1 ;;
    4) TOPOLOGY=2x2 ;;
    8) TOPOLOGY=2x4 ;;
    16) TOPOLOGY=4x4 ;;
    32) TOPOLOGY=4x8 ;;
    64) TOPOLOGY=8x8 ;;
    128) TOPOLOGY=8x16 ;;
    256) TOPOLOGY=16x16 ;;
    *) return 1 ;;
  esac
}
