#!/usr/bin/env bash
# Sets everything up, starts a NATS server if none listens, runs the provider as a wasmCloud host would, and says what to try.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
  cat <<'EOF'
usage: ./run.sh

Makes .venv and installs what is needed (the first time), starts a NATS server on 127.0.0.1 if nothing listens at the port, and runs
the provider with host data on its standard input. Ctrl-C ends what it has started.

environment, with defaults:
  LATTICE_RPC_URL     0.0.0.0:4222         where NATS is; a server is started only for this machine's own addresses
  LATTICE_RPC_PREFIX  default
  PROVIDER_KEY        keyvalue-inmemory
  LINK_NAME           default
  LOG_LEVEL           debug                debug, info, warn or error
  METRICS_ADDRESS     127.0.0.1:9464       for Prometheus: /metrics, /livez, /readyz
  HOST_DATA           made from these      the whole JSON, in place of the four from LATTICE_RPC_URL to LINK_NAME, and of LOG_LEVEL
  PYTHON              python3              3.11 or newer
EOF
}

case "${1:-}" in
  '') ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

url=${LATTICE_RPC_URL:-0.0.0.0:4222}
prefix=${LATTICE_RPC_PREFIX:-default}
metrics=${METRICS_ADDRESS:-127.0.0.1:9464}
key=${PROVIDER_KEY:-keyvalue-inmemory}
host_data=${HOST_DATA:-"{\"lattice_rpc_url\": \"$url\", \"lattice_rpc_prefix\": \"$prefix\", \"provider_key\": \"$key\", \"link_name\": \"${LINK_NAME:-default}\", \"log_level\": \"${LOG_LEVEL:-debug}\"}"}

scripts/setup demo

address=${url##*://}
address=${address##*@}
host=${address%%:*}
port=4222
[ "$address" = "$host" ] || port=${address##*:}
[ "$host" != 0.0.0.0 ] || host=127.0.0.1

listens() { (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; }
say() { printf 'run.sh: %s\n' "$*" >&2; }
client=(.venv/bin/wrpc-kv --url "$url" --prefix "$prefix.$key")

# Each process in a process group of its own: Ctrl-C reaches this script alone, which then ends them in order.
set -m
nats='' provider='' work=$(mktemp -d)
finish() {
  code=$?
  trap '' INT TERM
  for process in $provider $nats; do
    kill -TERM "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if ! listens; then
  case "$host" in
    127.* | localhost) ;;
    *) say "nothing listens at $address, and a NATS server is started only on this machine"; exit 1 ;;
  esac
  .venv/bin/nats-server --addr "$host" --port "$port" >"$work/nats.log" 2>&1 &
  nats=$!
  for _ in $(seq 100); do
    listens && break
    kill -0 "$nats" 2>/dev/null || { cat "$work/nats.log" >&2; say "the NATS server did not start"; exit 1; }
    sleep 0.05
  done
  say "NATS server started on $host:$port"
elif "${client[@]}" --timeout 2 exists '' >/dev/null 2>&1; then
  say "a provider serves $prefix.$key at $url already: stop it, or set PROVIDER_KEY to another name"
  exit 1
fi

printf '%s' "$host_data" | base64 | env -i KEYVALUE_METRICS_ADDRESS="$metrics" .venv/bin/keyvalue-inmemory &
provider=$!
until "${client[@]}" --wait 1 exists '' >/dev/null 2>&1; do
  kill -0 "$provider" 2>/dev/null || break
done

if kill -0 "$provider" 2>/dev/null; then
  try=.venv/bin/wrpc-kv
  [ "$url" = 0.0.0.0:4222 ] || try="$try --url $url"
  [ "$prefix.$key" = default.keyvalue-inmemory ] || try="$try --prefix $prefix.$key"
  cat <<EOF

ready. In another terminal, in this folder:

  $try set hello world
  $try get hello
  $try keys
  curl http://$metrics/metrics

Ctrl-C stops the provider${nats:+ and the NATS server}.

EOF
fi
code=0
wait "$provider" || code=$?
provider=''
exit "$code"
