# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The cache folder and its entries. An entry is a folder NAME-KEY, KEY being a digest of everything it is made
# from. It is built under a temporary name and renamed when complete, and has beside it NAME-KEY.stamp with a
# digest of names, sizes and modification times of its files and of where its links lead (folders themselves do not
# count): an entry that does not match is built again.
# To be sourced; tests/lib/luvtest/cache.py keeps to the same form, and writes the stamps of its own entries in its own way.

: "${LUVFIOD_CACHE:=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/luvfiod}"
export LUVFIOD_CACHE

# The key of what is on standard input.
cache_key() {
        sha256sum | cut -c1-16
}

# The digest of a folder's state. Only what is below the sub-folders given (all, if none) counts.
cache_digest() {
        local dir=$1
        shift
        (cd "$dir" && find "${@:-.}" -xdev \( -type f -printf '%p %s %T@\n' \) -o \( -type l -printf '%p -> %l\n' \)) |
                LC_ALL=C sort | sha256sum | cut -d' ' -f1
}

# cache_valid ENTRY [SUBFOLDER...]
cache_valid() {
        local entry=$1 stamp
        shift
        [ -d "$entry" ] && [ -f "$entry.stamp" ] || return 1
        stamp=$(cat "$entry.stamp") || return 1
        [ -n "$stamp" ] && [ "$stamp" = "$(cache_digest "$entry" "$@" 2>/dev/null)" ]
}

# cache_commit TEMPORARY ENTRY [SUBFOLDER...]: makes a completed entry valid.
cache_commit() {
        local temporary=$1 entry=$2
        shift 2
        rm -f "$entry.stamp"
        rm -rf --one-file-system "$entry"
        mv -T "$temporary" "$entry"
        sync -f "$entry"
        cache_digest "$entry" "$@" >"$entry.stamp.new"
        mv -T "$entry.stamp.new" "$entry.stamp"
}
