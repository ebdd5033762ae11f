"""start.py APP: prints the start command of a Python app, as YAML.

The command depends on the web framework among the requirements. If the app has a Procfile, the agent uses that instead.
gunicorn listens on 0.0.0.0:$PORT by default.
"""

import json
import re
import sys
from pathlib import Path

MODULES = ("app", "wsgi", "main", "application", "server")


def required_names(app):
    """Names of the distributions that the app requires directly, in lower case."""
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
    """The start command; None if nothing in the app suggests one."""
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
