#!/usr/bin/env bash
# A run over network namespaces: each node has an address of its own, and none sees another's loopback.
#   sudo tests/chaos/namespaces.sh COMMAND...   runs COMMAND on the head, with RAY_ADDRESS set
set -euo pipefail
nodes=3
names=(nsr-head)
for i in $(seq 1 $nodes); do names+=("nsr-$i"); done
temporary=$(mktemp -d /tmp/nsrXXXX)
pids=()
clean() {
  for pid in "${pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done
  sleep 2
  for name in "${names[@]}"; do
    ip netns pids "$name" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns del "$name" 2>/dev/null || true
  done
  ip link del nsr-bridge 2>/dev/null || true
  rm -rf "$temporary"
}
trap clean EXIT
ip link add nsr-bridge type bridge
ip link set nsr-bridge up
for i in "${!names[@]}"; do
  name=${names[$i]}
  ip netns add "$name"
  ip link add "nsrv$i" type veth peer name eth0 netns "$name"
  ip link set "nsrv$i" master nsr-bridge up
  ip -n "$name" addr add "10.77.0.$((i + 1))/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
done
start() { # namespace, arguments of `ray start`
  local name=$1
  shift
  setsid ip netns exec "$name" ray start "$@" --block --object-store-memory=100000000 \
    --disable-usage-stats >"$temporary/$name.log" 2>&1 &
  pids+=($!)
}
start nsr-head --head --port=6379 --node-ip-address=10.77.0.1 --num-cpus=0 --include-dashboard=false \
  --temp-dir="$temporary/ray"
for i in $(seq 1 60); do
  ip netns exec nsr-1 bash -c 'exec 3<>/dev/tcp/10.77.0.1/6379' 2>/dev/null && break
  sleep 0.5
done
for i in $(seq 1 $nodes); do
  start "nsr-$i" --address=10.77.0.1:6379 --node-ip-address="10.77.0.$((i + 1))" --num-cpus=2 --temp-dir="$temporary/ray$i"
done
ip netns exec nsr-head env RAY_ADDRESS=10.77.0.1:6379 "$@"
