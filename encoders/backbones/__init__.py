"""Image backbones behind one interface, :class:`dynaflip.encoders.backbones.base.Backbone`.

``model.image.name`` is a name of this table, of an installed package's entry point in the group
``dynaflip.backbone``, or ``class:MODULE:NAME``. Any other name is the folder or hub id of a
transformers vision model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.plugins import CLASS_PREFIX, ExtensionPoint

if TYPE_CHECKING:
    from dynaflip.encoders.backbones.base import Backbone

_HERE = "dynaflip.encoders.backbones"
BACKBONES = ExtensionPoint(
    "backbone",
    {
        "efficientnet-lite0": f"{_HERE}.efficientnet_lite:EfficientNetLite0Backbone",
    },
    contract=f"{_HERE}.base.Backbone",
    otherwise="the folder or hub id of a transformers vision model",
)
_SETTING = "model.image.name"


def own_class(name: str) -> str | None:
    """A backbone's name where it is a class of the user's own, ``class:MODULE:NAME``; or None."""
    return name if name.startswith(CLASS_PREFIX) else None


def backbone_class(name: str, *, trusted: bool = True, setting: str = _SETTING) -> type[Backbone]:
    """The class of a backbone.

    Args:
        name: ``model.image.name``.
        trusted: whether the name is from the user's own settings; False for one that was read
            from an encoder's folder, which may have been downloaded.
        setting: where it was given, for errors.

    Raises:
        UserError: not importable, no backbone, or ``class:`` where that is not allowed.
    """
    from dynaflip.encoders.backbones.base import Backbone
    from dynaflip.encoders.backbones.transformers_vision import TransformersBackbone

    if not BACKBONES.knows(name):
        return TransformersBackbone
    cls: Any = BACKBONES.resolve(name, setting, trusted=trusted)
    if not (isinstance(cls, type) and issubclass(cls, Backbone)):
        raise UserError(f"{setting}: {name} is no subclass of {BACKBONES.contract}")
    return cls
