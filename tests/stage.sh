# Sourced by the test commands: `stage NAME COMMAND…` runs one step; the command that ends early says in which.

begun=$SECONDS stage='the start'
trap '[ $? -eq 0 ] || echo "${0##*/}: $stage failed" >&2' EXIT
stage() { # stage NAME COMMAND…: runs it, and says how long it took
    stage=$1
    local at=$SECONDS
    shift
    printf '\n== %s\n' "$stage"
    "$@"
    printf '== %s: %d s\n' "$stage" $((SECONDS - at))
}
