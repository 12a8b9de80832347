"""Volumes for tests: written with trusted libraries, or byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

CANARY = "CANARY^JANE"
"""The patient's name, which must get nowhere."""


def noise(*shape: int, dtype: str = "i2", seed: int = 0) -> np.ndarray:
    """Return random voxels; negative ones too where the type has them."""
    drawn = np.random.default_rng(seed).integers(-200, 200, shape)
    return (drawn if np.dtype(dtype).kind != "u" else drawn + 200).astype(dtype)


def steps(codes: str, spacing: Sequence[float], lean: float = 0.0) -> np.ndarray:
    """Return an affine whose axes point to `codes` ("RAS", "PSR"), turned by `lean` degrees."""
    turn = nib.orientations.axcodes2ornt(tuple(codes))
    affine = np.zeros((4, 4))
    for axis, (to, sign) in enumerate(turn):
        affine[int(to), axis] = sign * spacing[axis]
    angle = np.deg2rad(lean)
    lean_by = np.eye(4)
    lean_by[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = lean_by @ affine
    affine[:, 3] = [-20, 11, 5, 1]
    return affine


def write_series(
    folder: Path, voxels: np.ndarray, affine: np.ndarray | None = None, **elements: Any
) -> list[Path]:
    """Write (I, J, K) as one DICOM file a slice, their names in random order.

    Args:
        folder: Made if missing.
        voxels: int16 or uint16.
        affine: In the axes of NIfTI, (4, 4).
        elements: Of every slice's header; a list gives each slice its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ (steps("LPS", (0.7, 0.8, 2.5)) if affine is None else affine)
    across, down, along = (lps[:3, axis] for axis in range(3))
    names = np.random.default_rng(1).permutation(voxels.shape[2])
    paths = []
    for k in range(voxels.shape[2]):
        dataset = _slice(voxels[..., k].T)
        dataset.PixelSpacing = [float(np.linalg.norm(down)), float(np.linalg.norm(across))]
        cosines = [*(across / np.linalg.norm(across)), *(down / np.linalg.norm(down))]
        dataset.ImageOrientationPatient = [round(float(x), 8) for x in cosines]
        dataset.ImagePositionPatient = [round(float(x), 6) for x in lps[:3, 3] + k * along]
        for name, value in elements.items():
            setattr(dataset, name, value[k] if isinstance(value, list) else value)
        paths.append(folder / f"{names[k]:04d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def _slice(pixels: np.ndarray) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.SOPClassUID = uid.CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.Modality = CANARY, "CT"
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def itk_axes(image: sitk.Image) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return what ITK makes of an image turned to RAS: (D, H, W) float32, and its spacing."""
    turned = sitk.DICOMOrient(image, "RAS")
    voxels: np.ndarray = sitk.GetArrayFromImage(turned).astype(np.float32)
    return voxels, turned.GetSpacing()[::-1]
