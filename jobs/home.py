"""Show the folder that holds all state, or adopt one that was copied or moved.

    python jobs/home.py                        # where it is, and where it was made
    DYNAFLIP_HOME=/new/place python jobs/home.py move

MLflow's store and the files of runs and sweeps hold absolute paths. After `cp -r` or `mv`, `move`
rewrites them to where the home lies now; a copy becomes independent of its original, which is left
as it is. Stop every job that uses the home first.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from dynaflip.errors import UserError
from dynaflip.files import file_lock
from dynaflip.platform.cli import job_parser, run_job
from dynaflip.platform.home_move import is_same_place, move_home, recorded_home
from dynaflip.platform.paths import home_folder


def main(argv: list[str]) -> int:
    """Parse, then print or move."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("action", nargs="?", choices=["show", "move"], default="show")
    parser.add_argument(
        "--from",
        dest="old",
        metavar="DIR",
        help="move: the path that the home stores, where it cannot be told from its content",
    )
    args = parser.parse_args(argv)
    folder = home_folder()
    recorded = recorded_home(folder)
    if args.action == "show":
        if args.old:
            raise UserError("--from: belongs to `move`")
        print(f"DYNAFLIP_HOME {folder}")
        print(f"made at {recorded or 'an unknown place'}")
        if recorded and not is_same_place(recorded, folder):
            print("it was copied or moved: `dynaflip home move` adopts it")
        return 0
    old = args.old or recorded
    if old is None or old == str(folder):
        print("nothing to do: the home is where it was made")
        return 0
    with file_lock(folder / "locks" / "home.lock", "another process is moving this home"):
        moved = move_home(folder, old.rstrip("/"))
    print(f"{moved.old} -> {moved.new}: {moved.files} files and {moved.rows} database values")
    return 0


if __name__ == "__main__":
    run_job(main, check_home=False)
