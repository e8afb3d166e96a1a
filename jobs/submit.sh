#!/usr/bin/env bash
# Submit a job to a running Ray cluster, follow it, and end with its exit code.
#
#   RAY_ADDRESS=http://head:8265 jobs/submit.sh conf=txt2img_1m \
#       source=s3 source.uri=s3://bucket/prompts/ sink=s3 sink.uri=s3://bucket/cats
#
# All arguments are the job command's own. Options before them:
#   --submission-id ID   default: the last part of sink.uri, today's date (UTC) and eight digits that
#                        stand for all arguments of the job, cats-20260131-1a2b3c4d
#   --no-wait            submit and leave; `ray job logs --follow ID` shows it later
#   --install            install constraints.txt's packages on each node first, for clusters that do
#                        not run the image of jobs/Dockerfile
#
# Twice by mistake is harmless: while a job of this id runs, the second command follows it and starts
# nothing. After it ended, the same command submits ID-2, ID-3, ... which makes what is missing.
# Another argument, whatever it is, makes another job of it, with an id of its own. And two jobs on one
# sink would disturb nobody: a shard's object is created exclusively, the second attempt at it is
# thrown away.
#
# What runs is this checkout, or what is installed here: ldm_batch/, conf/ and constraints.txt travel
# as the job's working directory, named by their content. Nothing else does, secrets least of all:
# credentials for S3 and the hub belong to the nodes (role, service account, environment).
#
# Ray asks for a token wherever one was made (`ray get-auth-token --generate`, KubeRay's authOptions).
# Then set RAY_AUTH_MODE=token here, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or
# keep it in ~/.ray/auth_token. Never put it on a command line.
#
# Exit codes: the job's (0 done, 1 some shards failed, 2 the job could not run: do not retry, 75 the
# cluster had no room or was lost: try again later), 75 also when the cluster does not answer here or
# lost the job, 143 it was stopped by `ray job stop`. Ctrl-C leaves the job running.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -d $root/.venv/bin ]] && PATH=$root/.venv/bin:$PATH
export RAY_USAGE_STATS_ENABLED=${RAY_USAGE_STATS_ENABLED:-0}
unreachable=75

fail() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-2}"
}

usage() {
    sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
}

# Print what is known of a job: its id, status and exit code; the ids of one stem are ID, ID-2, ...
# Ray's own command prints these for people, ends with 1 for every failure and with 0 for a job that
# was stopped.
ask() {
    python - "$@" <<'PYTHON'
import itertools
import os
import sys

question, name = sys.argv[1:]
try:
    from ray.job_submission import JobSubmissionClient

    jobs = {job.submission_id: job for job in JobSubmissionClient().list_jobs()}
except ImportError as error:
    print(f"error: job submission needs pip install 'ray[default]' here ({error})", file=sys.stderr)
    sys.exit(2)
except Exception as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    is_refused = reason.startswith("Authentication")
    hint = "; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the cluster's token"
    print(
        f"error: RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {reason}{hint if is_refused else ''}",
        file=sys.stderr,
    )
    sys.exit(2 if is_refused else 75)
if question == "free":
    for number in itertools.count(1):
        job = jobs.get(name if number == 1 else f"{name}-{number}")
        if job is None or not job.status.is_terminal():
            print(name if number == 1 else f"{name}-{number}", job.status if job else "NEW")
            break
else:
    job = jobs.get(name)
    code = job.driver_exit_code if job else None
    print(job.status if job else "NEW", "" if code is None else code)
PYTHON
}

# Take along what follows the log. Again and again: a child that has only just been forked misses it.
leave() {
    local child
    rm -rf "$stage"
    for child in $(jobs -p); do
        while kill -TERM "$child" 2>/dev/null; do
            sleep 0.1
        done
    done
}

# A job whose driver gave no exit code did not start (its environment) or lost its node. Neither says
# that it cannot run, nor that a shard failed: try again later.
exit_code() {
    local status=$1 code=${2:-$unreachable}
    case $status in
    SUCCEEDED) return 0 ;;
    STOPPED) return 143 ;;
    *) return "$((code > 0 && code < 256 ? code : code < 0 && code > -65 ? 128 - code : unreachable))" ;;
    esac
}

follow() {
    local id=$1 answer status code tries=0
    while true; do
        ray job logs --follow "$id" &
        wait "$!" || true
        if answer=$(ask job "$id"); then
            read -r status code <<<"$answer"
            case $status in
            SUCCEEDED | STOPPED | FAILED) exit_code "$status" "$code" && exit 0 || exit "$?" ;;
            NEW) fail "job $id is not known to the cluster any more: its head was lost; the same \
command submits it again and makes what is missing" "$unreachable" ;;
            esac
            tries=0
        elif ((++tries > 10)); then
            fail "the cluster at $RAY_ADDRESS does not answer; job $id may still run" "$unreachable"
        fi
        sleep 2
    done
}

# In a folder that `ldm-batch init` made the code is what is installed here, and conf/ the user's own.
copy_code() {
    local package=$root/ldm_batch
    [[ -d $package ]] || package=$(python -c 'import ldm_batch; print(*ldm_batch.__path__)') || return
    cp -R "$package" "$root/conf" "$root/constraints.txt" "$stage/" || return
    [[ $package == "$root/ldm_batch" || -d $package/conf ]] ||
        cp -R "${package%/*}/conf" "$stage/ldm_batch/"
}

submission_id='' wait_for_it=true environment=runtime_env.yaml
while (($#)); do
    case $1 in
    --submission-id)
        (($# > 1)) || fail '--submission-id needs an id'
        submission_id=$2
        shift 2
        ;;
    --submission-id=*) submission_id=${1#*=} && shift ;;
    --no-wait) wait_for_it=false && shift ;;
    --install) environment=runtime_env_install.yaml && shift ;;
    --help | -h) usage ;;
    --) shift && break ;;
    -*) fail "unknown option $1; --help shows the options, the job's own arguments come after them" ;;
    *) break ;;
    esac
done
(($#)) || fail 'no arguments for the job, e.g. conf=txt2img_1m source.uri=... sink.uri=...'
[[ -n ${RAY_ADDRESS:-} ]] || fail "RAY_ADDRESS is not set; name the cluster's dashboard, e.g. \
RAY_ADDRESS=http://head:8265"
[[ $RAY_ADDRESS == http://* || $RAY_ADDRESS == https://* ]] ||
    fail "RAY_ADDRESS=$RAY_ADDRESS is not a job server; name the dashboard, e.g. http://head:8265"

stem=job cluster=(cluster=auto)
for argument in "$@"; do
    case $argument in
    source.uri=s3://* | sink.uri=s3://*) ;;
    *=[\'\"]/*) ;;
    source.uri=[!/[]* | sink.uri=[!/]* | model.path=[!/]* | upscale.model.path=[!/]*)
        [[ $argument == *=*://* || $argument == *model.path=demo:* ]] || fail "$argument is relative, \
but the job runs on another machine; name a path that all nodes share, or s3://bucket/..."
        ;;
    esac
    case $argument in
    cluster=*) cluster=() ;;
    sink.uri=*) stem=${argument%/} && stem=${stem##*[/=]} ;;
    esac
done
stem=${stem//[^A-Za-z0-9_-]/-}
if [[ -z $submission_id ]]; then
    hash=$(printf '%s\0' "$@" | python -c 'import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest()[:8])') ||
        fail "python does not run here, see above"
    submission_id=$stem-$(date -u +%Y%m%d)-$hash
fi

stage=$(mktemp -d) || fail 'no folder for the copy of the code that is sent, see above'
trap leave EXIT
{
    copy_code && printf '__pycache__/\n*.pyc\n' >"$stage/.gitignore"
} || fail "cannot copy the code that is sent to $stage, see above"

answer=$(ask free "$submission_id") || exit "$?"
read -r id status <<<"$answer"
trap 'printf "\njob %s goes on; to stop it: ray job stop %s\n" "$id" "$id" >&2; exit 130' INT
trap 'printf "job %s goes on; to stop it: ray job stop %s\n" "$id" "$id" >&2; exit 143' TERM
if [[ $status == NEW ]]; then
    ray job submit --no-wait --submission-id "$id" --working-dir "$stage" \
        --runtime-env "$root/jobs/$environment" \
        -- python -m ldm_batch.run "${cluster[@]}" "$@" || {
        answer=$(ask job "$id") || exit "$?"
        [[ $answer != NEW* ]] || fail "the cluster refused the job, see above" "$unreachable"
    }
else
    printf 'job %s is running already; following it\n' "$id" >&2
fi
printf 'job %s\n' "$id"
if $wait_for_it; then
    follow "$id"
fi
