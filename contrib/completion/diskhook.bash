# SPDX-License-Identifier: Apache-2.0
# Completion for bash. The program itself knows its words: with this last flag
# it prints those that may come next, and does nothing else. It prints options
# after a lone hyphen.
_diskhook() {
	local current=${COMP_WORDS[COMP_CWORD]} line=("${COMP_WORDS[@]:0:COMP_CWORD}")
	case $current in -*) line+=(-) ;; esac
	mapfile -t COMPREPLY < <(compgen -W "$("${line[@]}" --generate-bash-completion 2>/dev/null)" -- "$current")
}
complete -o default -F _diskhook diskhook
