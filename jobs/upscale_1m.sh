#!/usr/bin/env bash
# A million images, four times as large, with the paper's super-resolution model: 100 DDIM steps.
#
#   SOURCE=s3://bucket/small/ SINK=s3://bucket/large jobs/upscale_1m.sh
#
#   SOURCE            Parquet with a column `image` (bytes, {bytes, path} or paths); the data/ folder
#                     of a dataset made here is one: keys and columns are carried along
#   SINK              the new dataset: a folder or s3://bucket/prefix
#   MODEL_REVISION    another commit of CompVis/ldm-super-resolution-4x-openimages than the job names, or
#   MODEL_PATH        a local copy in diffusers' layout, on a path that all workers share
#   RAY_ADDRESS       http://head:8265 submits to that cluster (submit.sh); without it: this machine
#
# Arguments are added to the job's own, e.g. `dry_run=true`, `call.num_inference_steps=20`,
# `upscale.alpha=keep`, `source.image_root=s3://bucket/files/` where the column holds paths.
#
# Large inputs make large objects: sixteen times the pixels. `max_object_bytes` bounds them, the plan
# then cuts more and smaller shards; `dry_run=true` shows how many.
#
# The same command again makes what is missing and nothing else. Exit codes: 0 done, 1 some shards
# failed (run it again), 2 the job could not run (running it again is useless), 75 the cluster could
# not be had for now (run it again later), 130 and 143 interrupted.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

[[ -n ${SOURCE:-} ]] || fail "SOURCE is not set: name the images: a Parquet file, a glob, a folder, \
or s3://bucket/prefix/"
[[ -n ${SINK:-} ]] || fail 'SINK is not set: name the dataset: a folder, or s3://bucket/prefix'
model=()
if [[ -n ${MODEL_PATH:-} ]]; then
    model=(model=local_upscale "model.path=$MODEL_PATH")
elif [[ -n ${MODEL_REVISION:-} ]]; then
    model=("model.revision=$MODEL_REVISION")
fi
exec "$(dirname "${BASH_SOURCE[0]}")/run.sh" conf=upscale_1m "${model[@]}" \
    "source.uri=$SOURCE" "sink.uri=$SINK" "$@"
