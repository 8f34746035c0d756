#!/bin/sh
# One GPU: the paper's backbone at its size. The batch of 256 has the negatives of 256 and the
# memory of 64. Triplets keep images of the size that the backbone sees.
# Usage: infra/recipes/one_gpu.sh RECORDINGS TRIPLETS
set -eu
python jobs/preprocess.py --source "$1" --output "$2" --image_px 224
python jobs/pretrain.py --triplets "$2" \
    --model.image.name facebook/dinov2-base --model.image.image_px 224 \
    --data.batch_size 256 --train.micro_batch_size 64 --train.precision bfloat16 \
    --train.device gpu --train.epochs 10 --train.checkpoint_every_steps 500
