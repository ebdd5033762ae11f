"""The argument vectors that run an app's start command, and other commands in the app's environment. Pure.
docs/apps.md, "The start", describes it for users.

The shell that becomes the app first sources the droplet's scripts (.profile.d). A script may change anything in that shell:
positional parameters, functions, options, aliases, the directory. The start command must run correctly in spite of that:

- The shell is started with -p, so it ignores variables of the user's such as BASH_ENV, CDPATH and GLOBIGNORE.
- The sourcing and the `exec` after it are one group of commands, `{ ...; }`. bash has parsed all of it before the first
  script runs, and it has no loop and only quoted words. So no alias, `break`, `set --` or variable of a script changes it.
- The `exec` at its end cannot be replaced by a function named `exec`: the assignment to POSIXLY_CORRECT before it puts bash
  into POSIX mode, where special builtins are found before functions.
- That `exec` starts a fresh shell, with -p too. It changes to the app's directory and runs the command in an ordinary shell.
"""

from __future__ import annotations

from typing import Final

from wsh.vcap import VCAP_HOME

HOME: Final = VCAP_HOME
APP: Final = f"{HOME}/app"
BASH: Final = "/bin/bash"
#: The command for a droplet from before 2013, which has a start script beside `app/`.
OLD_STARTUP: Final = f"cd {HOME} && exec ./startup"

#: $1 is the operator's hook; the other arguments are the command to exec at the end. Every stage uses `exec`, so the app has
#: the job's pid and receives its signals.
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
#: Unlike `_APP`, it runs without the app's directory too: a shell is needed most when a part of the droplet is missing.
_SHELL: Final = f"""\
{_FRESH}cd {APP} || cd {HOME} || exit 1
exec "$@"
"""


def start_argv(command: str, hook: str | None) -> tuple[str, ...]:
    """The argument vector of the app's job. The command is one argument, so it needs no quoting."""
    return (BASH, "-p", "-c", _SOURCE, "start", hook or "", BASH, "-p", "-c", _APP, "start", command)


def shell_argv(hook: str | None) -> tuple[str, ...]:
    """The arguments to put before those of a command that is to run in the app's environment and directory."""
    return (BASH, "-p", "-c", _SOURCE, "shell", hook or "", BASH, "-p", "-c", _SHELL, "shell")
