# Sourced by the scripts that have something to undo: their trap of EXIT runs, too, when a signal
# ends them, which sh leaves to the script.
# shellcheck shell=sh

trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
