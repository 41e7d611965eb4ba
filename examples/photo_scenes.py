"""Posed photographs of many scenes, of RealEstate10K or CO3D, each read when it is first asked for and then kept.

RealEstate10K is a folder of cameras, `CLIP.txt`, each beside a folder `CLIP` of its frames, `TIME.jpg` or `TIME.png`.
CO3D is the folder that holds its categories.
"""

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import stochinv as si


class Photos(Sequence):
    """The scenes of a folder, normalised, with square views; of CO3D the objects of one category alone."""

    def __init__(self, folder, size, category=None):
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"--photos: there is no folder {folder}; give that of RealEstate10K or CO3D.")
        self.folder, self.size, self.category = folder, size, category
        self.kept = {}
        if category is None:
            self.names = sorted(path.stem for path in folder.glob("*.txt"))
            missing = f"--photos: {folder} has no cameras CLIP.txt of RealEstate10K; for CO3D give --category."
        else:
            path = folder / category / "sequence_annotations.jgz"
            if not path.exists():
                raise ValueError(f"--category: there is no {path}; give a category of CO3D that is in --photos.")
            with gzip.open(path, "rt", encoding="utf-8") as file:
                self.names = sorted(sequence["sequence_name"] for sequence in json.load(file))
            missing = f"--photos: {path} names no sequence; download the category again."
        if not self.names:
            raise ValueError(missing)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            part = object.__new__(type(self))
            part.__dict__ = self.__dict__ | {"names": self.names[index]}
            return part
        name = self.names[index]
        if name not in self.kept:
            if self.category is None:
                scene = si.data.load_realestate10k(self.folder / f"{name}.txt", self.folder / name)
            else:
                scene = si.data.load_co3d(self.folder, self.category, name)
            self.kept[name] = scene.normalise().resize((self.size, self.size))
        return self.kept[name]


def evenly(scene, number):
    """So many views of a scene from its first to its last, or all if there are fewer."""
    index = np.unique(np.linspace(0, len(scene.images) - 1, number).round().astype(int))
    parts = {name: getattr(scene, name)[index] for name in ("images", "intrinsics", "poses")}
    return dataclasses.replace(scene, **parts)
