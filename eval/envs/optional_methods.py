"""Optional methods of an environment, beyond moving and rendering.

A method that is not overridden refuses in one line: the environment's name and what it lacks. Used
by: collection and the suite imitation (``expert_action``), linear probes (``privileged``), saliency
(``robot_and_object``), exact flow (depth, camera, bodies), perturbed views of one state
(``state``, ``set_state``) and moving cameras (``follow_camera_path``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dynaflip.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class OptionalMethods:
    """The methods of :class:`~dynaflip.eval.envs.base.Env` that an environment may lack."""

    spec: _Named

    def has_expert(self) -> bool:
        """True where there is a scripted expert, which :meth:`expert_action` asks."""
        return type(self).expert_action is not OptionalMethods.expert_action

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action (A,) float32 in the present state."""
        raise self._lacks("no scripted expert")

    def privileged(self) -> dict[str, np.ndarray]:
        """Labels that only a simulator knows; policies and encoders must never read them.

        Recorded as ``privileged.NAME``. Linear probes want ``object_position_m`` (3,) in the
        world frame and ``joint_angles`` (J,) in radians; other names are recorded too.
        """
        return {}

    def goal_distance_m(self) -> float | None:
        """Distance of the task's object from its goal now, metres; 0 is there.

        None where it is not known. Reports tell near misses from failures by it.
        """
        return None

    def recorded_state(self) -> dict[str, np.ndarray]:
        """The physical state, recorded as ``privileged.*``: equally wide for all tasks."""
        return {}

    def state(self) -> Any:
        """A copy of all that moves, for :meth:`set_state`."""
        raise self._lacks("no state that can be restored")

    def set_state(self, state: Any) -> None:
        """Put everything where a state of the same task and layout had it; the image with it."""
        raise self._lacks("no state that can be restored")

    def robot_and_object(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the robot and of the task's objects: two (H, W) bool."""
        raise self._lacks("no segmentation of robot and objects")

    def rgb_and_depth(self) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 and distance along the viewing axis (H, W) float32, metres."""
        raise self._lacks("no depth")

    def intrinsics(self) -> np.ndarray:
        """Camera matrix (3, 3) float64 in pixels."""
        raise self._lacks("no depth camera")

    def camera_pose(self) -> np.ndarray:
        """Camera → world, (4, 4) float64, OpenCV axes, metres."""
        raise self._lacks("no depth camera")

    def set_camera_pose(self, pose: np.ndarray) -> None:
        """Move the camera: (4, 4) camera → world, OpenCV axes, metres."""
        raise self._lacks("no camera that can be placed")

    def depth_m(self) -> np.ndarray:
        """Distance along the viewing axis: (H, W) float32 metres."""
        return self.rgb_and_depth()[1]

    def bodies(self) -> np.ndarray:
        """Id of the rigid body at each pixel: (H, W) int32; 0 for what never moves."""
        raise self._lacks("no segmentation of bodies")

    def body_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """World poses of all bodies by id: positions (N, 3) in metres, rotations (N, 3, 3)."""
        raise self._lacks("no poses of bodies")

    def state_at(self, qpos: np.ndarray) -> Any:
        """The present state with recorded coordinates (``privileged.qpos``), at rest."""
        raise self._lacks("no recorded coordinates")

    def follow_camera_path(self, camera: dict[str, Any], time_s: float) -> None:
        """Move the camera to where a moving camera's value has it at a time."""
        raise self._lacks("no moving camera")

    def _lacks(self, what: str) -> UserError:
        return UserError(f"environment: {self.spec.name} has {what}")
