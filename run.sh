#!/usr/bin/env bash
# Installs the provider, starts a NATS server if none is running, starts the provider as a wasmCloud host would, and
# prints commands to try.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf 'run.sh: %s\n' "$*" >&2; }
usage() {
  cat <<'EOF'
usage: ./run.sh

Creates .venv the first time, starts a NATS server on 127.0.0.1 if none is running, and runs the provider with host data
on its standard input. Ctrl-C stops the provider, and also the NATS server if run.sh started it.

environment, with defaults:
  LATTICE_RPC_URL     0.0.0.0:4222         address of the NATS server; run.sh starts one only on this machine
  LATTICE_RPC_PREFIX  default
  PROVIDER_KEY        keyvalue-inmemory
  LINK_NAME           default
  LOG_LEVEL           info                 trace, debug, info, warn or error
  STORE               memory               memory, or jetstream for a NATS key-value bucket that outlives the provider;
                                           the NATS server of run.sh then keeps its files in the folder jetstream/
  METRICS_ADDRESS     127.0.0.1:9464       address for Prometheus: /metrics, /livez, /readyz
  REDIS_ADDRESS       127.0.0.1:6379       address for Redis clients, if redis-cli is installed; not with HOST_DATA
  HOST_DATA           from the above       the host data as JSON; replaces the first five variables
  PYTHON              python3              Python 3.11 or newer

Options of the provider go into HOST_DATA, as with a host. This keeps the keys in a file between a stop and a start:
  HOST_DATA='{"config":{"snapshot_path":"keys.snapshot"}}' ./run.sh
EOF
}

case "${1:-}" in
  '') ;;
  -h | --help) usage; exit 0 ;;
  *) say "unknown argument $1; settings are environment variables"; usage >&2; exit 2 ;;
esac

store=${STORE:-memory} streams=$PWD/jetstream
case "$store" in
  memory | jetstream) ;;
  *) say "STORE is '$store', allowed memory or jetstream"; exit 2 ;;
esac
ignored=${!KEYVALUE_*} example='{"config":{"snapshot_path":"..."}}'
[ -z "$ignored" ] || say "not passed on: $ignored; use HOST_DATA='$example'"
scripts/setup demo

# Prints the address for Prometheus or an empty line, why the address is not available or an empty line, the same for
# Redis clients, the URL, host, port and address of the NATS server, the prefix, and the host data.
read_settings() {
  .venv/bin/python - <<'EOF'
import json, os, shutil, socket, sys
from urllib.parse import urlsplit

WILDCARDS = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def shown(host, port):
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def available(text):
    """Return an address at which the provider can listen, and an empty string. Otherwise, return the reason second."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
            return shown(host, probe.getsockname()[1]), ""
    except (OSError, OverflowError, ValueError) as error:
        return "", f"{text}: {getattr(error, 'strerror', None) or 'expected HOST:PORT'}"


environ = os.environ
host_data = {
    "lattice_rpc_url": environ.get("LATTICE_RPC_URL") or "0.0.0.0:4222",
    "lattice_rpc_prefix": environ.get("LATTICE_RPC_PREFIX") or "default",
    "provider_key": environ.get("PROVIDER_KEY") or "keyvalue-inmemory",
    "link_name": environ.get("LINK_NAME") or "default",
    "log_level": environ.get("LOG_LEVEL") or "info",
}
if environ.get("HOST_DATA"):
    try:
        host_data = json.loads(environ["HOST_DATA"])
    except ValueError as error:
        sys.exit(f"run.sh: HOST_DATA is not JSON: {error}")
    if not isinstance(host_data, dict):
        sys.exit("run.sh: HOST_DATA is not a JSON object")
try:
    url = host_data.get("lattice_rpc_url") or "127.0.0.1:4222"
    first = url.split(",")[0].strip()
    parts = urlsplit(first if "://" in first else "nats://" + first)
    host, port = WILDCARDS.get(parts.hostname, parts.hostname), parts.port or 4222
except (AttributeError, ValueError) as error:
    name = "lattice_rpc_url in HOST_DATA" if environ.get("HOST_DATA") else "LATTICE_RPC_URL"
    sys.exit(f"run.sh: {name} is not a URL: {error if isinstance(error, ValueError) else 'it is not a string'}")
provider_key = host_data.get("provider_key") or "keyvalue-inmemory"
prefix = f"{host_data.get('lattice_rpc_prefix') or 'default'}.{provider_key}"
metrics = available(environ.get("METRICS_ADDRESS") or "127.0.0.1:9464")
redis = "", ""
if shutil.which("redis-cli") and not environ.get("HOST_DATA"):
    redis = available(environ.get("REDIS_ADDRESS") or "127.0.0.1:6379")
print(*metrics, *redis, url, host, port, shown(host, port), prefix, json.dumps(host_data), sep="\n")
EOF
}
settings=$(read_settings) || exit 2
{
  read -r metrics; read -r no_metrics; read -r redis; read -r no_redis
  read -r url; read -r host; read -r port; read -r address; read -r prefix; read -r host_data
} <<<"$settings"

listens() { (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; }
# The URL may contain a password, so it must not appear on a command line.
client() { NATS_URL=$url .venv/bin/wrpc-kv --prefix "$prefix" "$@"; }

# Stops what this script started, the provider before the NATS server, and exits with this code. A signal that arrives
# before the first line has an effect runs this function from the start.
finish() {
  trap '' HUP INT TERM
  trap - EXIT
  [ "${BASHPID:-$$}" = $$ ] || exit "$1" # a new process in which a signal arrived before it could start its program
  set +e
  local process started=''
  for process in $(jobs -p); do started="$process $started"; done
  for process in $started; do
    kill -TERM "$process"
    wait "$process"
  done 2>/dev/null
  rm -rf "$work"
  exit "$1"
}
nats='' provider='' work=$(mktemp -d)
trap 'finish $?' EXIT
trap 'finish 129' HUP # the terminal is closed
trap 'finish 130' INT
trap 'finish 143' TERM

# Succeeds if a provider answers, even if the provider refuses the call.
answers() {
  local answer
  answer=$(client "$@" exists '' 2>&1) && return 0
  case "$answer" in *"access denied"* | *"no such store"*) return 0 ;; esac
  return 1
}

if ! listens; then
  case "$host" in
    127.* | localhost | ::1) ;;
    *) say "no NATS server is running at $address; run.sh starts one only on this machine"; exit 1 ;;
  esac
  persistent=()
  [ "$store" = memory ] || persistent=(--jetstream --store_dir "$streams")
  set -m # its own process group, so that Ctrl-C reaches only this script and the commands for which it waits
  .venv/bin/nats-server --addr "$host" --port "$port" ${persistent[@]+"${persistent[@]}"} >"$work/nats.log" 2>&1 &
  nats=$!
  set +m
  for _ in $(seq 100); do
    listens && break
    kill -0 "$nats" 2>/dev/null || { cat "$work/nats.log" >&2; say "the NATS server did not start"; exit 1; }
    sleep 0.05
  done
  say "NATS server started on $address"
elif answers --timeout 2; then
  say "a provider already serves $prefix at $address; stop it, or set PROVIDER_KEY to another name"
  exit 1
fi

[ -n "$metrics" ] || say "there are no metrics: $no_metrics; set METRICS_ADDRESS to another address"
[ -z "$no_redis" ] || say "Redis clients cannot connect: $no_redis; set REDIS_ADDRESS to another address"
SECONDS=0
encoded=$(printf '%s' "$host_data" | base64)
set -m
env -i ${metrics:+KEYVALUE_METRICS_ADDRESS="$metrics"} ${redis:+KEYVALUE_REDIS_ADDRESS="$redis"} \
  KEYVALUE_STORE="$store" .venv/bin/keyvalue-inmemory <<<"$encoded" &
provider=$!
set +m
until answers --wait 1; do
  kill -0 "$provider" 2>/dev/null || break
  [ $SECONDS -lt 60 ] || { say "the provider does not answer at $address as $prefix"; exit 1; }
done

if kill -0 "$provider" 2>/dev/null; then
  where=''
  [ "$address" = 127.0.0.1:4222 ] || where=" --nats $(printf %q "$address")"
  [ "$prefix" = default.keyvalue-inmemory ] || where="$where --prefix $(printf %q "$prefix")"
  try=.venv/bin/wrpc-kv$where keys=keys
  if [ -n "$redis" ]; then
    redis_host=${redis%:*} redis_port=${redis##*:} try=redis-cli keys=--scan
    redis_host=${redis_host#[} redis_host=${redis_host%]}
    [ "$redis_host" = 127.0.0.1 ] || try="$try -h $redis_host"
    [ "$redis_port" = 6379 ] || try="$try -p $redis_port"
  fi
  # The provider's own name of the KV bucket. With HOST_DATA, an option may set another.
  bucket=${PROVIDER_KEY:-keyvalue-inmemory} second=''
  bucket=${bucket//[^-_A-Za-z0-9]/_}
  if [ "$store" = jetstream ] && [ -z "${HOST_DATA:-}" ]; then
    second=".venv/bin/keyvalue-inmemory serve --store jetstream --jetstream-bucket $bucket$where"
  fi
  cat <<EOF

Ready. In another terminal, in this folder, try:

  $try set hello world
  $try get hello
  $try $keys${metrics:+
  curl $(printf %q "http://$metrics/metrics")}${second:+

This starts a second instance, which serves the same keys:

  $second}

Ctrl-C stops the provider${nats:+ and the NATS server}.
$([ "$store" = memory ] || [ -z "$nats" ] || echo "The keys stay in $streams. Delete the folder to forget them.")

EOF
fi
# Bash before 4.3 has no `wait -n`, so there the end of the NATS server goes unnoticed. Bash writes that a process was
# killed, with a part of this script.
wait -n "$provider" $nats 2>/dev/null || true
if [ -n "$nats" ] && ! kill -0 "$nats" 2>/dev/null; then
  tail -n 3 "$work/nats.log" >&2
  say "the NATS server has ended, so the provider is stopped"
  exit 1
fi
code=0
wait "$provider" 2>/dev/null || code=$?
if [ "$code" -gt 128 ]; then
  say "the provider was ended by SIG$(kill -l "$code")"
else
  say "the provider has ended with exit code $code"
fi
exit "$code"
