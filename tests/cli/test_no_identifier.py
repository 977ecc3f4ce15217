"""Nothing that may be copied on tells who a patient is: not the index, not the store, not the run, not the report."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image

from medssl.demo_data import demo_folder
from medssl.store import Store

from .conftest import TINY, say, sets

FOLDER = "Xanthopoulos_Wilhelmina_1937"
HEADER = {
    "PatientName": "Xanthopoulos^Wilhelmina^Q",
    "PatientID": "PIDK77310942",
    "PatientBirthDate": "19370214",
    "OtherPatientIDs": "ALTK5550001",
    "AccessionNumber": "ACCK5566778",
    "PatientAddress": "Elmgrove 13, Quuxhaven",
    "InstitutionName": "Quuxhaven",
    "ReferringPhysicianName": "Obermayer^Gottlieb",
    "StationName": "QUUXSTATION7",
    "DeviceSerialNumber": "SNK31415926",
    "StudyID": "STUDYK4242",
    "StudyDescription": "Wilhelmina",
    "SeriesDescription": "Xanthopoulos",
    "StudyInstanceUID": "1.2.826.0.1.3680043.9.7777.31415926.1",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.9.7777.31415926.2",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.9.7777.31415926.3",
    "StudyDate": "20190317",
    "SeriesDate": "20190317",
}
BROKEN = {"AcquisitionDate": "Wilhelmina-19x7", "SeriesNumber": "12"}
"""A value that breaks its type's rules: reading it makes pydicom speak of it."""

WORDS = (
    *(word for value in HEADER.values() for word in re.split(r"[\^ ,]+", value) if len(word) > 5),
    "1.2.826.0.1.3680043.9.7777",
    FOLDER,
    "Xanthop",
    "Wilhelm",
)
FORMS = {form for word in WORDS for form in (word.lower().encode(), word.lower().encode("utf-16-le"))}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A patient's shipped CT series and two shipped MR volumes, with identifiers wherever a file can hold one."""
    folder = tmp_path / "in" / FOLDER
    (folder / "1.2.826.0.1.3680043.9.7777.5").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n, path in enumerate(sorted((demo_folder() / "ct").rglob("CT*"))):
            dataset = pydicom.dcmread(path)
            for keyword, value in {**HEADER, **BROKEN}.items():
                setattr(dataset, keyword, value)
            uid = f"1.2.826.0.1.3680043.9.7777.4.{n}"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
            dataset.save_as(folder / "1.2.826.0.1.3680043.9.7777.5" / f"PIDK77310942_{n}.dcm")
    for n, path in enumerate(sorted((demo_folder() / "hippocampus" / "images").iterdir())[:8]):
        write_nifti(path, folder / f"Xanthopoulos_PIDK77310942_{n}.nii.gz")
    return tmp_path / "in"


def write_nifti(source: Path, target: Path) -> None:
    """Copy an image with a name in every text of its header, in an extension, and in the gzip member."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(source.read_bytes()))
    for key in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[key] = HEADER["PatientName"][:14].encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Xanthopoulos, born 19370214"))
    with target.open("wb") as file, gzip.GzipFile("Xanthopoulos.nii", "wb", fileobj=file) as member:
        member.write(image.to_bytes())


def contents(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and what is packed in them."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.to_pylist()).encode()
        yield repr(table.schema.metadata).encode()
    elif path.suffix == ".b2nd":
        array = blosc2.open(str(path), mode="r")
        yield np.asarray(array[:]).tobytes()
        yield repr(dict(array.schunk.vlmeta.getall())).encode()
    elif path.suffix == ".gz":
        yield gzip.decompress(data)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    for packed in re.findall(rb"data:[a-z/+.;-]+base64,([A-Za-z0-9+/=]+)", data):
        yield base64.b64decode(packed)


def leaks(folder: Path) -> dict[str, list[bytes]]:
    """Return what was found where, in every file below a folder but those in private/ and in file names."""
    found = {}
    for path in folder.rglob("*"):
        if "private" in path.relative_to(folder).parts:
            continue
        parts = [str(path.relative_to(folder)).encode(), *(contents(path) if path.is_file() else ())]
        if hits := [form for form in FORMS for part in parts if form in part.lower()]:
            found[str(path.relative_to(folder))] = hits
    return found


def guessable() -> set[str]:
    """Return hashes without a key of what identifies, whole or cut to the 16 digits ids have."""
    names = [HEADER[key] for key in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber")]
    kinds = ("sha256", "sha1", "md5", "blake2b")
    return {hashlib.new(kind, name.encode()).hexdigest()[:16] for kind in kinds for name in names}


@pytest.mark.slow
def test_no_identifier_reaches_what_the_chain_writes_or_says(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    every = ("prepare.modalities=[]", "prepare.spacing_mm=[4, 4, 4]", "train.steps=2", "loader.split=all")
    overrides = sets((*TINY, *every, "loader.crop=[16, 16, 16]", "prepare.workers=0"))
    said = [
        say("index", scans, "--out", out / "index", "--check"),
        say("prepare", out / "index", "--recipe", "mae-hippocampus", "--out", out / "store", *overrides),
        say("pretrain", "mae-hippocampus", "--data", out / "store", "--out", out / "run", *overrides),
        say("report", out / "run", "--store", out / "store", "--out", out / "report.html"),
    ]
    assert [each.code for each in said] == [0] * 4, said[-1].err
    assert len(Store.open(out / "store").ids) == 9
    assert leaks(out) == {}
    spoken = "".join(each.out + each.err for each in said).lower().encode()
    assert [form for form in FORMS if form in spoken] == []
    written = b"".join(part for path in out.rglob("*") if path.is_file() for part in contents(path))
    assert [digest for digest in guessable() if digest.encode() in written] == []
    private = b"".join(path.read_bytes() for path in (out / "index" / "private").iterdir())
    assert b"xanthopoulos" in private.lower(), "the search itself finds nothing, were there something"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gzip cut short", "series with a slice missing", "no image at all"])
def test_a_failing_file_is_told_without_who_is_in_it(what: str, scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    if what == "gzip cut short":
        source = next(scans.rglob("*.nii.gz"))
        (folder / source.name).write_bytes(source.read_bytes()[:-2000])
    elif what == "no image at all":
        (folder / f"{FOLDER}.nii").write_bytes(b"Xanthopoulos" * 40)
    else:
        for path in sorted(scans.rglob("*.dcm")):
            shutil.copy(path, folder)
        sorted(folder.iterdir())[len(list(folder.iterdir())) // 2].unlink()
    said = say("--debug", "index", folder, "--out", tmp_path / "index", "--json")
    assert said.code == 1
    assert "medssl: " in said.err
    text = said.out + said.err
    for path in folder.iterdir():  # where the file lies is told on the terminal, for the user has to find it
        text = text.replace(str(path), "")
    assert [form for form in FORMS if form in text.lower().encode()] == []
    assert not (tmp_path / "index").exists()


@pytest.mark.slow
def test_a_file_that_vanished_before_prepare_is_told_by_its_id_alone(scans: Path, tmp_path: Path) -> None:
    assert say("index", scans, "--out", tmp_path / "index", "--quiet").code == 0
    for path in sorted(scans.rglob("*.nii.gz"))[:2]:
        path.unlink()
    truncated = sorted(scans.rglob("*.nii.gz"))[0]
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    next(scans.rglob("*.dcm")).unlink()
    words = ("--recipe", "mae-hippocampus", "--out", tmp_path / "store", "--json")
    said = say("--debug", "prepare", tmp_path / "index", *words, *sets(("prepare.modalities=[]", "prepare.workers=0")))
    assert said.code == 0
    assert sum(json.loads(said.out)["problems"].values()) == 4
    text = (said.out + said.err).lower().encode()
    assert [form for form in FORMS if form in text] == []
    assert leaks(tmp_path / "store") == {}


def test_tables_and_boxes_name_nobody_in_index_or_store(scans: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x013B] = "Xanthopoulos"  # the artist
    picture = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
    picture.save(scans / FOLDER / "Wilhelmina.jpg", exif=exif, comment=b"born 19370214")
    cases = [f"Xanthopoulos_PIDK77310942_{n}" for n in range(8)]
    rows = [f"{case}\t{n % 2}\t0.{n}" for n, case in enumerate([*cases, "PIDK77310942", "Obermayer Gottlieb"])]
    (tmp_path / "targets.tsv").write_text("\n".join(["Wilhelmina's case\tbleeding\tEF", *rows]))
    (tmp_path / "groups.csv").write_text("\n".join(["PIDK77310942,site", *(f"{case},north" for case in cases)]))
    text = (
        "<annotation><folder>{0}</folder><filename>{0}</filename><path>/home/Xanthopoulos</path><owner>{0}</owner>{1}"
    )
    item = "<object><name>lesion</name><bndbox>{}</bndbox><text>Wilhelmina</text></object></annotation>"
    item = item.format("<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax>")
    (tmp_path / "boxes").mkdir()
    for name in ("1.2.826.0.1.3680043.9.7777.4.3", "Wilhelmina", "Obermayer Gottlieb"):
        (tmp_path / "boxes" / f"{name}.xml").write_text(text.format(FOLDER, item))
    out = tmp_path / "out"
    out.mkdir()
    tables = ("--targets", tmp_path / "targets.tsv", "--groups", tmp_path / "groups.csv", "--boxes", tmp_path / "boxes")
    overrides = sets(("prepare.modalities=[]", "prepare.spacing_mm=[4, 4, 4]", "prepare.workers=0"))
    said = [
        say("index", scans, *tables, "--out", out / "index"),
        say("prepare", out / "index", "--recipe", "mae-hippocampus", "--out", out / "store", *overrides),
    ]
    assert [each.code for each in said] == [0, 0], said[-1].err
    store = Store.open(out / "store")
    assert sum("EF" in row.labels for row in store.rows) == 9
    assert sum(row.groups.get("site") == "north" for row in store.rows) == 8
    assert sorted(len(row.shape) for row in store.rows if row.boxes) == [2, 3]
    assert leaks(out) == {}
    spoken = "".join(each.out + each.err for each in said).lower().encode()
    assert [form for form in FORMS if form in spoken] == []
    private = b"".join(path.read_bytes() for path in (out / "index" / "private").iterdir())
    assert b"obermayer" in private.lower(), "lines and boxes of nobody are named where names may stand"


def test_a_refused_table_is_told_without_what_is_in_it(scans: Path, tmp_path: Path) -> None:
    wrong = {
        "--targets": "case\tEF\nPIDK77310942\tXanthopoulos",
        "--groups": "case\tname\n" + "\n".join(f"{n}\tXanthopoulos{n}" for n in range(30)),
        "--boxes": json.dumps({"training": [{"image": "PIDK77310942", "box": [["Wilhelmina"]], "label": [0]}]}),
    }
    for option, text in wrong.items():
        (tmp_path / "table").write_text(text)
        said = say("--debug", "index", scans, option, tmp_path / "table", "--out", tmp_path / "index")
        assert said.code == 1
        assert [form for form in FORMS if form in (said.out + said.err).lower().encode()] == []
        assert not (tmp_path / "index").exists()


def test_the_search_finds_what_is_packed(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"see XANTHOPOULOS"))
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c", "Xanthopoulos" * 20)
    picture = base64.b64encode(b"Xanthopoulos").decode()
    (tmp_path / "d.html").write_text(f'<img src="data:image/png;base64,{picture}">')
    (tmp_path / f"{FOLDER}.txt").write_text("")
    assert len(leaks(tmp_path)) == 4
