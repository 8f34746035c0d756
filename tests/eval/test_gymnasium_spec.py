"""Gymnasium environments by id and by class, with nothing else said."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from dynaflip.errors import UserError
from dynaflip.eval import perturbations
from dynaflip.eval.envs.gymnasium_spec import gymnasium_environment
from dynaflip.eval.envs.registry import environment, recorded_environment
from dynaflip.eval.expert_views import act_as_expert
from dynaflip.eval.image_perturbations import perturb
from dynaflip.eval.metrics.action_error import show_expert
from dynaflip.eval.rollout import EpisodeStart, roll_out

OWN = "class:point_reacher:PointReacher"
BY_ID = "gym:point_reacher:PointReacher-v0"


def opened(name: str, px: int = 32):
    spec = environment(name)
    return spec.open(spec.tasks[0], height_px=px, width_px=px)


@pytest.mark.parametrize("name", [OWN, BY_ID])
def test_an_id_or_a_class_is_enough(name: str) -> None:
    spec = environment(name)
    assert (spec.name, spec.control_hz, spec.action_dim, spec.proprioception_dim) == (
        name,
        10,
        2,
        2,
    )
    assert spec.horizon_steps == (30 if name == OWN else 25)
    assert spec.caption(spec.tasks[0]) == "point reacher"
    scene = opened(name)
    starts = [EpisodeStart(perturbations.layout_seed("dev", i), {}) for i in range(4)]
    options = {"horizon_steps": 25, "steps_after_success": 0, "record_first": True}
    results = roll_out([scene], starts, None, **options)
    assert all(result.success_ever for result in results)
    assert results[0].images[0].shape == (32, 32, 3)


def test_actions_are_rescaled_to_the_box_and_back() -> None:
    scene = opened(OWN)
    scene.reset(0)
    scene.raw.unwrapped.hand = np.zeros(2)  # far from every wall
    scene.step(np.array([0.5, -5.0]))  # 1 m/s, and cut off at -2 m/s, for 0.1 s
    np.testing.assert_allclose(scene.proprioception()[:2], [0.1, -0.2], atol=1e-6)
    scene.reset(0)
    own = scene.raw.unwrapped.expert_action(None, {})
    np.testing.assert_allclose(scene.expert_action(), own / 2, atol=1e-6)


def test_options_and_keyword_arguments_stand_in_brackets() -> None:
    spec = environment(f"{OWN}[horizon_steps=12,control_hz=5,caption=go to green,shade=10]")
    assert (spec.horizon_steps, spec.control_hz) == (12, 5)
    assert spec.caption("PointReacher") == "go to green"
    dark = spec.open("PointReacher", height_px=48, width_px=64)
    dark.reset(0)
    assert np.median(dark.rgb()) == 10
    keyed = environment("class:point_reacher:Keyed[proprioception=hand]")
    assert keyed.proprioception_names == ("hand_0", "hand_1")
    scene = keyed.open("Keyed")
    scene.reset(0)
    assert scene.proprioception().shape == (2,)
    assert environment("class:point_reacher:Keyed[proprioception=none]").proprioception_names == ()


def test_several_ids_or_arguments_are_several_tasks() -> None:
    both = environment("gym:point_reacher:PointReacher-v0,outside/DarkReacher-v0")
    assert both.tasks == ("PointReacher-v0", "outside-DarkReacher-v0")
    import point_reacher

    shades = {"light": {"shade": 200}, "dark": {"shade": 0}}
    spec = gymnasium_environment(
        point_reacher.PointReacher, tasks=shades, captions={"dark": ("reach in the dark",)}
    )
    assert (spec.caption("light"), spec.caption("dark")) == ("light", "reach in the dark")
    scene = spec.open("light", height_px=48, width_px=64)
    scene.reset(0)
    assert np.median(scene.rgb()) == 200


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("class:point_reacher:Discrete", r"action space Discrete\(2\).*must be a Box of floats"),
        ("class:point_reacher:Unbounded", "actions from -inf to inf; they need finite bounds"),
        ("class:point_reacher:NoFlag", r"holds solved; .*name the flag.*\[success=NAME\]"),
        ("class:point_reacher:Unseeded", "other images after 0 steps of two episodes"),
        ("class:point_reacher:NoImage", "renders None, not .* rgb_array"),
        ("class:point_reacher:NoHorizon", r"no longest episode; give it as \[horizon_steps=N\]"),
        ("class:point_reacher:Keyed", r"observes hand \(2\); .*\[proprioception=hand\]"),
        ("class:point_reacher:Keyed[proprioception=arm]", "no vector arm"),
        (
            f"{OWN}[colour=red]",
            "unexpected keyword argument 'colour'; options .* are success, prop",
        ),
        (f"{OWN}[horizon_steps=long]", "horizon_steps must be a number above 0"),
        (f"{OWN}[fast]", "'fast' must be KEY=VALUE"),
        ("class:outside_environment:ENVIRONMENT[fps=3]", "takes no options"),
        ("class:outside_environment:FOG", "a Factor, not an EnvironmentSpec or a class of gymn"),
        ("gym:", "names no id"),
        ("gym:NoSuchThing-v3", "cannot be made: Environment `NoSuchThing` doesn't exist"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        environment(name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_flag_by_another_name_is_taken_where_it_is_named() -> None:
    spec = environment("class:point_reacher:NoFlag[success=solved]")
    scene = spec.open("NoFlag")
    scene.reset(0)
    assert scene.step(np.zeros(2)).success is False


def test_images_are_perturbed_as_recorded_ones_are() -> None:
    scene = opened(OWN, 48)
    scene.reset(0)
    plain = scene.rgb()
    names = perturbations.IMAGE_SPACE_FACTORS
    assert scene.spec.factors == names
    for name in names:
        scene.apply(perturbations.sample("dev", 0, [name], 3))
        assert (scene.rgb() != plain).any(), name
    quiet = [name for name in names if name != "noise"]
    values = perturbations.sample("test", 1, quiet, 5)
    scene.apply(dict(reversed(values.items())))  # in whichever order, in one pass
    np.testing.assert_array_equal(scene.rgb(), perturb(plain[None], values, [0])[0])
    scene.restore()
    np.testing.assert_array_equal(scene.rgb(), plain)
    assert perturbations.seen_factors(names) == ("light", "tint")
    with pytest.raises(UserError, match="metaworld cannot show the factor blur"):
        environment("metaworld").check_factors(["blur"])


def test_the_expert_is_shown_the_same_moments_under_every_condition() -> None:
    scene = opened(OWN)
    blur = perturbations.sample("dev", 0, ["blur"], 3)
    starts = {"none": [EpisodeStart(7, {})], "blur-3": [EpisodeStart(7, blur)]}
    views = show_expert(scene, starts, horizon_steps=20)
    plain, blurred = (views.condition == name for name in starts)
    np.testing.assert_array_equal(views.actions[plain], views.actions[blurred])
    assert (views.images[plain] != views.images[blurred]).any()
    assert len({image.tobytes() for image in views.images[plain]}) > 1


def test_a_factor_that_changes_the_simulator_is_not_shown_on_moments_of_before() -> None:
    scene = opened(OWN)
    scene.reset(0)
    moment = scene.state()
    darker = perturbations.Factor(
        lambda value: {"u": value["u"]},
        lambda env, value, amount: setattr(env.raw, "shade", int(60 * value["u"])),
    )
    perturbations.FACTOR_TABLE._loaded["class:mine:DARKER"] = darker
    scene.apply(perturbations.sample("dev", 0, ["class:mine:DARKER"], 3))
    with pytest.raises(UserError, match="cannot be put back into a state"):
        scene.set_state(moment)


def test_what_was_seen_stays_as_it_was_though_the_environment_draws_on_it() -> None:
    spec = environment("class:point_reacher:OneBuffer")
    scene = spec.open(spec.tasks[0], height_px=48, width_px=64)
    scene.reset(0)
    before = scene.render(), scene.proprioception(), scene.state()
    image, state = before[0].copy(), before[1].copy()
    scene.step(np.array([1.0, 1.0]))
    np.testing.assert_array_equal(before[0], image)
    np.testing.assert_array_equal(before[1], state)
    np.testing.assert_array_equal(before[2].image, image)
    assert (scene.proprioception() != state).any()
    assert (scene.render() != image).any()


def test_an_expert_is_asked_for_nothing_once_the_episode_has_ended() -> None:
    scene = opened("class:point_reacher:Dropped")
    starts = {"none": [EpisodeStart(0, {})]}
    views = show_expert(scene, starts, horizon_steps=20)
    assert len(views.images) == 3
    scene.reset(0)
    act_as_expert(scene, seconds=2)  # 20 steps, of which it may have 3


def test_ids_that_one_description_does_not_fit_are_refused_with_both_figures() -> None:
    with pytest.raises(UserError, match=r"Wider-v0.* must be alike.*-2\.0, 2\.0.*-4\.0, 4\.0"):
        environment(f"{BY_ID},outside/Wider-v0")


@pytest.mark.parametrize("option", ["name=left", "tasks=3", "factors=blur"])
def test_an_option_that_belongs_into_a_file_is_refused(option: str) -> None:
    with pytest.raises(UserError, match="cannot be given in brackets; describe the environment"):
        environment(f"{OWN}[{option}]")


def test_the_source_of_a_class_is_its_version(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynaflip.source_digest import of_module

    file = tmp_path / "changing_environment.py"
    file.write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = of_module("changing_environment")
    file.write_text("A = 2\n")
    assert of_module("changing_environment") != first
    assert "point_reacher source " in environment(OWN).version()
    assert (
        "outside_environment source "
        in environment("class:outside_environment:ENVIRONMENT").version()
    )
    for name in (OWN, BY_ID):
        assert "gymnasium 1." in environment(name).version()
    assert environment(BY_ID).version().endswith("point_reacher:PointReacher-v0")


def test_another_renderer_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = environment("metaworld").version()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert environment("metaworld").version() == f"{usual}, rendered by osmesa"


def test_a_stored_name_runs_code_only_where_the_user_names_the_same() -> None:
    for name in (OWN, BY_ID):
        with pytest.raises(UserError, match=f"add --environment {name}"):
            recorded_environment(name, None, "run a")
        assert recorded_environment(name, name, "run a").name == name
    assert recorded_environment("metaworld", None, "run a").name == "metaworld"
    with pytest.raises(UserError, match=f"run a ran in metaworld, not in {OWN}"):
        recorded_environment("metaworld", OWN, "run a")
