#!/bin/sh
# Installs edgewise-agent where there is no package manager: ./install.sh [--prefix DIR] [--root DIR]
#
# Needs a POSIX shell and coreutils or BusyBox. The program goes to PREFIX (/usr/local), the configuration to
# /etc/edgewise (one that is there stays as it is), data to /var/lib/edgewise under a user of its own; the service is
# started by systemd or by an init script, whichever the machine has. Running it again upgrades.
#
#   --root DIR    installs into the system that lies in DIR: no user is made, nothing is started
#   --uninstall   takes away all but configuration and data; --purge takes those and the user, too
set -eu

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

prefix=/usr/local root='' action=install
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --root)
        [ $# -gt 1 ] || fail "$1 needs a directory"
        case $1 in --prefix) prefix=$2 ;; --root) root=${2%/} ;; esac
        shift
        ;;
    --uninstall | --purge) action=${1#--} ;;
    *) fail 'usage: ./install.sh [--prefix DIR] [--root DIR] [--uninstall | --purge]' ;;
    esac
    shift
done
case $prefix in /*) ;; *) fail '--prefix must begin with /' ;; esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail 'run it as root'
here=$(cd "$(dirname "$0")" && pwd)
agent=$prefix/bin/edgewise-agent
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
    mkdir -p "$root$prefix/share/doc/edgewise-agent" "$root$prefix/share/man/man1"
    cp "$here"/share/doc/* "$root$prefix/share/doc/edgewise-agent/"
    cp "$here"/share/man/*.1 "$root$prefix/share/man/man1/"
}

install_service() {
    if is_systemd; then
        sed "s|/usr/bin/edgewise-agent|$agent|" "$here/service/edgewise-agent.service" >"$root$unit"
        if on_this_machine && has systemctl; then
            systemctl daemon-reload && systemctl enable edgewise-agent && systemctl restart edgewise-agent || true
        fi
        echo "name the cloud's broker in /etc/edgewise/agent.toml, then: systemctl restart edgewise-agent"
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
        echo "name the cloud's broker in /etc/edgewise/agent.toml, then: $script restart"
    else
        echo "there is neither systemd nor /etc/init.d here; as the user edgewise: $agent run"
    fi
}

uninstall() {
    stop
    if on_this_machine && [ -e "$unit" ] && has systemctl; then
        systemctl disable edgewise-agent 2>/dev/null || true
    fi
    if on_this_machine && has rc-update; then rc-update del edgewise-agent default 2>/dev/null || true; fi
    rm -f "$root$agent" "$root$unit" "$root$script" "$root/etc/init.d/S90edgewise-agent" \
        "$root$prefix"/share/man/man1/edgewise-agent*.1
    rm -rf "$root$prefix/share/doc/edgewise-agent"
    if on_this_machine && has update-rc.d; then update-rc.d edgewise-agent remove; fi
    if on_this_machine && has systemctl; then systemctl daemon-reload 2>/dev/null || true; fi
}

case $action in
install)
    [ -x "$here/bin/edgewise-agent" ] || fail "there is no $here/bin/edgewise-agent: run it from where it was unpacked"
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
