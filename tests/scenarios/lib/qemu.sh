# shellcheck shell=sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# For scripts in the virt image: guests in QEMU, each with its log and its QMP socket.

logs=/var/log/luvguest
run=/run/luvguest
mkdir -p $logs $run

# qmp NAME COMMAND [ARGUMENTS]: one command; prints what it returns, and fails if that is an error.
qmp() {
        python3 - "$run/$1.qmp" "$2" "${3:-}" <<'END'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
f = s.makefile("rw")
f.readline()
for command, arguments in (("qmp_capabilities", "{}"), (sys.argv[2], sys.argv[3] or "{}")):
    f.write(json.dumps({"execute": command, "arguments": json.loads(arguments)}) + "\n")
    f.flush()
    while not (reply := json.loads(f.readline() or '{"error": "QEMU is gone"}')).keys() & {"return", "error"}:
        pass
print(json.dumps(reply.get("return", reply)))
sys.exit("error" in reply)
END
}

# guest_start NAME WORD...: QEMU, whose command line the words are.
guest_start() {
        guest=$1
        shift
        "$@" >"$logs/$guest.qemu" 2>&1 &
        echo $! >"$run/$guest.pid"
}

# guest_wait NAME SECONDS PATTERN: until a line of the guest's log matches.
guest_wait() {
        i=$(($2 * 10))
        while ! grep -Eq "$3" "$logs/$1.log" 2>/dev/null; do
                i=$((i - 1))
                if [ $i -le 0 ] || ! kill -0 "$(cat "$run/$1.pid")" 2>/dev/null; then
                        cat "$logs/$1.qemu"
                        tail -n 20 "$logs/$1.log"
                        return 1
                fi
                sleep 0.1
        done
}

# guest_end NAME: no more of it; its log goes to /out.
guest_end() {
        qmp "$1" quit >/dev/null
        wait "$(cat "$run/$1.pid")"
        ended=$?
        cp "$logs/$1".* /out/
        return $ended
}
