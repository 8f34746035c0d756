"""What a file is whose first bytes are not those of its kind: pointers, web pages, archives."""

from __future__ import annotations

HEAD_BYTES = 512
_LFS = "a Git LFS pointer and not the file itself: run `git lfs pull` where it was cloned"
# First bytes, after blanks, in lower case.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/", _LFS),
    (b"version https://hawser.github.com/", _LFS),
    (b"/annex/objects/", "a git-annex pointer and not the file itself: run `git annex get`"),
    (b"../.git/annex/", "a git-annex pointer and not the file itself: run `git annex get`"),
    (b"<!doctype html", "a web page, so its download failed"),
    (b"<html", "a web page, so its download failed"),
    (b"<?xml", "XML (often a store's error message), so its download failed"),
    (b'{"error', "a server's error message, so its download failed"),
    (b"x\x01", "compressed with zlib: write it without compression"),
    (b"x\x9c", "compressed with zlib: write it without compression"),
    (b"x\xda", "compressed with zlib: write it without compression"),
    (b"\x1f\x8b", "compressed with gzip: run gunzip first"),
    (b"pk\x03\x04", "a ZIP archive: unpack it first"),
    (b"\xfd7zxz\0", "compressed with xz: run unxz first"),
    (b"(\xb5/\xfd", "compressed with Zstandard: run unzstd first"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive: unpack it first"),
    (b"rar!", "a RAR archive: unpack it first"),
    (b"bzh", "compressed with bzip2: run bunzip2 first"),
)
_TAR = (257, b"ustar")


def other_kind(head: bytes) -> str:
    """Kind of a file by its first :data:`HEAD_BYTES`, with what to do; "" where it is unknown."""
    if head.startswith(b"\xef\xbb\xbf"):
        head = head[3:]
    beginning = head.lstrip()[:64].lower()
    for begin, kind in _BEGINNINGS:
        if beginning.startswith(begin):
            return kind
    if head[_TAR[0] : _TAR[0] + len(_TAR[1])] == _TAR[1]:
        return "a tar archive: unpack it first"
    if head and not any(head):
        return f"all zeros (its first {len(head)} bytes), as an interrupted copy leaves it"
    return ""
