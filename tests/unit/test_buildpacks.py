"""The buildpacks that ship, run as programs: what they recognise, what they make, what they release."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
import yaml

import buildpacks

pytestmark = pytest.mark.unit

LOOKS_FOR = {
    "python": "no requirements.txt, setup.py or pyproject.toml",
    "staticfile": "no Staticfile or index.html",
    "procfile": "no Procfile",
}


def run(pack: str, program: str, *words: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [buildpacks.path() / pack / "bin" / program, *words],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(words[0])},
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "cache").mkdir()
    return tmp_path / "app"


@pytest.mark.parametrize("pack", buildpacks.ORDER)
@pytest.mark.parametrize("program", ["detect", "compile", "release"])
def test_every_program_is_there_and_may_run(pack: str, program: str) -> None:
    """Three executable programs in each buildpack."""
    assert os.access(buildpacks.path() / pack / "bin" / program, os.X_OK)


@pytest.mark.parametrize(
    ("file", "packs"),
    [
        ("requirements.txt", {"python"}),
        ("setup.py", {"python"}),
        ("pyproject.toml", {"python"}),
        ("Staticfile", {"staticfile"}),
        ("index.html", {"staticfile"}),
        ("Procfile", {"procfile"}),
        ("readme.md", set()),
    ],
)
def test_detect(app: Path, file: str, packs: set[str]) -> None:
    """Each recognises its own files, says its name, and otherwise why not."""
    (app / file).touch()
    found = set()
    for pack in buildpacks.ORDER:
        done = run(pack, "detect", app, check=False)
        if done.returncode == 0:
            assert done.stdout.strip() == pack
            found.add(pack)
        else:
            assert done.stderr.strip() == f"{pack}: {LOOKS_FOR[pack]}"
    assert found == packs


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"requirements.txt": "Flask==3\ngunicorn\n", "app.py": ""}, "gunicorn app:app"),
        ({"requirements.txt": "flask>=2", "wsgi.py": ""}, "flask --app wsgi run --host 0.0.0.0 --port $PORT"),
        ({"requirements.txt": "Django\ngunicorn", "manage.py": "", "shop/wsgi.py": ""}, "gunicorn shop.wsgi"),
        ({"requirements.txt": "django", "manage.py": ""}, "python manage.py runserver 0.0.0.0:$PORT"),
        ({"requirements.txt": "# flask\n", "app.py": ""}, "python app.py"),
        ({"pyproject.toml": '[project]\ndependencies = ["flask>=3"]\n', "main.py": ""},
         "flask --app main run --host 0.0.0.0 --port $PORT"),
        ({"requirements.txt": ""}, None),
    ],
)  # fmt: skip
def test_the_default_start_of_a_python_app(app: Path, files: dict[str, str], command: str | None) -> None:
    """The framework among the requirements decides; without one, the module that is there."""
    for name, text in files.items():
        (app / name).parent.mkdir(exist_ok=True)
        (app / name).write_text(text)
    released = yaml.safe_load(run("python", "release", app).stdout)
    assert released == {"default_process_types": {} if command is None else {"web": command}}


def wheel(folder: Path, name: str) -> None:
    """A wheel with one module and one console script."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "def main():\n    print('hello')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-run = {name}:main\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_vendored_wheels_are_installed_without_an_index(app: Path) -> None:
    """The environment holds the wheel, its scripts point at the run-time place, the wheel is gone."""
    (app / "vendor").mkdir()
    wheel(app / "vendor", "tiny")
    (app / "requirements.txt").write_text("tiny==1.0\n")
    (app / "Procfile").write_text("web: tiny-run --port $PORT\n")
    done = run("python", "compile", app, app.parent / "cache")
    assert "-----> Installing 1 wheels from vendor/" in done.stdout
    assert "Start command" not in done.stdout, "the agent says it, and it is the one that runs"
    assert (app / ".venv/bin/tiny-run").read_text().startswith("#!/home/vcap/app/.venv/bin/python")
    assert not (app / "vendor").exists()
    inside = subprocess.run(
        [app / ".venv/bin/python", "-c", "import tiny; tiny.main()"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert inside.stdout == "hello\n"
    assert "VIRTUAL_ENV=$HOME/.venv" in (app / ".profile.d/000-python.sh").read_text()


def test_a_missing_wheel_fails_with_pips_words(app: Path) -> None:
    """With a vendor directory no index is asked: what is not in it is an error that names it."""
    (app / "vendor").mkdir()
    wheel(app / "vendor", "tiny")
    (app / "requirements.txt").write_text("tiny\nabsent==2\n")
    done = run("python", "compile", app, app.parent / "cache", check=False)
    assert done.returncode != 0
    assert "absent==2" in done.stdout


@contextlib.contextmanager
def served(app: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A compiled static site: its server and port."""
    released = yaml.safe_load(run("staticfile", "release", app).stdout)
    server = subprocess.Popen(
        ["/bin/sh", "-c", "exec " + released["default_process_types"]["web"]],
        cwd=app,
        env={"PATH": "/usr/bin:/bin", "PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield server, int(server.stdout.readline().split()[-1])
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def fetch(port: int, path: str, **headers: str) -> tuple[int, bytes, Message]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_a_static_site_is_served_without_its_secrets(app: Path) -> None:
    """The page is served on $PORT; dot files and the Staticfile are not; TERM ends the server with 0."""
    (app / "index.html").write_text("<h1>hi</h1>")
    (app / "Staticfile").write_text("")
    (app / ".env").write_text("secret")
    said = run("staticfile", "compile", app, app.parent / "cache").stdout
    assert "-----> Site: 1 files in ." in said
    with served(app) as (server, port):
        assert fetch(port, "/")[:2] == (200, b"<h1>hi</h1>")
        for hidden in ("/.env", "/Staticfile", "/%2eenv", "/x/../.env", "/.garrison/serve.py"):
            assert fetch(port, hidden)[0] == 404, hidden
        began = time.monotonic()
        server.terminate()
        assert server.wait(5) == 0
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(("staticfile", "status"), [("", 404), ("directory: visible\n", 200)])
def test_a_directory_is_listed_only_when_asked(app: Path, staticfile: str, status: int) -> None:
    """Names of files that no page links are nobody's business."""
    (app / "Staticfile").write_text(f"root: public\n{staticfile}")
    (app / "public" / "sub").mkdir(parents=True)
    (app / "public" / "with").mkdir()
    (app / "public" / "sub" / "unlinked.txt").write_text("x")
    (app / "public" / "with" / "index.html").write_text("index")
    assert "Site: 2 files in public" in run("staticfile", "compile", app, app.parent / "cache").stdout
    with served(app) as (_, port):
        for path in ("/", "/sub/"):
            answered, body, _headers = fetch(port, path)
            assert answered == status
            assert (b"sub" in body or b"unlinked.txt" in body) is (status == 200)
        assert fetch(port, "/with/")[:2] == (200, b"index")


def test_a_kept_copy_is_right_only_for_the_same_file(app: Path) -> None:
    """304 for what has not changed; a new page, an older one too, and one of the same second, come whole."""
    page = app / "index.html"
    page.write_text("one")
    os.utime(page, (1_700_000_000, 1_700_000_000))
    run("staticfile", "compile", app, app.parent / "cache")
    with served(app) as (_, port):
        _, _, headers = fetch(port, "/")
        kept = {"If_None_Match": headers["ETag"]}
        since = {"If_Modified_Since": headers["Last-Modified"]}
        assert fetch(port, "/", **kept)[0] == fetch(port, "/", **since)[0] == 304
        page.write_text("older")
        os.utime(page, (1_600_000_000, 1_600_000_000))
        for headers_ in (kept, since, kept | since):
            assert fetch(port, "/", **headers_)[:2] == (200, b"older")
        page.write_text("of the same second")
        os.utime(page, (1_700_000_000, 1_700_000_000))
        assert fetch(port, "/", **kept)[:2] == (200, b"of the same second")


@pytest.mark.parametrize("root", ["../x", "/etc", "absent"])
def test_a_root_outside_of_the_app_is_refused(app: Path, root: str) -> None:
    """`root:` names a directory within the app."""
    (app / "Staticfile").write_text(f"root: {root}\n")
    assert run("staticfile", "compile", app, app.parent / "cache", check=False).returncode != 0
