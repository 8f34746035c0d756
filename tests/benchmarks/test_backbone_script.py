"""The GPU benchmark runs at a tiny size on a CPU, so that it works when there is a GPU."""

from __future__ import annotations

import backbone
import pytest


@pytest.mark.slow
def test_the_script_measures_every_batch_size() -> None:
    words = "--size tiny --px 28 --device cpu --batches 2 3 --repeats 1 --no-compile"
    lines = backbone.main(words.split())
    assert [line["batch"] for line in lines] == [2, 3]
    for line in lines:
        assert line["images_per_s"] > 0
        assert line["TFLOP"] > 0
        assert 0 < line["loss_share"] < 1
