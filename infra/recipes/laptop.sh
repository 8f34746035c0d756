#!/bin/sh
# One machine without GPU: a folder of videos with captions.csv to an encoder, in about an hour
# for a hundred clips. Usage: infra/recipes/laptop.sh VIDEOS
set -eu
python jobs/preprocess.py --source "$1" --output triplets --depth plane
python jobs/pretrain.py --config jobs/configs/demo.yaml --triplets triplets --train.steps 1000
