#!/usr/bin/env bash
# Run the job command where it belongs: on the cluster whose dashboard RAY_ADDRESS names, by
# submit.sh, else on this machine. All arguments are the job command's own; so is the exit code, 75
# included: the cluster could not be had for now, the same command later.
#
# RAY_ADDRESS=HOST:PORT, without http, is for a driver on the cluster itself: with cluster=auto.
#
# The job command can be started from any folder: relative paths are relative to where you are.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ${RAY_ADDRESS:-} == http://* || ${RAY_ADDRESS:-} == https://* ]]; then
    exec "$root/jobs/submit.sh" "$@"
fi
if [[ -n ${RAY_ADDRESS:-} && " $*" != *" cluster="* ]]; then
    echo "error: RAY_ADDRESS=$RAY_ADDRESS is no dashboard: name http://HOST:8265 to submit the job" \
        "there, add cluster=auto to run it from here on that cluster, or unset it" >&2
    exit 2
fi
[[ -d $root/.venv/bin ]] && PATH=$root/.venv/bin:$PATH
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec python -m ldm_batch.run "$@"
