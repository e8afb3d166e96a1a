#!/usr/bin/env bash
# Run the job command where it belongs: on the cluster whose dashboard RAY_ADDRESS names, by
# submit.sh, else on this machine. All arguments are the job command's own; so is the exit code, 75
# included: the cluster could not be had for now, the same command later.
#
# The job command can be started from any folder: relative paths are relative to where you are.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ${RAY_ADDRESS:-} == http://* || ${RAY_ADDRESS:-} == https://* ]]; then
    exec "$root/jobs/submit.sh" "$@"
fi
[[ -d $root/.venv/bin ]] && PATH=$root/.venv/bin:$PATH
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec python -m ldm_batch.run "$@"
