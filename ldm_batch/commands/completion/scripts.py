"""The scripts that a shell reads once: each hands the line to `completion answer` and shows what
comes back.

Must not know what there is to complete.
"""

BASH = r"""# Completes ldm-batch in bash. In ~/.bashrc:  eval "$(ldm-batch completion bash)"
_ldm_batch() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("$1" completion answer bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -o nospace -F _ldm_batch ldm-batch
"""
ZSH = r"""#compdef ldm-batch
# Completes ldm-batch in zsh. In ~/.zshrc, below compinit:  eval "$(ldm-batch completion zsh)"
_ldm_batch() {
    local word
    local -a finished open
    while IFS= read -r word; do
        if [[ $word == *' ' ]]; then
            finished+=("${word% }")
        else
            open+=("$word")
        fi
    done < <("$words[1]" completion answer zsh "${(j: :)words[1,CURRENT]}" 2>/dev/null)
    (( ! $#finished )) || compadd -- "${finished[@]}"
    (( ! $#open )) || compadd -S '' -- "${open[@]}"
}
if (( $+functions[compdef] )); then
    compdef _ldm_batch ldm-batch
fi
"""
FISH = r"""# Completes ldm-batch in fish. In config.fish:  ldm-batch completion fish | source
function __ldm_batch_answer
    set -l line (commandline -cp | string collect)
    set -l program (commandline -opc)[1]
    $program completion answer fish "$line" 2>/dev/null
end
complete -c ldm-batch -f -a '(__ldm_batch_answer)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
