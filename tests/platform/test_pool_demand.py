"""What a pool of actors asks for and says: decisions as functions of what was seen."""

from __future__ import annotations

from dynaflip.platform.pool_demand import (
    EVERY_S,
    FIRST_S,
    Announcer,
    ClusterView,
    WorkersView,
    room,
    to_ask_for,
    waiting_line,
    wanted_now,
)

CPU = {"CPU": 1.0}


def cluster(total: float, free: float, *, grows: bool = False, gpus: float = 0) -> ClusterView:
    return ClusterView({"CPU": total, "GPU": gpus}, {"CPU": free, "GPU": gpus}, grows)


def test_room_is_of_the_scarcest_resource_and_shares_add_up() -> None:
    assert room({"CPU": 8}, CPU) == 8
    assert room({"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 0.1}) == 8
    assert room({"CPU": 64, "GPU": 0.3}, {"CPU": 1, "GPU": 0.1}) == 3
    assert room({"CPU": 8}, {"CPU": 1, "GPU": 1}) == 0
    assert room({}, {}) == 1


def test_workers_are_no_more_than_jobs_and_room_unless_the_user_asks() -> None:
    here = cluster(2, 2)
    assert wanted_now(10, here, CPU, None, 99) == 2
    assert wanted_now(1, here, CPU, None, 99) == 1
    assert wanted_now(None, here, CPU, None, 1) == 1
    assert wanted_now(10, here, CPU, 6, 99) == 6
    assert wanted_now(10, cluster(0, 0), CPU, None, 99) == 0
    assert wanted_now(10, cluster(0, 0, grows=True), CPU, None, 99) == 1


def test_a_cluster_that_may_grow_is_asked_for_as_many_workers_again() -> None:
    assert to_ask_for(2, 10, cluster(2, 2), None, 99) == 2
    grows = cluster(2, 2, grows=True)
    assert to_ask_for(2, 10, grows, None, 99) == 4
    assert to_ask_for(2, 3, grows, None, 99) == 3
    assert to_ask_for(2, 10, grows, None, 2) == 2
    assert to_ask_for(6, 10, grows, 6, 99) == 6


def test_the_line_says_what_is_waited_for_and_who_has_it() -> None:
    def line(workers: WorkersView, view: ClusterView, wanted: int = 2) -> str | None:
        return waiting_line("evaluate", CPU, wanted, workers, view)

    assert line(WorkersView(2, 0, 0), cluster(2, 0)) is None
    assert line(WorkersView(1, 0, 1), cluster(2, 0)) == (
        "evaluate: waiting for 2 CPUs: 1 of 2 taken by others or starting workers; 1 worker at work"
    )
    assert line(WorkersView(0, 0, 2), cluster(2, 0)) == (
        "evaluate: waiting for 2 CPUs: 2 of 2 taken by others or starting workers; nothing runs yet"
    )
    assert line(WorkersView(0, 2, 0), cluster(2, 0)) == (
        "evaluate: waiting for 2 workers to start; nothing runs yet"
    )
    assert line(WorkersView(2, 0, 4), cluster(2, 0, grows=True), wanted=6) == (
        "evaluate: waiting for 6 CPUs: the cluster has 2; it is asked for more; 2 workers at work"
    )
    gpu = waiting_line(
        "evaluate", {"CPU": 1, "GPU": 1}, 1, WorkersView(0, 0, 1), cluster(8, 8, grows=True)
    )
    assert gpu == (
        "evaluate: waiting for 1 GPU: the cluster has 0; it is asked for more; nothing runs yet"
    )


def test_what_is_waited_for_is_said_after_a_while_then_at_intervals() -> None:
    announcer = Announcer()
    said = [t for t in range(200) if announcer.due("waiting", float(t))]
    assert said == [FIRST_S, FIRST_S + EVERY_S, FIRST_S + 2 * EVERY_S, FIRST_S + 3 * EVERY_S]
    assert not announcer.due(None, 200.0)
    assert not announcer.due("waiting", 201.0), "a new wait begins anew"
    assert announcer.due("waiting", 201.0 + FIRST_S)
