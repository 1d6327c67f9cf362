#!/usr/bin/env bash
# Stands for gcloud, kubectl and docker: writes its arguments to $FAKE/calls and plays what a test
# put into $FAKE. Of the files states, creates and statuses each call takes one line, the last one
# again and again; a line that begins with ! is an error message. The call whose number is in fail_at
# fails, whatever it is. With a file called live the TPUs are there once they were created, and run
# once training was started: for two looks, then it is finished.

play() { # play FILE DEFAULT
  local line=$2 lines=()
  [[ ! -e $FAKE/$1 ]] || mapfile -t lines <"$FAKE/$1"
  if ((${#lines[@]})); then line=${lines[0]}; fi
  if ((${#lines[@]} > 1)); then printf '%s\n' "${lines[@]:1}" >"$FAKE/$1"; fi
  if [[ $line == !* ]]; then
    echo "ERROR: (fake) ${line#!}" >&2
    exit 1
  fi
  [[ -z $line ]] || echo "$line"
}

{
  printf '%s\x1f' "${0##*/}" "$@"
  printf '\x1e'
} >>"$FAKE/calls"

if [[ -e $FAKE/fail_at ]]; then
  echo >>"$FAKE/count"
  if (($(wc -l <"$FAKE/count") == $(<"$FAKE/fail_at"))); then
    echo "ERROR: (fake) UNAVAILABLE: the planned failure" >&2
    exit 1
  fi
fi

if [[ -e $FAKE/live ]]; then
  case " $* " in
    *" describe "*)
      [[ -e $FAKE/created ]] || echo '!NOT_FOUND: none' >"$FAKE/states"
      ;;
    *" create "*)
      touch "$FAKE/created"
      rm -f "$FAKE/states"
      ;;
    *"worker.sh start"*) printf '%s\n' 'running, process 1' 'running, process 1' finished >"$FAKE/statuses" ;;
    *"worker.sh status"*) [[ -e $FAKE/statuses ]] || echo idle >"$FAKE/statuses" ;;
  esac
fi

case " $* " in
  *" describe "*) play states ACTIVE ;;
  *" queued-resources create "* | *" tpu-vm create "*) play creates "" ;;
  *" tpu-vm list "*) [[ ! -e $FAKE/list ]] || cat "$FAKE/list" ;;
  *" scp "*":sr1_jax/requirements.lock "*) # the one file that is looked at afterwards
    for argument; do [[ $argument != */requirements.lock.new ]] || echo "jax==1.2.3" >"$argument"; done
    ;;
  *" ssh "*"worker.sh status"*)
    if [[ -e $FAKE/worker_home ]]; then
      cd "$(<"$FAKE/worker_home")" && exec bash sr1_jax/worker.sh status
    fi
    answer=$(play statuses finished) || exit 255
    for ((worker = 0; worker < $(<"$FAKE/workers"); worker++)); do echo "SR1_WORKER host-$worker $answer"; done
    ;;
  *" ssh "*"worker.sh "*)
    for argument; do [[ $argument != --command=* ]] || command=${argument#--command=}; done
    if [[ -e $FAKE/worker_home ]]; then # a worker that is really there
      cd "$(<"$FAKE/worker_home")" && exec bash -c "$command"
    fi
    verb=${command#*worker.sh }
    case ${verb%% *} in
      choose) answer="has chosen 100 versions" ;;
      setup) answer="is set up" ;;
      start) answer="is started" ;;
      stop) answer="is stopped" ;;
      *) answer="did $verb" ;;
    esac
    for ((worker = 0; worker < $(<"$FAKE/workers"); worker++)); do echo "SR1_WORKER host-$worker $answer"; done
    ;;
esac
