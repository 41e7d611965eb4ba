r"""Files of measurements and images, in the formats of medicine and astronomy.

Each reader takes one file and returns arrays, and the few facts that a forward model needs. Reading needs the packages
of `pip install 'stochinv[formats]'`.
"""

import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Complex64, Float32, Float64

from .._custom_types import AnyCallable, summary
from .._lazy import optional


def read_fastmri(
    path: str | os.PathLike[str],
) -> tuple[Complex64[np.ndarray, "slices coils height width"], Bool[np.ndarray, " width"] | None]:
    """Reads the k-space of one volume from an HDF5 file in the layout of fastMRI, by h5py.

    **Arguments:**

    - `path`: the file; its dataset `kspace` has the axes (slices, coils, height, width), or (slices, height, width) of
        one coil.

    **Returns:**

    The k-space, shape `(slices, coils, height, width)`, in the units of the file, with zeros where nothing was measured
    and the lowest frequency in the middle; and the dataset `mask`, which columns were measured, shape `(width,)`, or
    `None` where the file has none.

    **Raises:**

    `FileNotFoundError` if there is no such file; `ValueError` if it is damaged or of another layout; `ImportError` if
    h5py is missing.

    ??? cite "Source"

        Zbontar et al. (2018), "fastMRI: an open dataset and benchmarks for accelerated MRI".
    """
    h5py = optional("h5py", "`read_fastmri` needs h5py", "formats")

    def read(file):
        with h5py.File(file, "r") as data:
            if "kspace" not in data:
                raise ValueError(f"it has no dataset `kspace`, but {sorted(data)}")
            return data["kspace"][()], data["mask"][()] if "mask" in data else None

    wanted = "a file of fastMRI's raw data"
    kspace, mask = _read(path, read, wanted)
    kspace = kspace[:, None] if kspace.ndim == 3 else kspace
    if kspace.ndim != 4 or kspace.dtype.kind != "c":
        _refuse(path, f"has a `kspace` of {kspace.dtype}{list(kspace.shape)}, not complex with 3 or 4 axes", wanted)
    if mask is not None and mask.size != kspace.shape[-1]:
        _refuse(path, f"has a `mask` of shape {mask.shape} for {kspace.shape[-1]} columns", wanted)
    return kspace.astype(np.complex64), None if mask is None else mask.ravel().astype(bool)


def read_fits(path: str | os.PathLike[str]) -> tuple[Float32[np.ndarray, "..."], dict[str, Any]]:
    """Reads the first image of a FITS file, by Astropy.

    **Arguments:**

    - `path`: the file, which may be compressed.

    **Returns:**

    The image, scaled as its header says, with the first axis of the file last: `(height, width)`, or
    `(planes, height, width)`. Pixels without a value are NaN. And the header of that image, from keyword to value,
    where instruments write such facts as `GAIN`, `RDNOISE` and `EXPTIME`.

    **Raises:**

    `FileNotFoundError` if there is no such file; `ValueError` if it is damaged, or has no image; `ImportError` if
    Astropy is missing.
    """
    fits = optional("astropy.io.fits", "`read_fits` needs Astropy", "formats")

    def read(file):
        with fits.open(file, memmap=False) as units:
            images = [unit for unit in units if unit.is_image and unit.header.get("NAXIS", 0) >= 2]
            if not images:
                raise ValueError(f"it has no image, but {[type(unit).__name__ for unit in units]}")
            header = {key: images[0].header[key] for key in images[0].header if key not in ("", "COMMENT", "HISTORY")}
            return np.asarray(images[0].data, np.float32), header

    return _read(path, read, "a FITS file with an image")


def read_dicom(path: str | os.PathLike[str]) -> tuple[Float32[np.ndarray, "..."], tuple[float, float] | None]:
    """Reads the image of a DICOM file, by pydicom.

    **Arguments:**

    - `path`: the file. Compressed pixels need the plugins that pydicom's manual names.

    **Returns:**

    The image in the units that its rescale slope and intercept give, such as Hounsfield's: `(height, width)`, with an
    axis of frames in front if there are several, and one of colours at the end. And the distance of rows and of
    columns, in millimetres; `None` if the file does not tell.

    **Raises:**

    `FileNotFoundError` if there is no such file; `ValueError` if it is damaged, or has no image; `ImportError` if
    pydicom is missing.
    """
    pydicom = optional("pydicom", "`read_dicom` needs pydicom", "formats")
    pixels = optional("pydicom.pixels", "`read_dicom` needs pydicom", "formats")

    def read(file):
        data = pydicom.dcmread(file)
        if "PixelData" not in data:
            raise ValueError("it has no pixels")
        image = np.asarray(pixels.apply_rescale(data.pixel_array, data), np.float32)
        spacing = data.get("PixelSpacing")
        return image, None if spacing is None else (float(spacing[0]), float(spacing[1]))

    return _read(path, read, "a DICOM file with an image")


def read_nifti(path: str | os.PathLike[str]) -> tuple[Float32[np.ndarray, "..."], Float64[np.ndarray, "4 4"]]:
    """Reads a volume from a NIfTI file, by nibabel.

    **Arguments:**

    - `path`: the file, `.nii` or `.nii.gz`.

    **Returns:**

    The volume, scaled as its header says, with the axes of the file; and the matrix from voxel indices to millimetres
    to the right, to the front and upwards. The norms of its first three columns are the sizes of a voxel.

    **Raises:**

    `FileNotFoundError` if there is no such file; `ValueError` if it is damaged or of another format; `ImportError` if
    nibabel is missing.
    """
    nibabel = optional("nibabel", "`read_nifti` needs NiBabel", "formats")

    def read(file):
        image = nibabel.load(file)
        return image.get_fdata(dtype=np.float32), np.asarray(image.affine, np.float64)

    return _read(path, read, "a NIfTI file")


def _read(path, read: AnyCallable, wanted: str):
    """What a package reads of a file, and its exceptions in one sentence."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` is {str(path)!r}, but there is no such file.")
    try:
        return read(path)
    except Exception as error:
        _refuse(path, f"cannot be read ({summary(error)})", wanted, error)


def _refuse(path, found: str, wanted: str, cause: Exception | None = None) -> NoReturn:
    raise ValueError(f"`path` is {os.fspath(path)!r}, which {found}; give {wanted}, or another copy.") from cause
