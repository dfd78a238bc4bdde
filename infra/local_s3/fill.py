"""Make a bucket on an S3 server and copy a folder into it: `python infra/local_s3/fill.py photos s3://trial/images`.

Endpoint and keys come from the usual AWS variables. Objects of the same size that are already in the bucket stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import s3fs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("url", help="s3://BUCKET/PREFIX")
    given = parser.parse_args()
    bucket, _, prefix = given.url.removeprefix("s3://").strip("/").partition("/")
    if not given.folder.is_dir():
        parser.error(f"{given.folder} is no folder; expected one with files to copy")
    if not given.url.startswith("s3://") or not bucket or not prefix:
        parser.error(f"the target is {given.url!r}; expected s3://BUCKET/PREFIX")
    store = s3fs.S3FileSystem(use_listings_cache=False)
    if not store.exists(bucket):
        store.mkdir(bucket)
    there = {name: entry["size"] for name, entry in store.find(f"{bucket}/{prefix}", detail=True).items()}
    files = sorted(path for path in given.folder.rglob("*") if path.is_file())
    targets = {path: f"{bucket}/{prefix}/{path.relative_to(given.folder).as_posix()}" for path in files}
    missing = [path for path in files if there.get(targets[path]) != path.stat().st_size]
    store.put([str(path) for path in missing], [targets[path] for path in missing])
    print(f"{given.url.rstrip('/')}: {len(files)} files, {len(missing)} of them copied now")


if __name__ == "__main__":
    main()
