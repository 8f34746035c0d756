"""Write an encoder, or a fitted policy with its encoder, for use elsewhere.

    python jobs/export.py models:/dynaflip-encoder@candidate my_encoder
    python jobs/export.py models:/dynaflip-encoder@candidate my_encoder --format transformers
    python jobs/export.py runs:/RUN/policies/NAME my_policy
    python jobs/export.py models:/my-policy/1 my_policy

`folder` is what `dynaflip.load_encoder("my_encoder")` takes, with torch, numpy and safetensors
alone. `transformers` is loaded by `AutoModel.from_pretrained("my_encoder",
trust_remote_code=True)`, without this package. `onnx` writes encoder.onnx (it needs
`pip install 'dynaflip[export]'`), and `torch_export` encoder.pt2, which the torch release that
wrote it loads. A policy is written as a folder, for `dynaflip.load_policy("my_policy")`.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _checkout

    _checkout.use_this_checkout()

from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.platform.cli import job_parser, run_job

FORMATS = ("folder", "transformers", "onnx", "torch_export")


def main(argv: list[str]) -> int:
    """Load the encoder and write it in the format."""
    parser = job_parser(__doc__ or "")
    parser.add_argument(
        "uri",
        metavar="URI",
        help="models:/NAME@ALIAS, models:/NAME/VERSION, a version or a folder; or a policy, "
        "runs:/RUN/policies/NAME or models:/NAME/VERSION",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="new or empty")
    parser.add_argument("--format", choices=FORMATS, default="folder", help="default: folder")
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="class:MODULE:NAME of an encoder whose backbone is a class of yours",
    )
    args = parser.parse_args(argv)
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        raise UserError(f"{args.folder}: exists already and is not empty; give a new folder")
    print(f"wrote {_export(args.uri, args.folder, args.format, args.backbone)}")
    return 0


def _export(uri: str, folder: Path, kind: str, backbone: str | None) -> Path:
    from dynaflip.encoders import export
    from dynaflip.encoders.checkpoint import copy_encoder, load_for_use
    from dynaflip.platform.tracking import registry
    from dynaflip.platform.tracking.policies import is_registered_policy

    if uri.startswith("runs:/") or (uri.startswith("models:/") and is_registered_policy(uri)):
        return _export_policy(uri, folder, kind, backbone)
    source = registry.resolve(uri)
    encoder = load_for_use(source, uri, backbone=backbone)  # complete and readable
    if kind == "folder":
        return copy_encoder(source, folder)
    if kind == "transformers":
        return export.save_transformers(encoder, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "onnx":
        return export.export_onnx(encoder, folder / "encoder.onnx")
    export.export_program(encoder, folder / "encoder.pt2")
    return folder / "encoder.pt2"


def _export_policy(uri: str, folder: Path, kind: str, backbone: str | None) -> Path:
    from dynaflip.platform.tracking.policies import fetch_policy

    if kind != "folder":
        raise UserError(f"--format {kind} is of encoders; a policy is written as a folder")
    if backbone is not None:
        raise UserError("--backbone: a policy's folder is copied as it is; name it in load_policy")
    return fetch_policy(uri, folder)


if __name__ == "__main__":
    run_job(main)
