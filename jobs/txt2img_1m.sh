#!/usr/bin/env bash
# A million prompts at 256 pixels with the paper's model: 50 DDIM steps, one worker per GPU.
#
#   SOURCE=s3://bucket/prompts/ SINK=s3://bucket/cats jobs/txt2img_1m.sh
#
#   SOURCE            Parquet with a column `prompt`: a file, a glob, a folder or an s3:// prefix
#   SINK              the dataset: a folder or s3://bucket/prefix
#   MODEL_REVISION    another commit of CompVis/ldm-text2im-large-256 than the job names, or
#   MODEL_PATH        a local copy in diffusers' layout, on a path that all workers share
#   RAY_ADDRESS       http://head:8265 submits to that cluster (submit.sh); without it: this machine
#
# Arguments are added to the job's own, e.g. `dry_run=true`, `speed=fast`, `cluster.num_workers=8`.
# Start with dry_run=true, then with a source of 1,000 rows, and read `python -m ldm_batch tradeoff`
# before you pay for fifty steps.
#
# The same command again makes what is missing and nothing else: after a crash, a preemption, or with
# new input files. Exit codes: 0 done, 1 some shards failed (run it again), 2 the job could not run
# (read the message, running it again is useless), 75 the cluster could not be had for now (run it
# again later), 130 and 143 interrupted.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

[[ -n ${SOURCE:-} ]] || fail "SOURCE is not set: name the prompts: a Parquet file, a glob, a folder, \
or s3://bucket/prefix/"
[[ -n ${SINK:-} ]] || fail 'SINK is not set: name the dataset: a folder, or s3://bucket/prefix'
model=()
if [[ -n ${MODEL_PATH:-} ]]; then
    model=(model=local "model.path=$MODEL_PATH")
elif [[ -n ${MODEL_REVISION:-} ]]; then
    model=("model.revision=$MODEL_REVISION")
fi
exec "$(dirname "${BASH_SOURCE[0]}")/run.sh" conf=txt2img_1m "${model[@]}" \
    "source.uri=$SOURCE" "sink.uri=$SINK" "$@"
