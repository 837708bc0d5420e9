"""Write a folder of pictures as shards: tar files of `CLASS/NAME.jpg`, each with `CLASS/NAME.cls`, its class number.

    python examples/write_shards.py /data/flowers /data/flowers_shards

FOLDER/train/CLASS/*.jpg becomes OUT/train-0000.tar, ..., FOLDER/val likewise, and OUT/classes.txt names the classes.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path


def write_shards(folder: Path, out: Path, *, each: int = 1000) -> None:
    """Write shards of at most `each` pictures, in the order of the folder."""
    out.mkdir(parents=True, exist_ok=True)
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for part in ("train", "val"):
        pictures = [path for name in classes for path in sorted((folder / part / name).iterdir())]
        for number, start in enumerate(range(0, len(pictures), each)):
            with tarfile.open(out / f"{part}-{number:04d}.tar", "w") as shard:
                for path in pictures[start : start + each]:
                    # What stands before the first dot is the sample's name, which picture and label share.
                    name = f"{path.parent.name}/{path.stem.replace('.', '_')}"
                    shard.add(path, f"{name}{path.suffix}")
                    label = str(classes.index(path.parent.name)).encode()
                    member = tarfile.TarInfo(f"{name}.cls")
                    member.size = len(label)
                    shard.addfile(member, io.BytesIO(label))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=1000, help="pictures in a shard")
    arguments = parser.parse_args()
    write_shards(arguments.folder, arguments.out, each=arguments.each)
