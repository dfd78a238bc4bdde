"""Files that operating systems and file browsers leave beside data: hidden files, AppleDouble files, files and folders of a system."""

from __future__ import annotations

__all__ = ["APPLE_DOUBLE", "HIDDEN", "SYSTEM", "is_hidden", "junk_kind", "junk_kind_of_folder", "junk_kind_of_name"]

HIDDEN = "hidden (a name begins with a dot)"
APPLE_DOUBLE = "AppleDouble (._ files that macOS writes)"
SYSTEM = "of the system (such as Thumbs.db, @eaDir, __MACOSX)"
"""Names of the three kinds in the count of what is left out."""
_FOLDERS = {
    *("@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"),
    *("_delta_log", "_spark_metadata", "_temporary"),
}
_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


def is_hidden(path: str) -> bool:
    """Return whether a path below a source names a hidden file or folder. macOS and file browsers create such files (`._1.jpg`)."""
    return path.startswith(".") or "/." in path


def junk_kind(path: str) -> str | None:
    """Return the kind of junk that a relative path names, None if it may be data. For folders, tars and tables alike.

    `./`, as `tar -cf x.tar .` writes it, and `../` in a path name no hidden folder.
    """
    if "./" in path:
        path = "/".join(part for part in path.split("/") if part not in (".", ".."))
    folder, _, name = path.rpartition("/")
    return junk_kind_of_folder(folder) or junk_kind_of_name(name)


def junk_kind_of_folder(folder: str) -> str | None:
    """Return the kind of junk that everything in a folder is, None if it may be data; "" is the root."""
    if not folder:
        return None
    if _FOLDERS.intersection(folder.lower().split("/")):
        return SYSTEM
    return HIDDEN if is_hidden(folder) else None


def junk_kind_of_name(name: str) -> str | None:
    """Return the kind of junk that a file name without its folder tells, None if it may be data."""
    if name.startswith("."):
        return APPLE_DOUBLE if name.startswith("._") else HIDDEN
    return SYSTEM if name.lower() in _FILES else None
