#!/bin/sh
# The weights' sweep on a cluster with a GPU a trial, early stopping, and the study in Postgres.
# Usage: RAY_ADDRESS=http://HEAD:8265 RAY_AUTH_TOKEN=… infra/recipes/sweep.sh TRIPLETS postgresql://USER@HOST/studies
# The password is PGPASSWORD or ~/.pgpass of the nodes: one in the URL shows in lists of processes.
set -eu
export RAY_AUTH_MODE=token
ray job submit --no-wait --working-dir . -- python jobs/sweep.py --triplets "$1" --storage "$2" \
    --trials 64 --concurrent 8 --scheduler asha --train.device gpu --train.precision bfloat16 \
    --train.wait_s 1800 \
    --search "objective.volume=log(0.1,10)" "objective.cosine=log(0.1,10)" \
    "objective.contrastive=uniform(0.2,2)"
