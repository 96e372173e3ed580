#!/usr/bin/env bash
# A private two-node Slurm on this machine, for tests: two slurmd with ports of their own, no systemd, no cgroups.
#   cluster.sh start DIR PORT     then  export SLURM_CONF=DIR/slurm.conf
#   cluster.sh stop DIR           always; before DIR is removed
# Needs root and the Debian packages slurmctld slurmd slurm-client munge. GPUs are plain files, so that --gres is accepted.
set -euo pipefail
verb=$1 dir=$2 port=${3:-0} cpus=8 gpus=4
export SLURM_CONF=$dir/slurm.conf

stop() {
  # this cluster only: SLURM_CONF names it. KILL, since a training run holds SIGTERM back until its next step
  scancel --full --signal=KILL --user="$(id -un)" 2>/dev/null || true
  scancel --user="$(id -un)" 2>/dev/null || true
  for _ in {1..100}; do [ -n "$(squeue -h -t RUNNING,COMPLETING 2>/dev/null)" ] && sleep 0.2 || break; done
  local file pid
  for file in "$dir"/run/{slurmd-node1,slurmd-node2,slurmctld,munged}.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in {1..50}; do kill -0 "$pid" 2>/dev/null && sleep 0.1 || break; done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$file"
  done
}

write_conf() {
  mkdir -p "$dir"/{state,log,run,dev,spool/node1,spool/node2}
  chmod 755 "$dir" "$dir"/{log,run}
  (umask 077 && head -c 64 /dev/urandom >"$dir/run/munge.key")
  local host g
  host=$(hostname)
  for ((g = 0; g < gpus; g++)); do : >"$dir/dev/gpu$g"; done
  echo "NodeName=node[1-2] Name=gpu File=$dir/dev/gpu[0-$((gpus - 1))]" >"$dir/gres.conf"
  cat >"$SLURM_CONF" <<CONF
ClusterName=frisket$port
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
JobRequeue=1
MinJobAge=3600
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
MailProg=/bin/true
GresTypes=gpu
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=$cpus RealMemory=1000 Gres=gpu:$gpus State=UNKNOWN
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=$cpus RealMemory=1000 Gres=gpu:$gpus State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
CONF
}

start() {
  trap stop ERR
  write_conf
  munged --force --key-file="$dir/run/munge.key" --socket="$dir/run/munge.socket" --pid-file="$dir/run/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/run/munged.seed"
  slurmctld -i -f "$SLURM_CONF"
  slurmd -N node1 -f "$SLURM_CONF"
  slurmd -N node2 -f "$SLURM_CONF"
  for _ in {1..150}; do
    if [ "$(sinfo -h -N -p test -o %T 2>/dev/null | grep -cx idle)" = 2 ]; then
      trap - ERR
      return
    fi
    sleep 0.2
  done
  tail -n 20 "$dir"/log/*.log >&2
  stop
  exit 1
}

"$verb"
