#!/bin/sh
# Installs edgewise-agent where there is no package manager: ./install.sh [--prefix DIR] [--root DIR]
#
# Needs a POSIX shell and coreutils or BusyBox. The program goes to PREFIX (where it is already, else /usr/local), the
# configuration to /etc/edgewise (one that is there stays as it is), data to /var/lib/edgewise under a user of its own; the
# service is started by systemd or by an init script, whichever the machine has. Running it again upgrades.
#
#   --root DIR    installs into the system that lies in DIR: no user is made, nothing is started
#   --uninstall   takes away all but configuration and data; --purge takes those and the user, too
set -eu

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

prefix='' root='' action=install
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --root)
        # An empty one is a variable that was not set; for --root it would mean this machine.
        [ -n "${2:-}" ] || fail "$1 needs a directory"
        case $1 in --prefix) prefix=$2 ;; --root) root=${2%/} ;; esac
        shift
        ;;
    --uninstall | --purge) action=${1#--} ;;
    *) fail 'usage: ./install.sh [--prefix DIR] [--root DIR] [--uninstall | --purge]' ;;
    esac
    shift
done
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail 'run it as root'
here=$(cd "$(dirname "$0")" && pwd)
unit=/etc/systemd/system/edgewise-agent.service
script=/etc/init.d/edgewise-agent

has() {
    command -v "$1" >/dev/null 2>&1
}
is_systemd() {
    [ -d "$root/etc/systemd/system" ]
}
on_this_machine() {
    [ -z "$root" ]
}

# Where an earlier run put the program, as the service has it.
installed=$(sed -n 's|^ExecStart=\(/.*\)/bin/edgewise-agent run$|\1|p; s|^agent=\(/.*\)/bin/edgewise-agent$|\1|p' \
    "$root$unit" "$root$script" 2>/dev/null | head -n 1)
prefix=${prefix:-${installed:-/usr/local}}
[ "${installed:-$prefix}" = "$prefix" ] || fail "it is in $installed: uninstall it there first, or leave --prefix out"
# It stands in a unit, a script and a sed command; and the service sees no home directories.
case $prefix in
*[!A-Za-z0-9/._+-]*) fail '--prefix may have letters, digits, and / . _ + - only' ;;
/home/* | /root/* | /run/* | /tmp/*) fail "the service can't see $prefix: choose another --prefix" ;;
/*) ;;
*) fail '--prefix must begin with /' ;;
esac
agent=$prefix/bin/edgewise-agent
if on_this_machine && has dpkg && dpkg -s edgewise-agent >/dev/null 2>&1; then
    fail 'the package edgewise-agent is on this machine: upgrade it, or purge it first'
fi

stop() {
    on_this_machine || return 0
    if [ -e "$unit" ] && has systemctl; then
        systemctl stop edgewise-agent 2>/dev/null || true
    elif [ -x "$script" ]; then
        "$script" stop
    fi
}

make_user() {
    on_this_machine || return 0
    grep -q '^edgewise:' /etc/passwd && return 0
    if has useradd; then
        useradd --system --user-group --no-create-home --home-dir /var/lib/edgewise --shell /bin/false edgewise
    elif has adduser; then
        adduser -S -D -H -h /var/lib/edgewise -s /bin/false edgewise 2>/dev/null ||
            adduser -D -H -h /var/lib/edgewise -s /bin/false edgewise
    else
        fail 'there is no useradd and no adduser: make the user edgewise, then run this again'
    fi
}

install_files() {
    mkdir -p "$root$prefix/bin" "$root/etc/edgewise" "$root/var/lib/edgewise"
    # Beside the old one, then in its place: a power cut or a full disk leaves one or the other, and the old one runs on
    # until all is there.
    cp "$here/bin/edgewise-agent" "$root$agent.new"
    chmod 755 "$root$agent.new"
    sync
    mv -f "$root$agent.new" "$root$agent"
    if [ -e "$root/etc/edgewise/agent.toml" ]; then
        cmp -s "$here/etc/agent.toml" "$root/etc/edgewise/agent.toml" ||
            cp "$here/etc/agent.toml" "$root/etc/edgewise/agent.toml.new"
    else
        cp "$here/etc/agent.toml" "$root/etc/edgewise/agent.toml"
    fi
    chmod 750 "$root/var/lib/edgewise"
    if on_this_machine; then
        chown edgewise "$root/var/lib/edgewise"
        chgrp edgewise "$root/var/lib/edgewise" 2>/dev/null || true
    fi
    mkdir -p "$root$prefix/share/doc/edgewise-agent" "$root$prefix/share/man/man1" "$root$prefix/share/edgewise"
    cp "$here"/share/doc/* "$root$prefix/share/doc/edgewise-agent/"
    cp "$here"/share/man/*.1 "$root$prefix/share/man/man1/"
    cp -r "$here/share/samples" "$root$prefix/share/edgewise/"
    completions | while read -r shell file; do
        mkdir -p "$root$prefix/share/${file%/*}"
        cp "$here/share/completions/edgewise-agent.$shell" "$root$prefix/share/$file"
    done
}

# Of each shell: its file, and where it looks for it below share/.
completions() {
    echo 'bash bash-completion/completions/edgewise-agent'
    echo 'zsh zsh/site-functions/_edgewise-agent'
    echo 'fish fish/vendor_completions.d/edgewise-agent.fish'
}

install_service() {
    if is_systemd; then
        sed "s|/usr/bin/edgewise-agent|$agent|" "$here/service/edgewise-agent.service" >"$root$unit.new"
        mv -f "$root$unit.new" "$root$unit"
        if on_this_machine && has systemctl; then
            systemctl daemon-reload && systemctl enable edgewise-agent && systemctl restart edgewise-agent || true
        fi
        next='systemctl restart edgewise-agent'
    elif [ -d "$root/etc/init.d" ]; then
        sed "s|/usr/bin/edgewise-agent|$agent|" "$here/service/edgewise-agent.init" >"$root$script.new"
        chmod 755 "$root$script.new"
        ran=
        if on_this_machine && [ -x "$script" ] && "$script" status >/dev/null; then
            ran=1
            stop # By the script that started it.
        fi
        mv -f "$root$script.new" "$root$script"
        if on_this_machine && has rc-update; then
            rc-update add edgewise-agent default
        elif on_this_machine && has update-rc.d; then
            update-rc.d edgewise-agent defaults
        elif [ -e "$root/etc/init.d/rcS" ]; then
            # BusyBox's rcS starts what is named S and a number.
            ln -sf edgewise-agent "$root/etc/init.d/S90edgewise-agent"
        fi
        [ -z "$ran" ] || "$script" start
        next="$script restart"
    else
        next="as the user edgewise: $agent run (there is neither systemd nor /etc/init.d here)"
    fi
    echo "set cloud.broker or local in /etc/edgewise/agent.toml, then: $next"
    echo "to try it: local = \"$prefix/share/edgewise/samples/power-demand\""
}

uninstall() {
    stop
    if on_this_machine && [ -e "$unit" ] && has systemctl; then
        systemctl disable edgewise-agent 2>/dev/null || true
    fi
    if on_this_machine && has rc-update; then rc-update del edgewise-agent default 2>/dev/null || true; fi
    rm -f "$root$agent" "$root$unit" "$root$script" "$root/etc/init.d/S90edgewise-agent" \
        "$root$prefix"/share/man/man1/edgewise-agent*.1
    rm -rf "$root$prefix/share/doc/edgewise-agent" "$root$prefix/share/edgewise"
    completions | while read -r _ file; do rm -f "$root$prefix/share/$file"; done
    if on_this_machine && has update-rc.d; then update-rc.d edgewise-agent remove; fi
    if on_this_machine && has systemctl; then systemctl daemon-reload 2>/dev/null || true; fi
}

case $action in
install)
    [ -x "$here/bin/edgewise-agent" ] || fail "there is no $here/bin/edgewise-agent: run it from where it was unpacked"
    if on_this_machine && ! "$here/bin/edgewise-agent" --version >/dev/null 2>&1; then
        fail "this agent does not run on this machine ($(uname -m)): it is for another processor or C library"
    fi
    make_user
    install_files
    install_service
    ;;
uninstall) uninstall ;;
purge)
    uninstall
    rm -rf "$root/etc/edgewise" "$root/var/lib/edgewise"
    if on_this_machine; then
        if has userdel; then userdel edgewise 2>/dev/null || true; elif has deluser; then deluser edgewise || true; fi
    fi
    ;;
esac
