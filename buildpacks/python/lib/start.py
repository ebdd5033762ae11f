"""start.py APP: which command starts this Python app, as YAML.

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


def default_start(app):
    """The command, or None."""
    names = required_names(app)
    module = next((name for name in MODULES if (app / f"{name}.py").is_file()), None)
    if "django" in names and (app / "manage.py").is_file():
        project = next((p.parent.name for p in sorted(app.glob("*/wsgi.py"))), None)
        if "gunicorn" in names and project:
            return f"gunicorn {project}.wsgi"
        return "python manage.py runserver 0.0.0.0:$PORT"
    if "gunicorn" in names and module:
        return f"gunicorn {module}:app"
    if "flask" in names and module:
        return f"flask --app {module} run --host 0.0.0.0 --port $PORT"
    return f"python {module}.py" if module else None


def main():
    command = default_start(Path(sys.argv[1]))
    print("---")
    print("default_process_types:", "{}" if command is None else "")
    if command is not None:
        print("  web:", json.dumps(command))


main()
