# What the scripts have in common that try ringtls in a Debian of debian-root.sh with another kernel or C
# library: they build a wheel there, install it, and run tests/machine/parts. They have sourced that file.
# shellcheck shell=sh
# shellcheck disable=SC2034,SC2154 # variables of those who source it, and of debian-root.sh

all_parts="doctor demo engine streams ends"

install_packages() { # install_packages ARGUMENT...: by this host's pip, which is not emulated
	# shellcheck disable=SC2086 # options
	quiet bounded 600 python3 -m pip install -q --no-compile --upgrade --target "$root$site" \
		--only-binary :all: --implementation cp --python-version "$version" $platforms "$@"
	sed -i '1s|^#!.*|#!/usr/bin/env python3|' "$root$site"/bin/* # not this host's Python
}

install_wheel() { # install_wheel LIBC: it is built there; manylinux_2 or musllinux_1
	python3 -m pip --version >/dev/null 2>&1 || install python3-pip
	python3 -m pip --version >/dev/null 2>&1 || cannot "there is no pip"
	echo "Building ringtls in it ..."
	site=$(in_root 60 python3 -c 'import site; print(site.getsitepackages()[0])')
	version=${site#*/python}
	version=${version%%/*}
	platforms=$(printf -- "--platform ${1}_%s_${foreign:-$(uname -m)} " $(seq 36 -1 0))
	python3 - >"$work/requirements" <<-'END'
		import tomllib
		with open("pyproject.toml", "rb") as file:
		    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
	END
	install_packages -r "$work/requirements" -r tests/machine/requirements.txt
	quiet in_root 1200 tests/machine/wheel "$site"
	tail -n 3 "$work/log" # what the extension needs, and the wheel
	install_packages "$(echo "$root"/ringtls/dist/*.whl)[server]"
}

report() { # report: how what was printed on $work/console ended
	! grep -q '^[a-z]*: FAILED' "$work/console" ||
		{ echo "${0##*/}: something failed" && exit 1; }
	echo "${0##*/}: all as it should be"
}
