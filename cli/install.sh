#!/bin/sh
# cli/install.sh install PROGRAM PACK | cli/install.sh uninstall: what `make install` and `make uninstall` do,
# with PREFIX and DESTDIR from the environment. PROGRAM becomes bin/mla; its man page and completions are what it
# writes with --generate. export.py and its package go to share/mla, with PACK (build/pack.so) if it is there,
# and bin/mla-export is a link to export.py.
#
# share/mla/manifest lists what was made, folders before what is in them. Uninstalling removes exactly that: a
# folder that was there before stays, and one that holds something else, too.
set -eu
umask 022
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
manifest=$PREFIX/share/mla/manifest
case $PREFIX in
/*) ;;
*) echo "PREFIX=$PREFIX: must be a path that begins with /" >&2; exit 2 ;;
esac

note() { # $1 is ours
    made="$made$1
"
}

folder() {
    [ -d "$DESTDIR$1" ] && return
    [ "$1" = / ] || folder "$(dirname "$1")"
    mkdir -p "$DESTDIR$1"
    note "$1"
}

# put MODE SOURCE TARGET
put() {
    folder "$(dirname "$3")"
    rm -f "$DESTDIR$3"
    cp "$2" "$DESTDIR$3"
    chmod "$1" "$DESTDIR$3"
    note "$3"
}

# written FORMAT TARGET
written() {
    "$program" --generate "$1" >"$temporary"
    put 644 "$temporary" "$2"
}

install() {
    program=$1
    temporary=$(mktemp)
    trap 'rm -f "$temporary"' EXIT
    put 755 "$program" "$PREFIX/bin/mla"
    written man "$PREFIX/share/man/man1/mla.1"
    written bash "$PREFIX/share/bash-completion/completions/mla"
    written zsh "$PREFIX/share/zsh/site-functions/_mla"
    written fish "$PREFIX/share/fish/vendor_completions.d/mla.fish"
    put 755 export.py "$PREFIX/share/mla/export.py"
    for file in exporter/*.py exporter/*.txt; do put 644 "$file" "$PREFIX/share/mla/$file"; done
    if [ -f "$2" ]; then put 644 "$2" "$PREFIX/share/mla/exporter/pack.so"; fi
    rm -f "$DESTDIR$PREFIX/bin/mla-export"
    ln -s ../share/mla/export.py "$DESTDIR$PREFIX/bin/mla-export"
    note "$PREFIX/bin/mla-export"
    note "$manifest"
    printf %s "$made" >"$DESTDIR$manifest"
}

uninstall() {
    [ -f "$DESTDIR$manifest" ] || { echo "nothing of mla is installed below $DESTDIR$PREFIX" >&2; exit 1; }
    made=$(cat "$DESTDIR$manifest")
    rm -rf "$DESTDIR$PREFIX/share/mla/exporter/__pycache__" # Python's, from running mla-export
    printf '%s\n' "$made" | sed '1!G;h;$!d' | while IFS= read -r path; do # from the last to the first
        if [ -d "$DESTDIR$path" ]; then rmdir "$DESTDIR$path" 2>/dev/null || :; else rm -f "$DESTDIR$path"; fi
    done
}

made=
case $1 in
install)
    if [ -f "$DESTDIR$manifest" ]; then # an older one: its folders are still ours
        uninstall
        made=
    fi
    install "$2" "$3"
    ;;
uninstall) uninstall ;;
esac
