#!/usr/bin/env bash
# Puts code, Python and JAX on every worker; may be repeated, the code is replaced each time.
#
#   tpu_scripts/setup.sh SETTINGS [--dry-run]
#
#   SETTINGS    a filled-in copy of tpu_scripts/example.env
#   --dry-run   print the commands, run nothing
#
# Without REPO this checkout is copied, uncommitted changes and new files included, what .gitignore
# names left out. The Hugging Face token, if there is one, goes over as a file that only its owner
# can read; it is never printed nor part of a command.

# shellcheck source=SCRIPTDIR/lib.sh
source "$(dirname "$0")/lib.sh"

while (($#)); do
  common_option "$1"
  shift
done
load_settings
need_commands gcloud

FILES=("$SCRIPTS/worker.sh")
SETUP=(setup "--python=$PYTHON_VERSION")
if [[ -n $REPO ]]; then
  SETUP+=("--repo=$REPO" "--branch=$BRANCH")
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
[[ -z $BUCKET ]] || SETUP+=("--mount=$BUCKET")

remark "on each worker, $WORKERS in all"
worker_command all all "mkdir -p -m 700 sr1_jax"
run "${TPU_COMMAND[@]}"
copy_to_workers "${FILES[@]}" sr1_jax/
[[ -z $HF_TOKEN_FILE ]] || copy_to_workers "$HF_TOKEN_FILE" sr1_jax/hf_token
on_all_workers "is set up" "$(quote_all "${SETUP[@]}")"
