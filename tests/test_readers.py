"""Readers of files that the packages of each format have written, and of files that are damaged."""

import gzip
import re
import sys
import warnings

import numpy as np
import pytest

import stochinv as si

RNG = np.random.default_rng(0)
KSPACE = (RNG.normal(size=(2, 3, 5, 4)) + 1j * RNG.normal(size=(2, 3, 5, 4))).astype(np.complex64)


def write_fastmri(path, **datasets):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("ismrmrd_header", data="<ismrmrdHeader/>")
        for name, value in datasets.items():
            file.create_dataset(name, data=value)
    return path


def write_fits(path, *images, **header):
    fits = pytest.importorskip("astropy.io.fits")
    units = [fits.ImageHDU(image) for image in images]
    for unit in units:
        unit.header.update(header)
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(path)
    return path


def write_dicom(path, pixels, *, spacing=None, slope=None, intercept=0):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.dataset.FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[-2:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation = 1
        if pixels.ndim == 3:
            data.NumberOfFrames = len(pixels)
        data.PixelData = pixels.tobytes()
    if spacing is not None:
        data.PixelSpacing = list(spacing)
    if slope is not None:
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
    data.save_as(path, enforce_file_format=True)
    return path


def write_nifti(path, volume, affine):
    nibabel = pytest.importorskip("nibabel")
    nibabel.Nifti1Image(volume, affine).to_filename(path)
    return path


@pytest.mark.parametrize("mask", [None, np.array([1.0, 0.0, 1.0, 1.0], np.float32)])
def test_fastmri(tmp_path, mask):
    datasets = {"kspace": KSPACE} | ({} if mask is None else {"mask": mask})
    kspace, found = si.data.read_fastmri(write_fastmri(tmp_path / "volume.h5", **datasets))
    np.testing.assert_array_equal(kspace, KSPACE)
    assert kspace.dtype == np.complex64
    assert found is None if mask is None else (found.dtype == bool and found.tolist() == [True, False, True, True])


def test_fastmri_of_one_coil(tmp_path):
    kspace, _ = si.data.read_fastmri(str(write_fastmri(tmp_path / "volume.h5", kspace=KSPACE[:, 0])))
    np.testing.assert_array_equal(kspace, KSPACE[:, :1])


def test_fits(tmp_path):
    """The first image, though it is not the first unit; scaled integers, and pixels without a value."""
    image = RNG.integers(-50, 50, (4, 6)).astype(np.int16)
    path = write_fits(tmp_path / "sky.fits", image, image[:2], GAIN=1.5, RDNOISE=4.2, EXPTIME=300, FILTER="r")
    found, header = si.data.read_fits(path)
    np.testing.assert_array_equal(found, image)
    assert found.dtype == np.float32 and found.dtype.isnative
    assert {key: header[key] for key in ("GAIN", "RDNOISE", "EXPTIME", "FILTER")} == {
        "GAIN": 1.5,
        "RDNOISE": 4.2,
        "EXPTIME": 300,
        "FILTER": "r",
    }
    fits = pytest.importorskip("astropy.io.fits")
    unit = fits.PrimaryHDU(image.copy())
    unit.scale("int16", bscale=0.5, bzero=3)
    unit.header["BLANK"] = int(unit.data[0, 0])
    unit.writeto(tmp_path / "scaled.fits.gz")
    found, _ = si.data.read_fits(tmp_path / "scaled.fits.gz")
    blank = image == image[0, 0]
    assert np.all(np.isnan(found[blank]))
    np.testing.assert_allclose(found[~blank], image[~blank], atol=0.25)


@pytest.mark.parametrize("frames", [(), (3,)])
def test_dicom(tmp_path, frames):
    pixels = RNG.integers(-1000, 1000, (*frames, 4, 6)).astype(np.int16)
    path = write_dicom(tmp_path / "slice.dcm", pixels, spacing=(0.5, 0.75), slope=2.0, intercept=-1024.0)
    image, spacing = si.data.read_dicom(path)
    np.testing.assert_array_equal(image, 2.0 * pixels - 1024)
    assert image.dtype == np.float32 and spacing == (0.5, 0.75)
    image, spacing = si.data.read_dicom(write_dicom(tmp_path / "plain.dcm", pixels))
    np.testing.assert_array_equal(image, pixels)
    assert spacing is None


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path, suffix):
    volume, affine = RNG.normal(size=(3, 4, 5)).astype(np.float32), np.diag([2.0, 2.5, 3.0, 1.0])
    affine[:3, 3] = -10, 5, 0
    found, matrix = si.data.read_nifti(write_nifti(tmp_path / f"head{suffix}", volume, affine))
    np.testing.assert_array_equal(found, volume)
    np.testing.assert_array_equal(matrix, affine)
    np.testing.assert_allclose(np.linalg.norm(matrix[:3, :3], axis=0), [2, 2.5, 3])


WRITERS = {
    "read_fastmri": lambda path: write_fastmri(path / "x.h5", kspace=np.ones((2, 8, 32, 32), np.complex64)),
    "read_fits": lambda path: write_fits(path / "x.fits", np.ones((64, 64), np.float32)),
    "read_dicom": lambda path: write_dicom(path / "x.dcm", np.ones((64, 64), np.int16)),
    "read_nifti": lambda path: write_nifti(path / "x.nii", np.ones((16, 16, 16), np.float32), np.eye(4)),
}


@pytest.mark.parametrize("kept", ["none", "few", "half", "other", "noise"])
@pytest.mark.parametrize("reader", WRITERS)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, reader, kept):
    path = WRITERS[reader](tmp_path)
    whole = path.read_bytes()
    damaged = {
        "none": b"",
        "few": whole[:100],
        "half": whole[: len(whole) // 2],
        "other": b"not an image\n" * 1000,
        "noise": np.random.default_rng(1).bytes(5000),
    }
    path.write_bytes(damaged[kept])
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("ignore")
        getattr(si.data, reader)(path)
    message = str(caught.value)
    assert re.fullmatch(r"`path` is '.*', which cannot be read \(.*\); give an? .*, or another copy\.", message)
    assert str(path) in message and caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ({"reconstruction_rss": np.ones(3)}, r"no dataset `kspace`, but \['ismrmrd_header', 'reconstruction_rss'\]"),
        ({"kspace": np.ones((2, 3), np.complex64)}, r"`kspace` of complex64\[2, 3\], not complex with 3 or 4 axes"),
        ({"kspace": np.ones((2, 3, 4, 4))}, r"`kspace` of float64\[2, 3, 4, 4\], not complex"),
        ({"kspace": KSPACE, "mask": np.ones(7)}, r"has a `mask` of shape \(7,\) for 4 columns"),
    ],
)
def test_other_layouts_of_hdf5_are_refused(tmp_path, datasets, words):
    path = write_fastmri(tmp_path / "x.h5", **datasets)
    with pytest.raises(ValueError, match=f"`path` is .*{words}.*; give a file of fastMRI's raw data"):
        si.data.read_fastmri(path)


def test_files_without_an_image_are_refused(tmp_path):
    with pytest.raises(ValueError, match="it has no image, but .*PrimaryHDU.*; give a FITS file with an image"):
        si.data.read_fits(write_fits(tmp_path / "x.fits"))
    with pytest.raises(ValueError, match="it has no pixels.*; give a DICOM file with an image"):
        si.data.read_dicom(write_dicom(tmp_path / "x.dcm", None))


@pytest.mark.parametrize("reader", WRITERS)
def test_missing_files_and_packages(tmp_path, monkeypatch, reader):
    package = {"read_fastmri": "h5py", "read_fits": "astropy.io.fits", "read_dicom": "pydicom", "read_nifti": "nibabel"}
    pytest.importorskip(package[reader])
    with pytest.raises(FileNotFoundError, match="`path` is '.*nothing', but there is no such file"):
        getattr(si.data, reader)(tmp_path / "nothing")
    monkeypatch.setitem(sys.modules, package[reader], None)
    with pytest.raises(ImportError, match=rf"`{reader}` needs .*: `pip install 'stochinv\[formats\]'`"):
        getattr(si.data, reader)(tmp_path / "nothing")


def test_a_truncated_archive_is_refused(tmp_path):
    path = write_nifti(tmp_path / "x.nii.gz", RNG.normal(size=(16, 16, 16)).astype(np.float32), np.eye(4))
    assert gzip.decompress(path.read_bytes())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cannot be read .*; give a NIfTI file"):
        si.data.read_nifti(path)
