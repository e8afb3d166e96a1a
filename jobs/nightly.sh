#!/usr/bin/env bash
# Every night the same command over an input folder that grows: new files become new shards, what
# failed or was interrupted is made, the rest is left alone. Then the dataset is looked at.
#
#   SOURCE=/data/prompts SINK=/data/cats jobs/nightly.sh
#   crontab: 0 1 * * *  cd /srv/ldm_batch && SOURCE=... SINK=... jobs/nightly.sh >/dev/null
#
#   SOURCE, SINK      as in txt2img_1m.sh; files that were planned must stay as they are, new rows
#                     belong into new files
#   CONF              the job, default txt2img_1m
#   MODEL_REVISION    or MODEL_PATH: the model, where the job does not name one itself; always the
#                     same, for another model is another dataset
#   RAY_ADDRESS       http://head:8265 submits to that cluster; without it: this machine
#   LOGS              default ~/.local/state/ldm_batch: NAME-20260131.log with all that was printed,
#                     NAME-20260131.json with the status, NAME.lock. NAME is the last part of SINK and
#                     eight digits that stand for all of it: cats-1a2b3c4d
#   VERIFY            `weekly` (default, on Sundays), `always` or `never`: verify reads every object
#
# Arguments are added to the job's own. For a store other than AWS set AWS_ENDPOINT_URL_S3, which the
# status reads as well. Nothing here cleans up: `python -m ldm_batch sweep` does, once a month.
#
# Two nights never overlap on one machine: a lock that ends with this script, also when it is killed.
# On two machines they may: a shard is committed once, for its object is created exclusively, and what
# one driver has committed the other's workers find before they make it. Only shards that both have
# under way at the same moment cost twice. After a crash the next night goes on; so does the same
# command by hand.
#
# Exit codes:
#   0         the dataset is whole
#   1         some shards failed; they are tried again tomorrow, the log names them
#   2         the job could not run (a changed input file, other settings, no model): somebody must look
#   3         the job is done, but status or verify found something wrong with the dataset
#   75        the night before is still at work (nothing was done), or the cluster could not be had:
#             it does not answer, has no room or was lost; what is committed stays, try again later
#   130, 143  interrupted; what is committed stays
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

[[ -n ${SOURCE:-} ]] || fail 'SOURCE is not set: name the input folder, the one that grows'
[[ -n ${SINK:-} ]] || fail 'SINK is not set: name the dataset: a folder, or s3://bucket/prefix'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
verify=${VERIFY:-weekly}
[[ $verify == weekly || $verify == always || $verify == never ]] ||
    fail "VERIFY=$verify may be weekly, always or never"
model=()
if [[ -n ${MODEL_PATH:-} ]]; then
    model=("model.path=$MODEL_PATH" "model.repo_id=null")
elif [[ -n ${MODEL_REVISION:-} ]]; then
    model=("model.revision=$MODEL_REVISION")
fi

# Two datasets may have one last name, so the whole of SINK is in the name too, by its hash.
sink=${SINK%/}
[[ $sink == /* || $sink == *://* ]] || sink=$PWD/$sink
hash=$(printf %s "$sink" | sha256sum)
name=${sink##*/}-${hash:0:8}
[[ -n ${LOGS:-}${XDG_STATE_HOME:-}${HOME:-} ]] ||
    fail 'LOGS is not set and there is no HOME: name a folder for log, status and lock'
logs=${LOGS:-${XDG_STATE_HOME:-${HOME:-}/.local/state}/ldm_batch}
{ mkdir -p "$logs" && exec 9>"$logs/$name.lock"; } ||
    fail "cannot write to $logs, see above; name another folder as LOGS"

flock --nonblock --conflict-exit-code 75 9 || {
    code=$?
    ((code == 75)) || fail "cannot lock $logs/$name.lock (flock ended with $code), see above"
    echo "error: another run for $SINK holds $logs/$name.lock; nothing was done" >&2
    exit 75
}
night=$(date +%Y%m%d)
# The log outlives a signal to the whole group of processes, as of Ctrl-C or systemd.
exec > >(trap '' INT TERM; exec tee -a "$logs/$name-$night.log" 9>&-) 2>&1

# What is started here does not inherit the lock, or a process left behind by a crash would keep it.
child='' interrupted=0
run() {
    "$@" 9>&- &
    child=$!
    ((interrupted)) && kill -TERM "$child" 2>/dev/null # it came before there was a child to tell
    local code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    ((interrupted)) && code=$interrupted
    return "$code"
}
trap 'interrupted=143; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
trap 'interrupted=130; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' INT

look() {
    run env PATH="$root/.venv/bin:$PATH" PYTHONPATH="$root" python -m ldm_batch "$1" "$SINK" "${@:2}"
}

echo "== $(date -u +%FT%TZ) $SINK: the job"
code=0
run "$root/jobs/run.sh" "conf=${CONF:-txt2img_1m}" "${model[@]}" \
    "source.uri=$SOURCE" "sink.uri=$SINK" "$@" || code=$?
if ((code > 1)); then
    echo "== $(date -u +%FT%TZ) $SINK: exit code $code"
    exit "$code"
fi

echo "== $(date -u +%FT%TZ) $SINK: status"
status=0
look status --json >"$logs/$name-$night.json" || status=$?
look status || true
checked=0
if ((code == 0)) && { [[ $verify == always ]] || [[ $verify == weekly && $(date +%u) == 7 ]]; }; then
    echo "== $(date -u +%FT%TZ) $SINK: verify"
    look verify || checked=$?
fi
((interrupted)) && exit "$interrupted"
if ((code == 0)) && ((status || checked)); then
    code=3
fi
echo "== $(date -u +%FT%TZ) $SINK: exit code $code"
exit "$code"
