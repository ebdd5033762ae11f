"""start.py say|release APP: which command starts this Python app, and why.

A Procfile wins (the agent reads it); otherwise the web framework among the requirements decides. gunicorn binds
0.0.0.0:$PORT by itself.
"""

import json
import re
import sys
from pathlib import Path

MODULES = ("app", "wsgi", "main", "application", "server")


def required_names(app):
    """Names of distributions that the app names itself, in lower case."""
    names = set()
    requirements = app / "requirements.txt"
    if requirements.is_file():
        for line in requirements.read_text(errors="replace").splitlines():
            match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line)
            if match:
                names.add(match.group(1).lower().replace("_", "-"))
    for file in ("pyproject.toml", "setup.py"):
        if (app / file).is_file():
            text = (app / file).read_text(errors="replace").lower()
            names |= {name for name in ("flask", "django", "gunicorn") if re.search(rf"[\"']{name}\b", text)}
    return names


def web_from_procfile(app):
    procfile = app / "Procfile"
    if procfile.is_file():
        for line in procfile.read_text(errors="replace").splitlines():
            name, colon, command = line.partition(":")
            if colon and name.strip() == "web":
                return command.strip()
    return None


def default_start(app):
    """(command, reason), or (None, reason)."""
    names = required_names(app)
    module = next((name for name in MODULES if (app / f"{name}.py").is_file()), None)
    if "django" in names and (app / "manage.py").is_file():
        project = next((p.parent.name for p in sorted(app.glob("*/wsgi.py"))), None)
        if "gunicorn" in names and project:
            return f"gunicorn {project}.wsgi", "Django with gunicorn"
        return "python manage.py runserver 0.0.0.0:$PORT", "Django's own server"
    if "gunicorn" in names and module:
        return f"gunicorn {module}:app", "gunicorn is required"
    if "flask" in names and module:
        return f"flask --app {module} run --host 0.0.0.0 --port $PORT", "Flask's own server"
    if module:
        return f"python {module}.py", f"{module}.py is there"
    return None, "no Procfile, no known web framework, none of " + ", ".join(f"{m}.py" for m in MODULES)


def main():
    word, app = sys.argv[1], Path(sys.argv[2])
    command, reason = default_start(app)
    if word == "release":
        print("---")
        print("default_process_types:", "{}" if command is None else "")
        if command is not None:
            print("  web:", json.dumps(command))
        return
    from_procfile = web_from_procfile(app)
    if from_procfile:
        command, reason = from_procfile, "Procfile"
    if command is None:
        print(f"-----> No start command: {reason}")
    else:
        print(f"-----> Start command: {command} ({reason})")


main()
