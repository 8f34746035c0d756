"""Fitting a policy of an evaluation, and making it again from its saved tensors.

Legend of shapes: N frames of all demonstrations, D feature width, V values of a frame's tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynaflip.eval.policies.config import BehaviourCloningConfig, EndToEndConfig
from dynaflip.eval.policies.frozen_fit import fit_frozen, scales_of, store_tokens
from dynaflip.eval.policies.recipe import (
    ENCODER_PREFIX,
    PolicyRecipe,
    PolicyTensors,
    assemble,
    split_tensors,
)
from dynaflip.platform.evaluation.encoders_under_test import load
from dynaflip.platform.evaluation.plan import PolicySpec

if TYPE_CHECKING:
    from dynaflip.encoders.image import ImageEncoder
    from dynaflip.eval.policies.base import Demonstrations
    from dynaflip.eval.policies.encoder_policy import EncoderPolicy

# On a CPU a small batch's activations stay in the cache: 64 images at once took 1.4 times as
# long an image (EfficientNet-Lite0 at 112 px).
FEATURE_BATCH = 16
_A_TASK = 10**6  # between the numbers of two tasks' episodes


def encode_demonstrations(encoder: Any, parts: Sequence[Any], spec: PolicySpec) -> Demonstrations:
    """Encode the frames that policies learn from: every image once, and in no minibatch.

    Args:
        encoder: the frozen one; or one that lives in an encoder actor, as :class:`dynaflip.
            platform.evaluation.encoder_service.RemoteEncoder`.
        parts: decoded frames of each task, as of ``spec.demonstrations``.
        spec: any of the policies, which share encoder, demonstrations and read-out.

    Raises:
        UserError: the encoder does not do what an encoder must.
    """
    import numpy as np

    from dynaflip.eval.policies.base import Demonstrations
    from dynaflip.eval.policies.encoder_policy import apart, check_encoder, features_of, tokens_of

    scales, words = scales_of(spec.readout, spec.readout_settings), words_of(spec)
    check_encoder(encoder, apart(parts[0].images), scales)
    size = getattr(encoder, "batch", FEATURE_BATCH)  # an encoder actor's is that of a GPU
    batches = [
        part.images[start : start + size]
        for part in parts
        for start in range(0, len(part.images), size)
    ]
    number = sum(len(part.images) for part in parts)
    features, tokens = np.zeros((number, 0), np.float32), None
    if scales is None:
        features = np.concatenate([features_of(encoder, batch) for batch in batches])
    else:
        tokens = store_tokens((tokens_of(encoder, batch, scales) for batch in batches), number)
    context = None
    if words is not None:
        context = np.repeat(words, [len(part.images) for part in parts], 0)
    return Demonstrations(
        features=features,
        proprioception=np.concatenate([part.proprioception for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        episode=np.concatenate([part.episode + _A_TASK * i for i, part in enumerate(parts)]),
        context=context,
        tokens=tokens,
    )


def fit_policy(spec: PolicySpec, demonstrations: Demonstrations) -> dict[str, Any]:
    """Tensors of a fitted head, and of the read-out that learnt with it.

    Args:
        spec: of the policy.
        demonstrations: of :func:`encode_demonstrations`; it learns from the first episodes of each
            task where it says so.
    """
    if spec.demonstrations[0].first is not None:
        rows = _first_rows(demonstrations.episode, [d.shown for d in spec.demonstrations])
        demonstrations = demonstrations.some(rows)
    return fit_frozen(recipe_of(spec), demonstrations, spec.seed)


def fit_end_to_end_policy(spec: PolicySpec, frames: Any, device: str = "cpu") -> dict[str, Any]:
    """Tensors of head and encoder, trained together; on the CPU, whichever device trained them.

    Args:
        spec: of the policy.
        frames: decoded, of its demonstrations.
        device: of the training.

    Raises:
        UserError: the encoder does not do what an encoder must.
    """
    from dynaflip.eval.policies.base import chunks_of
    from dynaflip.eval.policies.encoder_policy import apart, check_encoder
    from dynaflip.eval.policies.end_to_end import fit_end_to_end

    settings = BehaviourCloningConfig(**spec.head_settings)
    encoder = load(spec.encoder)  # of its own: it is changed in place
    check_encoder(encoder, apart(frames.images))
    first = spec.demonstrations[0].first
    rows = slice(None) if first is None else _first_rows(frames.episode, [first])
    encoder, head = fit_end_to_end(
        encoder,
        frames.images[rows],
        frames.proprioception[rows] if spec.use_proprioception else None,
        chunks_of(frames.actions[rows], frames.episode[rows], settings.chunk),
        settings,
        EndToEndConfig(**spec.end_to_end),
        mode=spec.adaptation,
        seed=spec.seed,
        device=device,
    )
    adapted = {ENCODER_PREFIX + name: tensor for name, tensor in encoder.state_dict().items()}
    return head.state_dict() | adapted


def fitted_policy(
    spec: PolicySpec, weights: Mapping[str, Any], frozen: Any, task: str
) -> EncoderPolicy:
    """A policy that acts, from its tensors.

    Args:
        spec: what it is.
        weights: of :func:`fit_policy` or :func:`fit_end_to_end_policy`.
        frozen: its encoder, as long as it was not trained with the policy.
        task: that it acts in, where it serves several.
    """
    words, tensors = words_of(spec), split_tensors(weights)
    encoder = adapted_encoder(spec, tensors) if tensors.encoder else frozen
    context = None if words is None else words[[d.task for d in spec.demonstrations].index(task)]
    return assemble(recipe_of(spec), tensors, encoder, context)


def adapted_encoder(spec: PolicySpec, tensors: PolicyTensors) -> ImageEncoder:
    """The encoder that was trained with a policy; low-rank additions are in its weights."""
    encoder = load(spec.encoder)
    encoder.load_state_dict(tensors.encoder)
    return encoder.eval()


def recipe_of(spec: PolicySpec) -> PolicyRecipe:
    """A policy's description for :func:`~dynaflip.eval.policies.recipe.assemble`."""
    return PolicyRecipe(
        spec.head,
        spec.head_settings,
        spec.readout,
        spec.readout_settings,
        spec.use_proprioception,
    )


def words_of(spec: PolicySpec) -> Any:
    """(tasks, C) float32 of the tasks' captions, or None where a policy serves one task."""
    if len(spec.demonstrations) == 1:
        return None
    from dynaflip.encoders.config import LanguageConfig
    from dynaflip.encoders.language import embed_captions

    captions = [d.caption for d in spec.demonstrations]
    return embed_captions(captions, LanguageConfig()).numpy()


def _first_rows(episode: Any, numbers: Sequence[int]) -> Any:
    """(M,) int: frames of the first episodes of each task.

    Args:
        episode: (N,) int, of all frames, in order.
        numbers: how many episodes of each task.
    """
    import numpy as np

    task = episode // _A_TASK
    chosen = [np.unique(episode[task == i])[:number] for i, number in enumerate(numbers)]
    return np.flatnonzero(np.isin(episode, np.concatenate(chosen)))
