# A bare Debian of any release in $root, for the scripts that try ringtls there. They are root, and
# have sourced elsewhere.sh. Nothing of it is left behind: mounts end with the command that needs them.
# shellcheck shell=sh
# shellcheck disable=SC2154 # $work is of elsewhere.sh

root=$work/root
foreign= # the kind of processor that qemu-user plays, as qemu names it

need_root() { # need_root ARGUMENTS
	[ "$(id -u)" = 0 ] || cannot "it needs root: sudo $0 $*"
}

need_command() { # need_command COMMAND PACKAGE...
	command=$1
	shift
	command -v "$command" >/dev/null || install "$@"
	command -v "$command" >/dev/null || cannot "there is no $command"
}

apart() { # apart SECONDS [OPTION...] COMMAND...: when it ends, so do its processes and its mounts
	limit=$1
	shift
	bounded "$limit" unshare --mount --mount-proc --pid --fork --kill-child "$@"
}

make_root() { # make_root RELEASE ARCHITECTURE [PACKAGE...]: python3, and nothing but these
	release=$1
	architecture=$2
	shift 2
	need_command mmdebstrap mmdebstrap debian-archive-keyring
	variant=minbase
	if [ "$architecture" != "$(dpkg --print-architecture)" ]; then
		[ "$architecture" = arm64 ] || cannot "it knows no machine of the kind $architecture"
		need_command qemu-aarch64-static qemu-user-static
		foreign=aarch64
		variant=extract # nothing is configured: that would take long
		set -- '?essential' "$@"
	fi
	echo "Making a Debian of $release for $architecture ..."
	packages=$(printf ',%s' python3 "$@")
	valid_until= # "false" where this host puts up with old copies of the archive
	eval "$(apt-config shell valid_until Acquire::Check-Valid-Until)"
	quiet apart 900 mmdebstrap --variant=$variant --architectures="$architecture" \
		--include="${packages#,}" --skip=cleanup/apt/lists \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt=force-unsafe-io \
		${valid_until:+--aptopt="Acquire::Check-Valid-Until \"$valid_until\""} \
		"$release" "$root" ||
		cannot "mmdebstrap made no Debian of $release"
	cp -L /etc/resolv.conf "$root/etc"
	printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
	pip_conf /etc/pip-ca.pem >"$root/etc/pip.conf"
	cp "$work/ca.pem" "$root/etc/pip-ca.pem"
	if [ -n "$foreign" ]; then # no package was configured, and ensurepip asks for what one makes
		mkdir -p "$root/etc/ssl/certs"
		cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs"
	fi
	copy_tree "$root/ringtls"
}

# Of the foreign kind it is a cortex-a72, which does not sign pointers: that takes qemu long.
in_root() { # in_root SECONDS COMMAND...: in the tree that was copied
	limit=$1
	shift
	# shellcheck disable=SC2016,SC2086 # the other shell's variables; options
	apart "$limit" ${foreign:+--user --map-root-user} \
		env -i ${foreign:+QEMU_CPU=cortex-a72} HOME=/root LANG=C.UTF-8 TERM=dumb \
		PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		sh -euc '
			root=$1 foreign=$2
			shift 2
			if [ -n "$foreign" ]; then # a binfmt_misc of our own
				mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
				sed "s|[^:]*:[^:]*\$|/usr/bin/qemu-$foreign-static:F|" \
					"/usr/lib/binfmt.d/qemu-$foreign.conf" >/proc/sys/fs/binfmt_misc/register
			fi
			mount -t proc proc "$root/proc"
			mount --rbind /dev "$root/dev"
			mount --rbind /sys "$root/sys"
			ulimit -S -n 1024 # as usual
			exec chroot "$root" sh -c "cd /ringtls && exec \"\$@\"" - "$@"
		' - "$root" "$foreign" "$@"
}
