#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""test-guide.py BUILDDIR GUIDE: installs the project, and does what the plugin author's guide says, word for word.

The guide's C goes into edu.c. Its console blocks are run in one shell: what follows a line with `$ ` must be what
that command prints. Only the place of the plugin host is another, since it is installed into a scratch folder."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HOST = '/usr/libexec/luvfiod/luvfio-plugin-host'


def blocks(text, language):
    return re.findall(r'^```' + language + r'\n(.*?)^```$', text, re.M | re.S)


def steps(text):
    """(command, expected output) of all console blocks."""
    out = []
    for block in blocks(text, 'console'):
        for line in block.splitlines():
            if line.startswith('$ '):
                out.append((line[2:], []))
            else:
                out[-1][1].append(line)
    return out


def main():
    build, guide = sys.argv[1:3]
    text = pathlib.Path(guide).read_text()
    code = blocks(text, 'c')
    todo = steps(text)
    if len(code) != 1 or len(todo) < 10:
        sys.exit(f'{guide}: has {len(code)} plugins and {len(todo)} commands')

    if not shutil.which('varlinkctl'):
        print('1..0 # SKIP no varlinkctl (it comes with systemd)')
        sys.exit(77)

    with tempfile.TemporaryDirectory(prefix='luvfio-guide-') as folder:
        root = pathlib.Path(folder, 'root')
        subprocess.run(['meson', 'install', '-C', build, '--quiet', '--no-rebuild', '--destdir', root], check=True,
                       stdout=subprocess.DEVNULL)
        host, = root.rglob('luvfio-plugin-host')
        header, = root.rglob('luvfio/plugin.h')
        work = pathlib.Path(folder, 'work')
        work.mkdir()
        (work / 'edu.c').write_text(code[0])

        # Between the commands' outputs a line that none of them prints. A socket that was just asked for has to be
        # waited for; a reader of the guide is slow enough.
        script = ['exec 2>&1']
        for number, (command, _) in enumerate(todo):
            script.append(command.replace(HOST, str(host)))
            if command.endswith('&'):
                script.append('for i in $(seq 200); do varlinkctl info ./edu >/dev/null 2>&1 && break; sleep 0.05; done')
            script.append(f'echo "@@ {number}"')
        done = subprocess.run(['bash', '-c', '\n'.join(script)], cwd=work, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, timeout=60,
                              env={**os.environ, 'CPATH': str(header.parent.parent)})

        output = re.split(r'^@@ \d+\n', done.stdout, flags=re.M)
        failed = 0
        for (command, expected), printed in zip(todo, output):
            # varlinkctl writes the error to one of its outputs and the reply to the other, in either order.
            if sorted(printed.splitlines()) == sorted(expected):
                print('ok:', command)
                continue
            failed += 1
            print('FAILED:', command)
            print('   the guide says:', *expected, sep='\n        ')
            print('   but it printed:', *printed.splitlines(), sep='\n        ')
        if len(output) != len(todo) + 1:
            sys.exit(f'the shell ended early, after {len(output) - 1} of {len(todo)} commands')
        sys.exit(1 if failed else 0)


main()
