"""The folders: can they be made, written and renamed in, by this user; is state/ local; is there room."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon import files
from daemon.config import Settings
from daemon.doctor.finding import Finding

NETWORK_FILE_SYSTEMS = frozenset(
    {
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "davfs",
            "gfs2",
            "glusterfs",
            "lustre",
            "ncpfs",
            "nfs",
            "nfs4",
            "ocfs2",
        ),
        *("prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs"),
        *("fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    }
)
"""As /proc/self/mountinfo calls them. On these, locks and the order of writes may not be what state/ relies on."""

FLEETING_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})

LITTLE_ROOM = 2 * 1000**3
"""Bytes; an hour of 44.1 kHz speech takes 0.3 GB, once in state/ and once in the outbox."""

NO_ROOM = 100 * 1000**2

LITTLE_INODES = 10_000


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    place: str
    kind: str


def check(settings: Settings) -> list[Finding]:
    paths = settings.paths
    mounts = read_mounts()
    found: list[Finding] = []
    for name in ("inbox", "outbox", "rejected", "state"):
        found += check_folder(f"paths.{name}", getattr(paths, name), mounts)
        found += check_floor(settings, name)
    found += check_folder("paths.status", paths.status.parent, mounts)
    if paths.status.is_dir():
        found.append(Finding.fail("paths.status", f"{paths.status} is a folder", "Name a file, such as status.json."))
    found += check_state(paths.state, mounts)
    found += check_sharing(paths.inbox, paths.outbox)
    found += check_taking(paths.inbox)
    for root in paths.allowed_roots:
        if root != paths.inbox and not os.access(root, os.R_OK | os.X_OK):
            problem = "is not there" if not root.exists() else "may not be read by this user"
            mend = "Make it readable, or take it out of paths.allowed_roots or paths.mapped."
            found.append(Finding.warn("paths.allowed_roots", f"{root} {problem}", mend))
    for root in paths.output_roots:
        if not os.access(root, os.W_OK | os.X_OK):
            problem = "is not there" if not root.exists() else "may not be written to by this user"
            mend = "Make it writable, or take it out of paths.output_roots."
            found.append(Finding.warn("paths.output_roots", f"{root} {problem}", mend))
    if not paths.output_roots and (more := [root for root in paths.allowed_roots if root != paths.inbox]):
        message = f"no job may write its output_file anywhere: paths.allowed_roots ({more[0]}, …) are for reading"
        found.append(
            Finding.ok("paths.output_roots", f"{message}; name folders here if LocalClip's files are to go there")
        )
    return found


def check_folder(name: str, folder: Path, mounts: list[Mount]) -> Iterator[Finding]:
    """One folder, by doing in it what the daemon does: write, sync, rename, remove."""
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        yield Finding.fail(name, f"{above} is not a folder", "Move it away, or give another path.")
        return
    if not os.access(above, os.W_OK | os.X_OK):
        yield Finding.fail(
            name,
            f"{folder} can't be made: {_user()} may not write in {above}"
            if above != folder
            else f"{_user()} may not write in {folder} (it belongs to {_owner(folder)}, mode {_mode(folder)})",
            f"chown or chmod {above}, run as the user who owns it, or give another path.",
        )
        return
    try:
        _try_writing(above)
    except OSError as error:
        yield Finding.fail(
            name,
            f"a file can't be written and renamed in {above}: {error.strerror}",
            "Mend the mount (read-only? full? no rename?), or give another path.",
        )
        return
    yield from check_room(name, folder, above)
    kind = mount_of(above, mounts).kind
    there = "" if above == folder else ", will be made"
    yield Finding.ok(name, f"{folder} ({kind}{there})")


def _try_writing(folder: Path) -> None:
    first, second = files.temporary_name(folder / "doctor"), files.temporary_name(folder / "doctor")
    try:
        files.write_atomically(first, b"doctor\n")
        files.rename_new(first, second)
        files.fsync_folder(folder)
        if second.read_bytes() != b"doctor\n":
            raise OSError(errno.EIO, "what was written is not what is read back", str(folder))
    finally:
        files.remove(first)
        files.remove(second)


def check_room(name: str, folder: Path, above: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(above).free
    mend = f"Make room on the file system of {folder}, or give a path on another one."
    if free < NO_ROOM:
        yield Finding.fail(name, f"only {free / 1000**2:.0f} MB are free for {folder}", mend)
    elif free < LITTLE_ROOM:
        yield Finding.warn(name, f"only {free / 1000**3:.1f} GB are free for {folder}", mend)
    inodes = os.statvfs(above)
    if inodes.f_files and inodes.f_favail < LITTLE_INODES:
        yield Finding.warn(name, f"only {inodes.f_favail} more files can be made for {folder}", mend)


def check_floor(settings: Settings, name: str) -> Iterator[Finding]:
    """Whether as much is free as must stay free (``[disk]``): below that, the daemon takes no job."""
    key = f"{name}_free_gb"
    folder = getattr(settings.paths, name)
    floor = float(getattr(settings.disk, key, 0.0))
    if not floor or not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free / 1000**3
    if free < floor:
        yield Finding.fail(
            f"disk.{key}",
            f"{free:.2g} GB are free for {folder}, {floor:.2g} must stay free: the daemon would take no job",
            f"Make room there, or lower disk.{key}.",
        )


def check_state(state: Path, mounts: list[Mount]) -> Iterator[Finding]:
    """state/ is the authority on what has been spoken: it must be on a disk of this machine, and outlive a restart."""
    mount = mount_of(state, mounts)
    if mount.kind in NETWORK_FILE_SYSTEMS:
        yield Finding.fail(
            "state is local",
            f"{state} lies on {mount.place}, a network file system ({mount.kind})",
            "Set paths.state to a folder on a local disk; the inbox and the outbox may stay on the share.",
        )
    elif mount.kind in FLEETING_FILE_SYSTEMS:
        yield Finding.warn(
            "state is local",
            f"{state} lies in memory ({mount.place}, {mount.kind}): a restart of the machine forgets unfinished jobs",
            "Set paths.state to a folder on a local disk.",
        )
    else:
        yield Finding.ok("state is local", f"on {mount.place} ({mount.kind})")
    if state.is_dir() and stat.S_IMODE(state.stat().st_mode) & 0o022:
        yield Finding.warn(
            "state is private",
            f"{state} may be written by others (mode {_mode(state)})",
            f"chmod go-w {state}",
        )


def check_sharing(inbox: Path, outbox: Path) -> Iterator[Finding]:
    """Whether the people who may submit will be able to read what comes out."""
    mask = os.umask(0o077)
    os.umask(mask)
    if not (inbox.is_dir() and outbox.is_dir()):
        return
    asked, given = inbox.stat(), outbox.stat()
    shared = asked.st_mode & stat.S_IWGRP or asked.st_mode & stat.S_IWOTH
    if shared and mask & 0o040:
        yield Finding.warn(
            "sharing",
            f"others may write to the inbox, but by the umask {mask:03o} nobody but {_user()} can read the results",
            "Start the daemon with umask 002 (UMask=0002 in the unit file).",
        )
    elif asked.st_mode & stat.S_IWGRP and asked.st_gid != given.st_gid:
        yield Finding.warn(
            "sharing",
            f"the inbox belongs to group {asked.st_gid} and the outbox to group {given.st_gid}",
            f"chgrp {asked.st_gid} {outbox} && chmod g+rxs {outbox}",
        )


def check_taking(inbox: Path) -> Iterator[Finding]:
    """Whether this user can take what others drop: out of a folder with the sticky bit, and with modes that let it read
    the files that lie there now."""
    try:
        status = inbox.stat()
        names = sorted(name for name in os.listdir(inbox) if name.casefold().endswith(".json") and name[0] != ".")
    except OSError:
        return  # said before
    user = os.geteuid()
    if status.st_mode & stat.S_ISVTX and user not in (0, status.st_uid):
        yield Finding.fail(
            "inbox is shared",
            f"{inbox} has the sticky bit and belongs to {_owner(inbox)}: {_user()} can't take what other users drop",
            f"chmod -t {inbox}, or chown it to {_user()}.",
        )
    unreadable = [name for name in names if not os.access(inbox / name, os.R_OK, follow_symlinks=False)]
    if unreadable:
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        yield Finding.warn(
            "inbox is readable",
            f"{_user()} may not read {unreadable[0]!r}{more} in {inbox}",
            "Let those who drop jobs set their mode (chmod a+r) before they are renamed to .json.",
        )


def read_mounts(source: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """What is mounted where; empty where the kernel does not say."""
    try:
        lines = source.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    mounts = []
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if separator and len(fields) > 4 and kinds:
            # Spaces in a path are written as octal escapes.
            place = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            mounts.append(Mount(place, kinds[0]))
    return mounts


def mount_of(path: Path, mounts: list[Mount]) -> Mount:
    """The mount that a path lies on, or will lie on; of two on one place, the later, which hides the other."""
    real = os.path.realpath(path)
    best = Mount("/", "unknown file system")
    for mount in mounts:
        inside = real == mount.place or real.startswith(mount.place.rstrip("/") + "/")
        if inside and (len(mount.place) >= len(best.place)):
            best = mount
    return best


def _user() -> str:
    return _user_name(os.geteuid())


def _owner(folder: Path) -> str:
    return _user_name(folder.stat().st_uid)


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _mode(folder: Path) -> str:
    return f"{stat.S_IMODE(folder.stat().st_mode):04o}"
