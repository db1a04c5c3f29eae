#!/usr/bin/env bash
# A throw-away Slurm on this one machine, for the tests: accounting, four virtual nodes, a partition that can be preempted.
#
#   cluster.sh up      install what is missing, start what does not run, return when every node takes jobs
#   cluster.sh down    stop what `up` started, and forget all jobs
#   cluster.sh status  nodes and queue; fails when the controller does not answer
#   cluster.sh node N  (re)start the slurmd of one node; a test calls it after it killed that slurmd
#   cluster.sh ctld    (re)start the controller with the jobs it knew
#
# Root on Debian 12 or newer. Everything private to it lives in the three folders below; /etc/slurm is written only if
# it is empty or was written by this script. Settings, all optional, are read from the environment by `up`:
set -euo pipefail
nodes=${SLURM_BED_NODES:-4}                  # how many virtual nodes, n1 n2 ...
cpus=${SLURM_BED_CPUS:-2}                    # CPUs that Slurm believes each of them has
memory=${SLURM_BED_MEMORY:-4096}             # MB per node; a job gets its share per CPU and is killed above it
array=${SLURM_BED_MAX_ARRAY:-1001}           # MaxArraySize: the largest array index plus one
silence=${SLURM_BED_SLURMD_TIMEOUT:-10}      # seconds without an answer before a node counts as dead
grace=${SLURM_BED_GRACE:-5}                  # seconds between the warning of a preempted job and its end
requeue=${SLURM_BED_REQUEUE_WAIT:-5}         # seconds that a requeued job waits at least; Slurm takes no less than 5
job_age=${SLURM_BED_MIN_JOB_AGE:-300}        # seconds that the controller remembers a finished job

run=/run/slurm-bed           # pid files and sockets
state=/var/lib/slurm-bed     # job state, database, spool folders
log=/var/log/slurm-bed
etc=/etc/slurm
socket=$state/munge/socket
mark='# Written by tests/slurm/cluster.sh; overwritten without asking.'
name=harness-bed             # ClusterName; the tests maltreat a cluster of this name alone, while this file says it is up:
up_mark=$run/up
host=$(hostname -s)
here=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

say() { echo "slurm bed: $*" >&2; }

# fail STEP LOG: the one way out when something does not work
fail() {
  say "'$1' failed; the log is $2"
  [ -f "$2" ] && tail -n 15 "$2" | sed 's/^/  | /' >&2
  exit 1
}

# until_ok SECONDS COMMAND...: true as soon as the command is
until_ok() {
  local deadline=$((SECONDS + $1)) && shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.2
  done
}

# running PID: a process that has ended but was not yet collected by its parent does not count
running() { grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"; }
gone() { ! running "$1"; }

# alive NAME: does the process in its pid file live, and is it that program and not a later one with the same number?
alive() {
  local file=$run/$1.pid program=${1%%-*} pid
  [ -s "$file" ] && pid=$(cat "$file") && running "$pid" && [ "$(cat "/proc/$pid/comm")" = "$program" ]
}

# stop NAME...: by pid files; asks all of them, waits, then insists
stop() {
  local name pid pids=()
  for name in "$@"; do
    # A daemon removes its file as it ends.
    alive "$name" && pid=$(cat "$run/$name.pid" 2>/dev/null) && pids+=("$pid") || continue
    kill "$pid" 2>/dev/null || true
  done
  for pid in ${pids[@]+"${pids[@]}"}; do
    until_ok 15 gone "$pid" || kill -9 "$pid" || true
  done
}

node_names() { seq -f 'n%g' "$nodes"; }

install_packages() {
  local program missing=no
  for program in slurmctld slurmd slurmdbd munged mariadbd; do command -v $program >/dev/null || missing=yes; done
  [ $missing = yes ] || return 0
  say "installing slurm-wlm slurmdbd munge mariadb-server"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update && apt-get install -y --no-install-recommends slurm-wlm slurmdbd munge mariadb-server; } \
    >"$log/apt.log" 2>&1 || fail 'apt-get install' "$log/apt.log"
}

slurm_conf() {
  cat <<CONF
$mark
ClusterName=$name
SlurmctldHost=$host(127.0.0.1)
SlurmUser=slurm
AuthType=auth/munge
# cred_expire is also the time that a requeued job waits before it may start again (default: 120).
AuthInfo=socket=$socket,cred_expire=$requeue
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/%n
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd-%n.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd-%n.log
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
# Against its name: the munge socket towards slurmdbd.
AccountingStoragePass=$socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Without cgroups memory is enforced by looking every second; the step above its share is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=$silence
KillWait=5
MinJobAge=$job_age
MaxArraySize=$array
MaxJobCount=50000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,sched_interval=2,bf_interval=2,default_queue_depth=1000
DefMemPerCPU=$((memory / cpus))
NodeName=n[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-$((17000 + nodes))] CPUs=$cpus RealMemory=$memory
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=$grace
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
}

slurmdbd_conf() {
  cat <<CONF
$mark
DbdHost=localhost
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket=$socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16820
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$log/slurmdbd.log
PidFile=$run/slurmdbd.pid
CONF
}

# A newer slurmd looks for cgroups when it starts unless it is told not to; an older one does not know the word for that.
cgroup_conf() {
  local major
  major=$(slurmd -V | sed 's/slurm-wlm //; s/\..*//; s/[^0-9]//g')
  echo "$mark"
  [ "$major" -lt 24 ] || echo CgroupPlugin=disabled
}

write_configuration() {
  local file
  mkdir -p $etc
  for file in slurm slurmdbd cgroup; do
    if [ -s $etc/$file.conf ] && ! grep -qxF "$mark" $etc/$file.conf; then
      say "$etc/$file.conf belongs to another Slurm; it is left alone and nothing was started"
      exit 1
    fi
  done
  slurm_conf >$etc/slurm.conf
  cgroup_conf >$etc/cgroup.conf
  install -o slurm -g slurm -m 600 /dev/null $etc/slurmdbd.conf
  slurmdbd_conf >$etc/slurmdbd.conf
  getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
}

start_munge() {
  alive munged && return
  local home=$state/munge
  install -o munge -g munge -m 755 -d "$home"
  [ -s "$home/key" ] || install -o munge -g munge -m 400 <(head -c 1024 /dev/urandom) "$home/key"
  runuser -u munge -- munged --key-file="$home/key" --socket="$socket" --pid-file="$home/pid" --seed-file="$home/seed" \
    --log-file="$home/log" >>$log/munged.log 2>&1 || fail munged $log/munged.log
  until_ok 10 sh -c "munge -S $socket -n | unmunge -S $socket" || fail munged "$home/log"
  cp "$home/pid" $run/munged.pid
}

sql() { mariadb --no-defaults --socket=$state/mariadb/socket --user=root --batch -e "$1"; }

# database_settled PID: answers, or has given up
database_settled() { gone "$1" || sql 'select 1'; }

start_database() {
  alive mariadbd && return
  if [ ! -d $state/mariadb/mysql ]; then
    install -o mysql -g mysql -m 700 -d $state/mariadb
    mariadb-install-db --no-defaults --user=mysql --datadir=$state/mariadb --skip-test-db >$log/mariadb-install.log 2>&1 ||
      fail mariadb-install-db $log/mariadb-install.log
  fi
  setsid mariadbd --no-defaults --user=mysql --datadir=$state/mariadb --socket=$state/mariadb/socket \
    --pid-file=$state/mariadb/pid --bind-address=127.0.0.1 --port=16820 --skip-name-resolve \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
    >$log/mariadb.log 2>&1 </dev/null &
  echo $! >$run/mariadbd.pid
  until_ok 60 database_settled $! && sql 'select 1' >/dev/null || fail mariadbd $log/mariadb.log
  sql "create database if not exists slurm_acct_db;
       create or replace user slurm@'127.0.0.1' identified by 'slurm';
       grant all on slurm_acct_db.* to slurm@'127.0.0.1'" >>$log/mariadb.log 2>&1 || fail 'mariadb grant' $log/mariadb.log
}

start_accounting() {
  alive slurmdbd && return
  slurmdbd >>$log/slurmdbd.log 2>&1 || fail slurmdbd $log/slurmdbd.log
  until_ok 60 sacctmgr --noheader show cluster || fail slurmdbd $log/slurmdbd.log
}

start_controller() {
  alive slurmctld && return
  install -o slurm -g slurm -d $state/ctld
  slurmctld >>$log/slurmctld.log 2>&1 || fail slurmctld $log/slurmctld.log
  until_ok 30 sh -c 'scontrol ping | grep -q "is UP"' || fail slurmctld $log/slurmctld.log
}

start_node() {
  alive "slurmd-$1" && return
  mkdir -p "$state/$1"
  slurmd -N "$1" >>"$log/slurmd-$1.log" 2>&1 || fail "slurmd of $1" "$log/slurmd-$1.log"
}

# Slurm calls a node that does not answer idle*, one that is new unknown: neither takes jobs.
takes_jobs() { sinfo --noheader --nodes="$1" --partition=debug --format=%T | grep -qxE 'idle|mixed|allocated|completing'; }

up() {
  local node
  mkdir -p $run $log
  install_packages
  if alive slurmctld && ! slurm_conf | cmp -s - $etc/slurm.conf; then
    say 'the settings have changed; starting anew'
    down
  fi
  # Left over from before a crash: the jobs are gone, so is what was known of them.
  alive munged || alive mariadbd || alive slurmdbd || alive slurmctld || rm -rf "${state:?}"
  mkdir -p $run $log $state
  chown slurm: $log
  write_configuration
  start_munge
  start_database
  start_accounting
  start_controller
  for node in $(node_names); do start_node "$node"; done
  for node in $(node_names); do
    until_ok 60 takes_jobs "$node" || fail "node $node (it does not become idle)" "$log/slurmd-$node.log"
  done
  echo "$name" >"$up_mark"
  sinfo
}

down() {
  rm -f "$up_mark"
  # Jobs would outlive their slurmd: they are cancelled first.
  if alive slurmctld; then
    scancel --quiet --user=root >/dev/null 2>&1 || true
    until_ok 15 sh -c '[ -z "$(squeue --noheader)" ]' || true
  fi
  # shellcheck disable=SC2046
  stop $(cd $run 2>/dev/null && ls | sed -n 's/^\(slurmd-.*\)\.pid$/\1/p')
  stop slurmctld
  stop slurmdbd
  stop mariadbd munged
  rm -rf "${state:?}" "${run:?}"
}

[ "$(id -u)" = 0 ] || { say 'root is needed'; exit 1; }
case ${1:-} in
  up) up ;;
  down) down ;;
  status) sinfo && squeue ;;
  node) start_node "${2:?which node?}" && { until_ok 60 takes_jobs "$2" || fail "node $2" "$log/slurmd-$2.log"; } ;;
  ctld) start_controller ;;
  *) say "usage: $here up|down|status|node N|ctld"; exit 2 ;;
esac
