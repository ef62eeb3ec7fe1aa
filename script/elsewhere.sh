# For the scripts that try ringtls elsewhere, sourced by them in the root of the tree.
# Exit status 77 means that this can't run here; the last line says why.
# shellcheck shell=sh

# shellcheck source=script/signals.sh
. script/signals.sh
work=$(mktemp -d)
clean_up() { :; } # what else is to be done at the end
remove_work() {
	# Through a mount within it, something else would be removed.
	! grep -F " $work/" /proc/self/mounts || { echo "$work is left, for these mounts" && return 1; }
	rm -rf --one-file-system "$work"
}
leave_nothing() {
	clean_up
	remove_work
}
at_exit leave_nothing

cannot() {
	echo "${0##*/}: can't run here: $*"
	exit 77
}

usage() {
	sed -n '2,/^set/s/^# \{0,1\}//p' "script/${0##*/}"
	exit 2
}

install() { # install PACKAGE...: as root on Debian and its like; else nothing happens
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
	echo "Installing $* ..."
	export DEBIAN_FRONTEND=noninteractive
	{ apt-get update -q && apt-get install -q -y --no-install-recommends "$@"; } \
		>"$work/log" 2>&1 || tail -n 3 "$work/log"
}

quiet() { # quiet COMMAND...: what it prints is shown only if it fails
	"$@" >"$work/log" 2>&1 || { tail -n 30 "$work/log" && return 1; }
}

bounded() { # bounded SECONDS COMMAND...
	timeout --foreground -k 30 "$@"
}

copy_tree() { # copy_tree DIRECTORY
	mkdir -p "$1"
	tar --exclude-vcs --exclude=./.venv --exclude=./build --exclude=./dist --exclude=__pycache__ \
		-c . | tar -C "$1" -x --no-same-owner
}

# How this host reaches the package index, if it is not the usual way.
pip_setting() { python3 -m pip config get "$1" 2>/dev/null || :; }

pip_conf() { # pip_conf AUTHORITIES: a pip.conf, for where $work/ca.pem has this name
	index=${PIP_INDEX_URL:-$(pip_setting global.index-url)}
	authorities=${PIP_CERT:-$(pip_setting global.cert)}
	cp "${authorities:-/dev/null}" "$work/ca.pem"
	echo "[global]"
	[ -z "$index" ] || echo "index-url = $index"
	[ -z "$authorities" ] || echo "cert = $1"
}
