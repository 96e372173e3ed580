# Sourced by every script in slurm/: finds the checkout, and gives `launch`, which runs one command on all tasks.
#   sbatch slurm/train_sam.sh [YAML …] [key=value …]     submit it again to go on
#   LOCAL=1 bash slurm/train_sam.sh …                    the same run here, without Slurm
#   DRY_RUN=1 sbatch slurm/train_sam.sh …                `frisket doctor` instead, by all ranks where they would train
#   FRISKET_ON=a100 sbatch slurm/…                       adds configs/on/a100.yaml (also a100_80gb, a40, cpu)
# `launch frisket VERB YAML words…` puts the place between the YAML and the words.
# `launch` requeues the job when the run left with code 75 (stopped by Slurm's signal, checkpoint written).
# Our choice; why it is so: docstrings of frisket.engine.preempt and frisket.engine.signals.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$PWD}"
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH"
ON=()
[ -n "${LOCAL:-}" ] || ON+=(configs/on/slurm.yaml)
[ -z "${FRISKET_ON:-}" ] || ON+=("configs/on/$FRISKET_ON.yaml")

# A port of this node (where rank 0 will listen) that nobody listens on. Drawn, because the job's number would give two
# clusters' jobs on one node, or two users' in turn, the same; below the range that the kernel hands out.
free_port() {
  local port
  while port=$((10000 + RANDOM % 20000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

launch() {
  set -- "${@:1:3}" "${ON[@]}" "${@:4}"
  # A signal in the first second, before training can hold it, waits for it (coreutils 8.31 and newer)
  local hold=(env --block-signal=USR1,TERM)
  { [[ "${2:-}" =~ ^(train|eval|quant)$ ]] && "${hold[@]}" true 2>/dev/null; } || hold=() # the other verbs do not hold it
  if [ -n "${DRY_RUN:-}" ]; then
    [ "$2" = train ] || { echo "DRY_RUN: only a training has a doctor, not frisket $2" >&2; return 2; }
    [ -n "${LOCAL:-}" ] || export FRISKET_SRUN="srun --wait=60 ${hold[*]} $*"
    set -- "$1" doctor "${@:3}"
    hold=()
  fi
  if [ -n "${LOCAL:-}" ]; then
    "$@"
    return
  fi
  local head code=0
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # the node's address as Slurm knows it: needs no DNS
  MASTER_ADDR=$(scontrol show node "$head" | grep -oP 'NodeAddr=\K\S+')
  MASTER_PORT=$(free_port)
  export MASTER_ADDR MASTER_PORT
  export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not inherit --cpus-per-task
  echo "$(date '+%F %T') job $SLURM_JOB_ID start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, master $MASTER_ADDR:$MASTER_PORT"
  # --wait: when one task has died the others are ended a minute later, not at the job's time limit
  srun --wait=60 "${hold[@]}" "$@" || code=$?
  echo "$(date '+%F %T') job $SLURM_JOB_ID left with code $code"
  if [ "$code" = 75 ]; then
    # Slurm now ends this script. Leaving first would race with it, and could mark the job FAILED instead of pending.
    scontrol requeue "$SLURM_JOB_ID" && sleep 300
  fi
  return "$code"
}
