# Sourced by the scripts that have something to undo. It is undone, too, when a signal ends them, which
# sh leaves to the script; and no other signal ends that halfway.
# shellcheck shell=sh

undisturbed() { trap '' HUP INT TERM; } # programs that are called inherit that
trap 'undisturbed; exit 129' HUP
trap 'undisturbed; exit 130' INT
trap 'undisturbed; exit 143' TERM

at_exit() { # at_exit FUNCTION
	undo=$1
	trap 'undisturbed; "$undo"' EXIT
}
