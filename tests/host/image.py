# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes what the test host boots: the tiny image, the full image, and the disk with a run's own files."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from luvtest import cache, progress
from luvtest.paths import CHECKOUT

HERE = Path(__file__).resolve().parent
GUEST = HERE / "guest"

# In both images, relative to /.
PROGRAMS = {"jump.c": "usr/lib/luvhost/jump", "mark.c": "usr/local/bin/mark"}
HELPERS = {
    "run": "usr/lib/luvhost/run",
    "jump": "usr/local/bin/jump",
    "bdf": "usr/local/bin/bdf",
    "vfio-bind": "usr/local/bin/vfio-bind",
}


def compile_static(source, to):
    subprocess.run(["gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", to, source],
                   check=True)


def tool(name):
    """A static program of ours that runs outside or inside; compiled once."""
    source = HERE / name if (HERE / name).exists() else GUEST / name
    folder = cache.entry(f"tool-{source.stem}", [source], lambda d: compile_static(source, d / source.stem))
    return folder / source.stem


def install(source, to, mode=0o755):
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)
    to.chmod(mode)


def install_helpers(root):
    for name, to in HELPERS.items():
        install(GUEST / name, root / to)
    for source, to in PROGRAMS.items():
        install(tool(source), root / to)


def tiny():
    """The initramfs of the tiny image: busybox and our helpers."""
    busybox = Path("/usr/bin/busybox") if Path("/usr/bin/busybox").exists() else Path("/bin/busybox")
    inputs = [busybox, GUEST / "tiny-init", *map(tool, PROGRAMS)] + [GUEST / n for n in HELPERS]

    def make(folder):
        root = folder / "root"
        for d in "usr/bin usr/sbin usr/lib usr/lib64 usr/local/bin proc sys dev run tmp root boot mnt etc".split():
            (root / d).mkdir(parents=True)
        for d in "bin sbin lib lib64".split():
            (root / d).symlink_to(f"usr/{d}")
        install(busybox, root / "usr/bin/busybox")
        for applet in subprocess.run([busybox, "--list-full"], check=True, capture_output=True,
                                     text=True).stdout.split():
            if applet != "bin/busybox":
                path = root / applet
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_symlink():
                    path.symlink_to("/bin/busybox")
        install(GUEST / "tiny-init", root / "init")
        install_helpers(root)
        with open(folder / "initrd", "wb") as f:
            names = subprocess.run(["find", ".", "-print0"], cwd=root, check=True, capture_output=True).stdout
            archive = subprocess.run(["cpio", "--null", "-o", "-H", "newc", "--quiet", "-R", "0:0"], cwd=root,
                                     input=names, check=True, capture_output=True).stdout
            f.write(subprocess.run(["gzip", "-1n"], input=archive, check=True, capture_output=True).stdout)
        shutil.rmtree(root)

    return cache.entry("tiny", inputs, make) / "initrd"


def mirror():
    script = f". '{CHECKOUT}/tests/lib/debian.sh'; debian_mirror; echo --; debian_apt_options"
    found = subprocess.run(["bash", "-euc", script], check=True, capture_output=True, text=True).stdout
    uri, _, options = found.partition("\n--\n")
    return uri.strip(), options


def is_dynamic(path):
    with open(path, "rb") as f:
        head = f.read(4)
    if head != b"\x7fELF":
        return False
    return "INTERP" in subprocess.run(["readelf", "-lW", path], capture_output=True, text=True,
                                      check=False).stdout


def libraries(path, tree):
    """What a dynamic program needs: (file, where it is to be in the image). What the image brings itself counts."""
    own = [tree / "usr/lib/x86_64-linux-gnu", tree / "usr/lib"]
    found = subprocess.run(["ldd", path], capture_output=True, text=True, check=False,
                           env={**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, own))}).stdout
    for name in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", found, re.MULTILINE):
        library = Path(name)
        if not library.is_relative_to(tree):
            system = name.startswith(("/lib", "/usr/lib"))
            yield library.resolve(), library if system else Path("/usr/lib/x86_64-linux-gnu") / library.name


def place(tree, source, to):
    """Puts a file or folder at a path of the image."""
    target = tree / str(to).lstrip("/")
    if str(to).endswith("/"):
        target = target / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        subprocess.run(["cp", "-a", "--no-preserve=ownership", f"{source}/.", f"{target}/"], check=True)
    else:
        shutil.copy2(source, target)
    return target


def run_disk(path, work, kernels, initrd, scripts, files, overlays, with_libraries):
    """The disk with this run's kernels, scripts and files."""
    top = work / "run"
    shutil.rmtree(top, ignore_errors=True)
    boot, tree = top / "boot", top / "tree"
    boot.mkdir(parents=True)
    lib = tree / "usr/lib/luvhost"
    lib.mkdir(parents=True)

    for name, kernel in kernels.items():
        shutil.copyfile(kernel, boot / f"vmlinuz-{name}")
        modules = kernel.parent / "modules/lib/modules"
        if modules.is_dir():
            place(tree, modules, "/usr/lib/modules")
    if initrd:
        shutil.copyfile(initrd, boot / "initrd")
    for overlay in overlays:
        place(tree, overlay, "/.")
        if (overlay / "usr/lib/sysusers.d").exists():
            (top / "sysusers").touch()
    origin = {}
    for source, to in files:
        target = place(tree, source, to)
        origin.update({target / p.relative_to(source): p for p in source.rglob("*")} if source.is_dir()
                      else {target: source})
    for n, script in enumerate(scripts, 1):
        target = lib / f"script.{n}"
        target.write_bytes(script)
        target.chmod(0o755)
    (lib / "scripts").write_text(f"{len(scripts)}\n")

    if with_libraries:
        for program in [p for p in tree.rglob("*") if p.is_file() and not p.is_symlink() and is_dynamic(p)]:
            # Where it came from, since it may name libraries by where it stands itself.
            for library, to in libraries(origin.get(program, program), tree):
                if not (tree / str(to).lstrip("/")).exists():
                    place(tree, library, to)

    # Both images have these as links into /usr.
    for d in ("bin", "sbin", "lib", "lib64"):
        if (tree / d).is_dir():
            place(tree, tree / d, f"/usr/{d}")
            shutil.rmtree(tree / d)

    size = sum(p.lstat().st_size + 4096 for p in top.rglob("*")) * 5 // 4 + (16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", "luvrun", "-E", "root_owner=0:0,nodiscard",
                    "-d", str(top), str(path), f"{size >> 10}k"], check=True, stdin=subprocess.DEVNULL)
    shutil.rmtree(top)


def extract_out(disk, folder, boots):
    """Unpacks what the scripts left in /out; returns the names."""
    folder.mkdir(exist_ok=True)
    names = set()
    for boot in range(1, boots + 1):
        offset = (1 << 20) + (boot - 1) * (64 << 20)
        with open(disk, "rb") as f:
            f.seek(offset + 257)
            if f.read(5) != b"ustar":
                continue
            f.seek(offset)
            # The archive ends itself; what follows it is empty.
            subprocess.run(["tar", "-C", str(folder), "--no-same-owner", "-xf", "-"], stdin=f, check=False,
                           stderr=subprocess.DEVNULL)
    for p in folder.rglob("*"):
        if p.is_file():
            names.add(os.path.relpath(p, folder))
    return sorted(names)
