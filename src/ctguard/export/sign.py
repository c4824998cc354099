"""DICOM digital signatures (PS3.15 C.1-C.2), made and checked by DCMTK's dcmsign where that is installed.

A signature says who vouched for an object and that no signed bit of it changed since. Anybody can sign with a key of
their own, so that one counts as valid only under a certificate that the caller trusts. It breaks at the first lossy
step, with every new UID, and with every attribute that an archive corrects: for what survives those, see the seal.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom

from ctguard.core.errors import MissingExtraError, ReadError, RefusedError, WriteError
from ctguard.core.marks import has
from ctguard.io.dicom import opened
from ctguard.io.dicom_marks import read_carried

SignatureState = Literal["valid", "invalid", "absent", "not-checked"]
_TOOL = "dcmsign"
_INSTALL = "install DCMTK (Debian: apt install dcmtk)"
_SIGNATURES = 0xFFFAFFFA
# Anchored, because the signer chooses the subject of the certificate, which is printed among these.
_SIGNED_PIXELS = re.compile(r"^I: +\(7fe0,0010\)", re.MULTILINE)
_INTACT_BUT = re.compile(r"^W: +Signature Verification +: signature is OK but certificate", re.MULTILINE)
_SUBJECT = re.compile(r"^I: +Subject +: (.+)", re.MULTILINE)
_CORRUPTED = re.compile(r"^I: \d+ signatures verified in dataset, (\d+) corrupted", re.MULTILINE)


@dataclass(frozen=True)
class SignatureVerdict:
    """What the signatures of a series say. words: one sentence for people."""

    state: SignatureState
    words: str


def check_signing(key: Path, certificate: Path) -> str:
    """The program that signs, before any work is done; raises what `sign_files` raises for its key and certificate."""
    tool = shutil.which(_TOOL)
    if tool is None:
        raise MissingExtraError("signatures need DCMTK's dcmsign, which is not installed", remedy=_INSTALL)
    for path, what in ((key, "key"), (certificate, "certificate")):
        if not path.is_file():
            raise ReadError(f"there is no such {what} file", where=path, remedy="give the key and its certificate, PEM")
    if stat.S_IMODE(key.stat().st_mode) & 0o007:
        raise RefusedError("everybody can read or change this key", where=key, remedy="run chmod 600 on it")
    return tool


def sign_files(files: Sequence[Path], key: Path, certificate: Path) -> None:
    """Sign DICOM files in place: creator RSA profile (PS3.15 C.2), SHA-256, all attributes.

    key, certificate: PEM; the key without a pass phrase, in a file that only its owner and group may read. All files
    are signed, or none is. A signature carries the time at which it was made.
    Raises RefusedError for a forged image and for a key that everybody may read, MissingExtraError without dcmsign,
    ReadError where key or certificate are missing, WriteError where dcmsign fails.
    """
    tool = check_signing(key, certificate)
    for file in files:
        _refuse_forged(file)
    command = [tool, "+s", str(key), str(certificate), "-pw", "+pc", "+m2"]
    with tempfile.TemporaryDirectory(dir=files[0].parent, prefix=".signing-") as folder:
        made = [Path(folder) / f"{number:06d}.dcm" for number in range(len(files))]
        for file, signed in zip(files, made, strict=True):
            done = _run([*command, str(file), str(signed)])
            if done.returncode != 0 or not signed.is_file():
                reason = _last_line(done) or f"exit code {done.returncode}"
                raise WriteError(
                    f"dcmsign could not sign it ({reason})",
                    where=file,
                    remedy="check that key and certificate belong together, PEM, without a pass phrase",
                )
        for file, signed in zip(files, made, strict=True):
            signed.replace(file)


def check_files(files: Sequence[str], certificate: Path | None = None) -> SignatureVerdict:
    """Check the signatures of a series' files (paths as in Source.files: zip members too).

    certificate: PEM; the signer's own, or that of the authority that issued it. Without one, an intact signature is
    "not-checked": nobody vouches for whoever made it. A series that is signed in part, or whose signatures leave the
    pixels out, is invalid. Absent for what is no DICOM file (no files).
    Raises ReadError where the certificate is missing.
    """
    if certificate is not None and not certificate.is_file():
        raise ReadError("there is no such certificate file", where=certificate, remedy="give it in PEM")
    names = list(dict.fromkeys(files))
    signed = [name for name in names if _is_signed(name)]
    if not signed:
        return SignatureVerdict("absent", "no digital signature")
    if len(signed) < len(names):
        return SignatureVerdict("invalid", f"only {len(signed)} of {len(names)} files are signed")
    tool = shutil.which(_TOOL)
    if tool is None:
        return SignatureVerdict("not-checked", f"signed, not checked: {_INSTALL}")
    doubts: list[str] = []
    signers: dict[str, None] = {}
    for name in names:
        with _on_disk(name) as path:
            trusted = ["+cf", str(certificate)] if certificate else []
            done = _run([tool, "-v", "--verify", "+rg", *trusted, str(path)])
        text = done.stdout + done.stderr
        corrupted = _CORRUPTED.search(text)  # untrusted ones are counted as such
        intact = corrupted is not None and int(corrupted[1]) == len(_INTACT_BUT.findall(text))
        if not intact or not _SIGNED_PIXELS.search(text):
            return SignatureVerdict("invalid", f"the signature of {Path(name).name} is broken")
        signers |= dict.fromkeys(match.strip() for match in _SUBJECT.findall(text))
        if done.returncode != 0:
            doubts.append(name)
    who = ", ".join(signers)
    if not doubts:
        return SignatureVerdict("valid", f"signed by {who}")
    if certificate is None:
        return SignatureVerdict("not-checked", f"intact, and signed by somebody who says {who}: give --cert to trust")
    return SignatureVerdict("invalid", f"signed by {who}, whom the certificate does not vouch for")


def is_signed(files: Sequence[str]) -> int:
    """How many files (paths as in Source.files) carry a digital signature, checked or not."""
    return sum(map(_is_signed, files))


def _is_signed(name: str) -> bool:
    with opened(name) as stream:
        return _SIGNATURES in pydicom.dcmread(stream, specific_tags=[_SIGNATURES], force=True)


def _refuse_forged(file: Path) -> None:
    header = pydicom.dcmread(file, stop_before_pixels=True)
    if has(read_carried(header, str(file)).marks, "forged"):
        raise RefusedError("it is marked as forged and is not signed", where=file, remedy="sign originals (MISUSE.md)")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr + done.stdout).strip().splitlines()
    return lines[-1].strip() if lines else ""


@contextmanager
def _on_disk(name: str) -> Iterator[Path]:
    """A file as dcmsign can read it; a member of a zip archive is unpacked for as long."""
    if Path(name).is_file():
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="ctguard-") as folder, opened(name) as stream:
        path = Path(folder) / "member.dcm"
        path.write_bytes(stream.read())
        yield path
