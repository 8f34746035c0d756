#!/bin/sh
# A cluster of GPUs that may be taken away: up to 64 workers, going on with as few as 8, and
# checkpoints in a bucket. RECORDINGS and TRIPLETS are absolute paths on a disk that all nodes share.
# Usage: RAY_ADDRESS=http://HEAD:8265 RAY_AUTH_TOKEN=… infra/recipes/many_gpus.sh RECORDINGS TRIPLETS
set -eu
export RAY_AUTH_MODE=token
ray job submit --working-dir . -- python jobs/preprocess.py --source "$1" --output "$2" --image_px 224
ray job submit --no-wait --working-dir . -- python jobs/pretrain.py --triplets "$2" \
    --model.image.name facebook/dinov2-base --model.image.image_px 224 \
    --data.batch_size 32 --train.num_workers 64 --train.min_workers 8 --train.max_failures 100 \
    --train.precision bfloat16 --train.device gpu --train.epochs 10 --train.wait_s 1800 \
    --train.checkpoint_every_steps 200 --train.checkpoint_storage s3://checkpoints/dynaflip
