"""How an app's start command is run, and what else is run with the app's environment. Pure.
docs/apps.md, "The start", describes it for users.

Scripts of the droplet (.profile.d) are sourced by the shell that becomes the app, so they may change everything of it: its
words, functions, options, directory. What follows them must come through all the same:

- Our shell begins with -p, so that no variable of the user's (BASH_ENV, CDPATH, GLOBIGNORE) bends it.
- All that is left to do when the first script begins is one group of commands, read and expanded by then: no alias, no
  `set --`, no loop's `break` and no variable reaches it. It ends with an `exec` of a fresh shell.
- That `exec` is found before a function of its name, since the assignment in front of it makes the shell a POSIX one.
- The fresh shell (-p again) goes to the app's directory and runs the command in an ordinary shell.
"""

from __future__ import annotations

from typing import Final

from wsh.vcap import VCAP_HOME

HOME: Final = VCAP_HOME
APP: Final = f"{HOME}/app"
BASH: Final = "/bin/bash"
#: Droplets from before 2013 hold a script beside `app/`.
OLD_STARTUP: Final = f"cd {HOME} && exec ./startup"

#: $1: the operator's hook; then what to exec when all is sourced. `exec` from end to end lets signals reach the app.
_SOURCE: Final = f"""\
set +p
umask 077
unset GEM_PATH
cd {HOME} && /bin/mkdir -p tmp logs
text=$'{{\\nset --\\n'
for script in {APP}/.profile.d/*.sh; do
  printf -v script %q "$script"
  text+="[[ -r $script ]] && . $script"$'\\n'
done
if [[ -n $1 ]]; then
  printf -v script %q "$1"
  text+="eval $script"$'\\n'
fi
shift
printf -v script '%q ' "$@"
text+=$'POSIXLY_CORRECT=${{POSIXLY_CORRECT-garrison}}\\n'"exec $script"$'\\n}}'
set -- "$text"
unset text script
eval "$1"
"""
_FRESH: Final = f"""\
set +p
[[ ${{POSIXLY_CORRECT-}} != garrison ]] || unset POSIXLY_CORRECT
export DROPLET_BASE_DIR={HOME}
"""
_APP: Final = f"""\
{_FRESH}cd {APP} || exit 1
echo $$ >> {HOME}/run.pid
exec {BASH} -c "$1"
"""
#: A shell is wanted most where something is missing.
_SHELL: Final = f"""\
{_FRESH}cd {APP} || cd {HOME} || exit 1
exec "$@"
"""


def start_argv(command: str, hook: str | None) -> tuple[str, ...]:
    """The words of the app's job; the command is one of them, so nothing has to be quoted."""
    return (BASH, "-p", "-c", _SOURCE, "start", hook or "", BASH, "-p", "-c", _APP, "start", command)


def shell_argv(hook: str | None) -> tuple[str, ...]:
    """What stands before the words of a command that is to run as the app does, in its directory."""
    return (BASH, "-p", "-c", _SOURCE, "shell", hook or "", BASH, "-p", "-c", _SHELL, "shell")
