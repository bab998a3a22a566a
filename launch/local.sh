#!/usr/bin/env bash
# Trains with N processes on this machine; `wait -n` and what else bash 3.2, that of macOS, lacks is not used.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains with N processes on this machine, each on its share of the GPUs, or all on the CPU.

usage: launch/local.sh N ARGUMENTS...

  N          number of processes; must divide the number of GPUs, if any
  ARGUMENTS  arguments of `python -m inception_jax.main`, the same for all processes

environment:
  PYTHON                Python to use (default: python)
  CUDA_VISIBLE_DEVICES  GPUs to use (default: all)
  JAX_PLATFORMS=cpu     use no GPU
  GRACE                 seconds until the others get SIGTERM after one has failed, and as many again until they are
                        killed (default: 30)

SIGINT and SIGTERM are passed on to every process: the run is saved, and the same command continues. The exit code is
that of the process that failed first; 5 (another process died) only if no process has another code.

example:
  launch/local.sh 2 --config=googlenet_cifar10 --workdir=runs/googlenet_cifar10
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

if [[ $# == 0 || $1 == -h || $1 == --help ]]; then
  usage
  exit $(($# ? 0 : 2))
fi
[[ $1 =~ ^[1-9][0-9]*$ ]] || fail "N=$1 is not allowed: it must be at least 1, as in launch/local.sh 2 --config=NAME"
n=$1
shift

gpus=()
if [[ ${JAX_PLATFORMS:-} != cpu ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES/#-1*/}" # -1 is CUDA's own word for none
  elif list=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null); then
    read -ra gpus <<<"${list//$'\n'/ }"
  fi
fi
if ((${#gpus[@]} % n)); then
  fail "${#gpus[@]} GPUs cannot be divided among $n processes: choose another N, set CUDA_VISIBLE_DEVICES, or set \
JAX_PLATFORMS=cpu"
fi
share=$((${#gpus[@]} / n))

# Where nobody listens; below the ports that systems give to outgoing connections.
port=$((20000 + RANDOM % 10000))
while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 10000)); done

signal_all() { # SIGNAL, and - for the processes' groups
  local pid
  for pid in $(jobs -pr); do kill -s "$1" -- "$2$pid" 2>/dev/null || true; done
}

trap 'signal_all INT ""' INT
trap 'signal_all TERM ""' TERM HUP

# A function of its own, since bash says what was running when a signal killed it.
start() { # PROCESS ARGUMENTS
  local process=$1
  shift
  if ((share)); then
    local IFS=,
    export CUDA_VISIBLE_DEVICES="${gpus[*]:process * share:share}"
  fi
  exec "${PYTHON:-python}" -m inception_jax.main "$@" \
    "--coordinator=127.0.0.1:$port" "--num_processes=$n" "--process_id=$process"
}

# A process group for each: Ctrl-C in a terminal reaches this script alone, which hands it on once; and without a group
# of their own, bash has background processes ignore SIGINT.
set -m
pids=()
for ((i = 0; i < n; i++)); do
  start "$i" "$@" </dev/null &
  pids+=($!)
done
set +m

code=0  # of this script
rank=0  # of that code: 1 stopped and saved, 2 another process died, 3 a failure
limit=0 # when the next signal is due, in seconds since the start; 0: none is
next=TERM

settle() { # PROCESS EXIT_CODE
  local new=3
  case $2 in
    0) return ;;
    75 | 130) new=1 ;;
    5) new=2 ;;
    137 | 143) if [[ $next != TERM ]]; then return; fi ;; # by our own signal
  esac
  if ((new > 1)); then
    echo "local.sh: process $1 ended with exit code $2" >&2
    if ((limit == 0)); then limit=$((SECONDS + ${GRACE:-30})); fi
  fi
  if ((new > rank)); then
    rank=$new
    code=$2
  fi
}

while ((${#pids[@]})); do
  sleep 0.2 || true # Ctrl-C ends it
  running=$(jobs -pr)
  running=" ${running//$'\n'/ } "
  for i in "${!pids[@]}"; do
    if [[ $running != *" ${pids[i]} "* ]]; then
      ended=0
      wait "${pids[i]}" || ended=$?
      unset "pids[i]"
      settle "$i" "$ended"
    fi
  done
  if ((limit && SECONDS >= limit && ${#pids[@]})); then
    if [[ $next == TERM ]]; then
      echo "local.sh: stopping the others" >&2
      signal_all TERM ""
      next=KILL
      limit=$((SECONDS + ${GRACE:-30}))
    else
      signal_all KILL - # with its worker processes
    fi
  fi
done
exit "$code"
