"""Which encoders an evaluation compares, as a table: weights, pooling, image size, licence."""

from __future__ import annotations

from collections.abc import Sequence

from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest
from dynaflip.platform.evaluation.outside_encoders import UNKNOWN, description
from dynaflip.platform.evaluation.report.tables import Section


def encoder_section(tested: Sequence[EncoderUnderTest]) -> Section:
    """A row per entry, of its first encoder; policies without an encoder have none.

    A licence is the one that the user names, else that of the model's card, and for an encoder of
    this package that of the weights which its pretraining started from.
    """
    section = Section(
        "Encoders as they were compared", columns=("", "weights", "pooling", "image", "licence")
    )
    for entry in tested:
        encoder = entry.encoders[0]
        if encoder.folder is None:
            continue
        said = description(encoder.folder)
        more = f" and {len(entry.encoders) - 1} more" if len(entry.encoders) > 1 else ""
        licence = encoder.licence or said["licence"] or UNKNOWN
        image = f"{said['image_px']} px"
        section.rows.append([entry.name, f"{encoder.name}{more}", said["pooling"], image, licence])
    return section
