#!/usr/bin/env bash
# Puts code, Python and JAX on every worker; may be repeated, the code is replaced each time.
#
#   tpu_scripts/setup.sh SETTINGS [--upgrade] [--dry-run]
#
#   SETTINGS    a filled-in copy of tpu_scripts/example.env
#   --upgrade   choose the versions of all packages anew
#   --dry-run   print the commands, run nothing
#
# The first time one worker chooses the versions of all packages; they are kept on this machine, in
# ~/.cache/sr1_jax/NAME/requirements.lock, and every worker of every later set-up gets the same. To go
# on from another machine, copy that file, or name it in LOCK_FILE.
#
# Without REPO this checkout is copied, uncommitted changes and new files included, what .gitignore
# names left out. The Hugging Face token, if there is one, goes over as a file that only its owner
# can read; it is never printed nor part of a command.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

UPGRADE=no
while (($#)); do
  case $1 in
    --upgrade) UPGRADE=yes ;;
    *) common_option "$1" ;;
  esac
  shift
done
load_settings
need_commands gcloud

LOCK=${LOCK_FILE:-$CACHE/$NAME/requirements.lock}
[[ $UPGRADE == no || -z $LOCK_FILE ]] || usage_error "--upgrade: LOCK_FILE=$LOCK_FILE chooses the versions; clear it"

FILES=("$SCRIPTS/worker.sh")
SOURCE=("--python=$PYTHON_VERSION")
if [[ -n $REPO ]]; then
  SOURCE+=("--repo=$REPO" "--branch=$BRANCH")
else
  need_commands git tar
  CODE=$CACHE/$NAME/code.tar.gz
  remark "the code of this checkout"
  run mkdir -p "$CACHE/$NAME"
  # shellcheck disable=SC2016 # expanded by the inner shell
  run bash -o pipefail -c 'cd "$1" && git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d "" file; do if [ -e "$file" ]; then printf "%s\0" "$file"; fi; done |
    tar --null --files-from=- -czf "$2"' pack "$ROOT" "$CODE"
  FILES+=("$CODE")
fi
SETUP=(setup "${SOURCE[@]}")
[[ -z $BUCKET ]] || SETUP+=("--mount=$BUCKET")

remark "on each worker, $WORKERS in all"
worker_command all all "mkdir -p -m 700 sr1_jax"
run "${TPU_COMMAND[@]}"
copy_to_workers "${FILES[@]}" sr1_jax/
[[ -z $HF_TOKEN_FILE ]] || copy_to_workers "$HF_TOKEN_FILE" sr1_jax/hf_token
if [[ $UPGRADE == yes || ! -s $LOCK ]]; then
  remark "the first worker chooses versions, which are kept here"
  CHOOSE=(choose "${SOURCE[@]}")
  [[ -z $EXTRAS ]] || CHOOSE+=("--extras=$EXTRAS")
  worker_command 0 0 "bash sr1_jax/worker.sh $(quote_all "${CHOOSE[@]}")"
  run "${TPU_COMMAND[@]}"
  run mkdir -p "$CACHE/$NAME"
  copy_from_worker 0 0 sr1_jax/requirements.lock "$LOCK.new"
  [[ $DRY_RUN == yes || -s $LOCK.new ]] || die "the first worker chose no versions; see above"
  run mv "$LOCK.new" "$LOCK"
else
  [[ $DRY_RUN == yes ]] || note "versions are those of $LOCK (setup.sh --upgrade chooses anew)"
fi
copy_to_workers "$LOCK" sr1_jax/requirements.lock
on_all_workers "is set up" "$(quote_all "${SETUP[@]}")"
